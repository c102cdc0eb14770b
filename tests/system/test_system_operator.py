"""What a person does to a real fleet: mistakes in git, held changes, commands, and machines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import REGION, Fleet, alive, fleet_on_laptop

from edgewise.model.errors import NeedsPerson
from edgewise.protocol.api import RolloutSummary, TokenRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


async def baking(fleet: Fleet, version: str) -> tuple[str, RolloutSummary]:
    """Begin a rollout whose canary bakes for long; its commit and what it is."""
    files = fleet.files(version)
    policy = "policies/careful.yaml"
    await fleet.publish(version)
    slow = {policy: files[policy].replace("bake: 1s", "bake: 1h", 1)}
    commit = await fleet.change({**files, **slow}, f"hello {version}")

    def bakes() -> RolloutSummary | None:
        one = fleet.rollout(commit)
        return one if one is not None and one.state == "Baking" else None

    return commit, await fleet.until(bakes, "the canary bakes")


async def test_a_broken_commit_changes_nothing_and_status_says_where(fleet: Fleet) -> None:
    good = fleet.files("1.0.0")
    await fleet.roll_out("1.0.0")
    compiled = fleet.status().source.compiled
    typo = good["apps/hello.yaml"] + "  tyop: 1\n"
    with pytest.raises(NeedsPerson, match="not acted on"):
        await fleet.change({"apps/hello.yaml": typo}, "a typo")
    source = fleet.status().source
    assert source.compiled == compiled
    assert [condition.reason for condition in source.conditions] == ["CommitRejected"] * 2
    line = len(good["apps/hello.yaml"].splitlines()) + 1
    assert [(p.file, p.line) for p in source.problems] == [("apps/hello.yaml", line)]
    assert f"apps/hello.yaml:{line}:" in await fleet.edgewise("status")
    with pytest.raises(NeedsPerson, match="not acted on"):
        await fleet.change({"apps/hello.yaml": "a: [1, 2\n"}, "not even YAML")
    assert fleet.status().source.problems[0].file == "apps/hello.yaml"
    await fleet.kill("hub")
    await fleet.start_hub()
    await fleet.until(lambda: fleet.status().source.problems, "the mistake is known again")
    assert set(fleet.answers()) == {"hello 1.0.0"}
    assert (await fleet.roll_out("2.0.0")).state == "Succeeded"
    assert fleet.status().source.problems == ()
    await fleet.until_all_say("hello 2.0.0")


async def test_a_mass_deletion_waits_for_a_person(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    shops = fleet.files("1.0.0")["fleets/shops.yaml"]
    await fleet.change({"fleets/shops.yaml": None}, "clean up")
    (mistaken,) = fleet.status().held
    await fleet.change({"fleets/shops.yaml": shops}, "a mistake")
    assert fleet.status().held == (), "what was taken back waits for nobody"
    await fleet.change({"fleets/shops.yaml": None}, "clean up, really")
    (held,) = fleet.status().held
    assert held.id != mistaken.id
    assert "2 of 2 nodes would lose their fleet" in held.reason
    assert [one.nodes for one in fleet.status().fleets] == [2]
    assert set(fleet.answers()) == {"hello 1.0.0"}
    await fleet.edgewise("rollout", "approve", held.id)
    await fleet.until(lambda: fleet.status().unplaced == 2, "the nodes have lost their fleet")
    assert fleet.status().held == ()
    await asyncio.sleep(1)
    assert set(fleet.answers()) == {"hello 1.0.0"}, "nodes without a fleet keep what they run"
    await fleet.change({"fleets/shops.yaml": shops}, "it was needed")
    await fleet.until(lambda: fleet.status().unplaced == 0, "the fleet is back")


async def test_a_bad_commit_is_reverted_in_git_and_people_can_fetch_that(fleet: Fleet) -> None:
    policy = fleet.files("1.0.0")["policies/careful.yaml"]
    asks = {"policies/careful.yaml": policy + "  onFailure: {git: RevertCommit}\n"}
    await fleet.publish("1.0.0")
    good = await fleet.change({**fleet.files("1.0.0"), **asks}, "hello 1.0.0")
    await fleet.ended(good)
    await fleet.publish("2.0.0", healthy=False)
    bad = await fleet.change({**fleet.files("2.0.0"), **asks}, "hello 2.0.0")
    ended = await fleet.ended(bad)
    assert ended.state == "RolledBack"
    source = await fleet.until(
        lambda: (one := fleet.status().source) and bad not in one.revision and one,
        "the branch has a revert commit",
    )
    revert = source.revision.rpartition(":")[2]
    await fleet.until(lambda: fleet.status().source.compiled == source.revision, "it compiled")
    assert fleet.status().source.problems == ()
    assert fleet.trace(revert).rollouts == (), "the revert moves nobody: the fleet is back already"
    await fleet.until_all_say("hello 1.0.0")
    assert f"reverts {bad[:12]}, back to {good[:12]}" in await fleet.edgewise("rollout", "show")
    assert "CommitReverted" in await fleet.edgewise("audit")
    repo = str(fleet.laptop.directory / "shops")
    with pytest.raises(NeedsPerson, match="edgewise fetch"):
        await fleet.change({"README.md": "more"}, "without looking")
    await fleet.edgewise("fetch", "-C", repo)
    who = ("-c", "user.name=T", "-c", "user.email=t@example")
    await fleet.laptop.run("git", "-C", repo, *who, "rebase", "-q", "edgewise/main")
    await fleet.edgewise("push", "-C", repo)
    await fleet.until(lambda: fleet.status().source.problems == (), "it is accepted")
    assert set(fleet.answers()) == {"hello 1.0.0"}


async def test_a_rollout_waits_for_the_window_and_says_until_when(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    shops = fleet.files("2.0.0")["fleets/shops.yaml"]
    opens = datetime.now(UTC) + timedelta(hours=5)
    at = f'"{opens.minute} {opens.hour} * * *"'
    window = f"  updateWindow: {{apply: {{at: {at}, duration: 1h, timeZone: UTC}}}}\n"
    await fleet.publish("2.0.0")
    files = {**fleet.files("2.0.0"), "fleets/shops.yaml": shops + window}
    commit = await fleet.change(files, "hello 2.0.0, by night")

    def waits() -> RolloutSummary | None:
        one = fleet.rollout(commit)
        return one if one is not None and one.state == "WaitingForWindow" else None

    waiting = await fleet.until(waits, "the canary waits for its window")
    when = f"{opens:%Y-%m-%d %H:%M} UTC"
    assert waiting.reason == f"1 nodes wait for their update window, the next opens {when}"
    assert when in await fleet.edgewise("status")
    assert f"waits for its apply window, which opens {when}" in await fleet.edgewise(
        "node", "explain", "node-1"
    )
    assert set(fleet.answers()) == {"hello 1.0.0"}
    await fleet.kill("hub")
    await fleet.start_hub()
    await fleet.until(waits, "it still waits after the hub's death")
    ended = await fleet.ended(await fleet.commit("2.0.0"))
    assert ended.state == "Succeeded"
    await fleet.until_all_say("hello 2.0.0")


async def test_a_person_pauses_resumes_and_aborts_a_rollout(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    commit, rollout = await baking(fleet, "2.0.0")
    assert fleet.answers() == ["hello 2.0.0", "hello 1.0.0"]
    fleet.act(f"/v1/rollouts/{rollout.id}/pause", "lunch")
    assert fleet.rollout(commit).state == "Paused"
    fleet.act(f"/v1/rollouts/{rollout.id}/resume", "back")
    assert fleet.rollout(commit).state == "Baking"
    fleet.act(f"/v1/rollouts/{rollout.id}/abort", "changed our mind")
    ended = await fleet.ended(commit)
    assert ended.state == "Cancelled"
    await fleet.until_all_say("hello 1.0.0")
    actions = await fleet.edgewise("audit", "--output", "json")
    for said in ("lunch", "back", "changed our mind", "user/admin"):
        assert said in actions


async def test_a_held_or_quarantined_node_keeps_what_it_runs_until_it_is_released(
    fleet: Fleet,
) -> None:
    await fleet.roll_out("1.0.0")
    for version, command, before in (
        ("2.0.0", "hold", "hello 1.0.0"),
        ("3.0.0", "quarantine", "hello 2.0.0"),
    ):
        fleet.act(f"/v1/nodes/node-2/{command}", "on the bench")
        await fleet.publish(version)
        commit = await fleet.commit(version)
        await fleet.until(
            lambda: (one := fleet.rollout(commit)) and one.state == "WaitingForTargets",  # noqa: B023
            "the last stage waits for its only node",
        )
        assert fleet.answers() == [f"hello {version}", before]
        assert "on the bench" in await fleet.edgewise("node", "explain", "node-2")
        fleet.act("/v1/nodes/node-2/release")
        assert (await fleet.ended(commit)).state == "Succeeded"
        await fleet.until_all_say(f"hello {version}")


async def test_a_forgotten_name_can_join_again_as_another_machine(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    old = fleet.app_pid("node-2")
    await fleet.edgewise("node", "forget", "node-2", "--yes")
    assert alive(old), "an app does not stop because its node is forgotten"
    with pytest.raises(NeedsPerson, match="there is no node 'node-2'"):
        await fleet.edgewise("node", "show", "node-2")
    await fleet.laptop.processes["node-2"].stop()
    os.kill(old, signal.SIGKILL)  # its machine is switched off
    fleet.state("node-2").rename(fleet.laptop.directory / "gone")
    request = TokenRequest("node", {"region": REGION, "ring": "stable"}, REGION, via=REGION)
    await fleet.start_agent("node-2", await fleet.token(request))
    await fleet.until_all_say("hello 1.0.0")
    assert (await fleet.roll_out("2.0.0")).state == "Succeeded"
    await fleet.until_all_say("hello 2.0.0")
