"""A whole fleet as real processes: what must hold when one of them is killed or cut off."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, alive, fleet_on_laptop

from edgewise.model.errors import NeedsPerson
from edgewise.protocol.api import TokenRequest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


async def test_a_commit_reaches_every_node_and_a_bad_one_comes_back(fleet: Fleet) -> None:
    good = await fleet.roll_out("1.0.0")
    assert good.state == "Succeeded"
    assert set(fleet.answers()) == {"hello 1.0.0"}
    bad = await fleet.roll_out("1.1.0", healthy=False)
    assert bad.state == "RolledBack"
    await fleet.until_all_say("hello 1.0.0")


async def test_a_hub_killed_in_the_middle_of_a_rollout_goes_on(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    await fleet.publish("2.0.0")
    commit = await fleet.commit("2.0.0")
    await fleet.until(lambda: "hello 2.0.0" in fleet.answers(), "the canary moved")
    await fleet.kill("hub")
    await fleet.start_hub()
    ended = await fleet.ended(commit)
    assert ended.state == "Succeeded"
    await fleet.until_all_say("hello 2.0.0")
    states = [node.state for node in fleet.trace(commit).nodes]
    assert states == ["Running", "Running"]


async def test_a_relay_killed_in_the_middle_of_a_rollout_loses_nothing(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    await fleet.publish("2.0.0")
    commit = await fleet.commit("2.0.0")
    await fleet.until(lambda: "hello 2.0.0" in fleet.answers(), "the canary moved")
    await fleet.kill("relay")
    await asyncio.sleep(1)
    assert "" not in fleet.answers()
    await fleet.start_relay()
    assert (await fleet.ended(commit)).state == "Succeeded"
    await fleet.until_all_say("hello 2.0.0")


async def test_a_killed_agent_keeps_its_app_running_and_takes_it_up_again(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    pid = fleet.app_pid("node-1")
    await fleet.kill("node-1")
    assert alive(pid)
    assert fleet.answers() == ["hello 1.0.0"] * 2
    await fleet.start_agent("node-1")
    assert fleet.app_pid("node-1") == pid
    ended = await fleet.roll_out("2.0.0")
    assert ended.state == "Succeeded"
    await fleet.until_all_say("hello 2.0.0")
    assert not alive(pid)


async def test_a_region_that_is_cut_off_keeps_running_and_catches_up(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    assert fleet.link is not None
    fleet.link.cut()
    await fleet.publish("2.0.0")
    await fleet.publish("3.0.0")
    await fleet.commit("2.0.0")
    last = await fleet.commit("3.0.0")
    await asyncio.sleep(2)
    assert set(fleet.answers()) == {"hello 1.0.0"}
    fleet.link.mend()
    await fleet.until_all_say("hello 3.0.0", within=120)
    assert (await fleet.ended(last)).state == "Succeeded"


async def test_a_token_that_was_used_is_refused_for_another_machine(fleet: Fleet) -> None:
    token = await fleet.token(TokenRequest("node", {"ring": "stable"}, "east", via="east"))
    await fleet.start_agent("node-3", token)
    await fleet.laptop.processes["node-3"].stop()
    with pytest.raises(NeedsPerson, match="node-4"):
        await fleet.start_agent("node-4", token)
    assert not (fleet.state("node-4") / "identity" / "svid.pem").exists()
    assert fleet.laptop.processes["node-4"].process.returncode == NeedsPerson.exit_code
    assert "Traceback" not in fleet.log("node-4")


async def test_two_hubs_on_one_data_directory_are_refused(fleet: Fleet) -> None:
    with pytest.raises(NeedsPerson, match="in use by another"):
        await fleet.laptop.run(
            sys.executable, "-m", "edgewise.roles.hub",
            "--data", str(fleet.data), "--listen", "127.0.0.1:0", "--org", "demo",
        )  # fmt: skip
    assert fleet.online() == 2


async def test_ready_files_say_where_and_who_each_role_is(fleet: Fleet) -> None:
    for directory, identity in (
        (fleet.data, "spiffe://hub.demo/hub"),
        (fleet.laptop.directory / "relay", "spiffe://east.demo/relay/east"),
        (fleet.state("node-1"), "spiffe://east.demo/node/node-1"),
    ):
        said = json.loads((directory / "ready.json").read_bytes())
        assert said["spiffe_id"] == identity
        assert alive(said["pid"])


async def test_a_quarantined_node_gets_nothing_from_its_relay_until_it_is_released(
    fleet: Fleet,
) -> None:
    await fleet.add_node("node-3", "stable")
    await fleet.roll_out("1.0.0")
    await asyncio.to_thread(fleet.act, "/v1/nodes/node-2/quarantine", "stolen?")
    await fleet.until(lambda: "forgotten or quarantined" in fleet.log("node-2"), "it is refused")
    assert (await fleet.roll_out("2.0.0")).state == "Succeeded"
    assert fleet.answers() == ["hello 2.0.0", "hello 1.0.0", "hello 2.0.0"]
    await asyncio.to_thread(fleet.act, "/v1/nodes/node-2/release", "it was found")
    await fleet.until_all_say("hello 2.0.0", within=120)
