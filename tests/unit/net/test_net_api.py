"""The operator's API of a whole hub, spoken over a loopback port."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import zstandard
from yarl import URL

from edgewise.model.rules import RolloutRules
from edgewise.net.api.commits import fate_of
from edgewise.net.api.journal import JournaledLog
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout.fleet import MemberPlan, Proposal
from edgewise.testing.clock import ManualClock
from edgewise.testing.loopback_hub import OPERATOR, LoopbackHub

RELEASE = "ab" * 32


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[LoopbackHub]:
    clock = ManualClock()
    hub = await LoopbackHub.start(tmp_path, clock)
    for name in ("kiosk-1", "kiosk-2", "kiosk-3"):
        hub.people.add(name, "node", clock)
    hub.people.add("frankfurt", "relay", clock)
    members = {name: MemberPlan("s" + name, "all", name) for name in ("kiosk-1", "kiosk-2")}
    proposal = Proposal("kiosks", RELEASE, "main@sha1:" + "1" * 40, RolloutRules(), members)
    await hub.rollouts.propose(proposal, actor="test")
    yield hub
    await hub.close()


class Operator:
    """Calls with a name."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(
        self, method: str, path: str, body: Any = None, peer: str = OPERATOR, **more: Any
    ) -> tuple[int, Any]:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"x-peer": peer, **more.pop("headers", {})}
        async with self.session.request(
            method, path, data=data or more.pop("data", None), headers=headers, **more
        ) as answer:
            text = await answer.read()
            is_json = "json" in answer.content_type
            return answer.status, json.loads(text) if is_json and text else text


@pytest.fixture
async def call(hub: LoopbackHub) -> AsyncIterator[Operator]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{hub.server.port}") as session:
        yield Operator(session)


async def test_status_shows_fleets_relays_and_the_head_of_the_audit_log(
    hub: LoopbackHub, call: Operator
) -> None:
    await hub.journal.note("ada", "test", "x")
    code, status = await call("GET", "/v1/status")
    assert code == 200
    assert [fleet["name"] for fleet in status["fleets"]] == ["kiosks"]
    assert [relay["name"] for relay in status["relays"]] == ["frankfurt"]
    assert status["unplaced"] == 1
    assert (status["audit_lines"], len(status["audit_head"])) == (1, 64)


async def test_nodes_are_listed_by_selector_fleet_and_page(
    hub: LoopbackHub, call: Operator
) -> None:
    _, first = await call("GET", "/v1/nodes?limit=2")
    assert [node["name"] for node in first["items"]] == ["kiosk-1", "kiosk-2"]
    _, second = await call("GET", f"/v1/nodes?limit=2&after={first['next']}")
    assert [node["name"] for node in second["items"]] == ["kiosk-3"]
    assert second["next"] is None
    _, placed = await call("GET", "/v1/nodes?fleet=kiosks")
    assert len(placed["items"]) == 2
    _, none = await call("GET", "/v1/nodes?selector=site%3Dberlin")
    assert none["items"] == []
    code, problem = await call("GET", "/v1/nodes?selector=%3D%3D")
    assert (code, problem["exit_code"]) == (400, 2)


async def test_a_node_is_shown_with_what_it_said_last(hub: LoopbackHub, call: Operator) -> None:
    said = Observation(running="old", health="Degraded", platform="linux/arm64")
    hub.rollouts.observe({"kiosk-1": (hub.clock.now(), said)}, via="frankfurt")
    code, node = await call("GET", "/v1/nodes/kiosk-1")
    assert code == 200
    assert node["summary"]["health"] == "Degraded"
    assert node["summary"]["online"] is True
    assert (node["via"], node["platform"]) == ("frankfurt", "linux/arm64")
    code, told = await call("GET", "/v1/nodes/kiosk-1/explain")
    assert "kiosks" in told["lines"][0]
    assert (await call("GET", "/v1/nodes/nobody"))[0] == 404


async def test_a_held_node_stays_and_the_audit_log_says_who_held_it(
    hub: LoopbackHub, call: Operator
) -> None:
    assert (await call("POST", "/v1/nodes/kiosk-1/hold", {"reason": "on show"}))[0] == 204
    _, node = await call("GET", "/v1/nodes/kiosk-1")
    assert node["summary"]["held"] is True
    assert (await call("POST", "/v1/nodes/kiosk-1/release", {}))[0] == 204
    code, problem = await call("POST", "/v1/nodes/kiosk-3/hold", {})
    assert (code, problem["type"].rsplit("/", 1)[1]) == (409, "Conflict")
    _, audit = await call("GET", "/v1/audit")
    assert [(line["actor"], line["action"]) for line in audit["items"]] == [
        (OPERATOR, "node.hold"),
        (OPERATOR, "node.release"),
        (OPERATOR, "failed"),
    ]


async def test_a_quarantined_and_a_forgotten_node_are_refused(
    hub: LoopbackHub, call: Operator
) -> None:
    node = "spiffe://eu.acme/node/kiosk-1"
    assert (await call("POST", "/v1/nodes/kiosk-1/quarantine", {"reason": "stolen"}))[0] == 204
    code, problem = await call("POST", "/v1/sync", {}, peer=node)
    assert (code, "stolen" in problem["detail"]) == (403, True)
    assert (await call("POST", "/v1/nodes/kiosk-1/release", {}))[0] == 204
    assert (await call("DELETE", "/v1/nodes/kiosk-1"))[0] == 204
    assert (await call("POST", "/v1/sync", {}, peer=node))[0] == 403
    assert hub.changed == ["kiosk-1"] * 3


async def test_a_rollout_is_listed_watched_and_commanded(hub: LoopbackHub, call: Operator) -> None:
    await hub.rollouts.decide()
    _, page = await call("GET", "/v1/rollouts?fleet=kiosks")
    [summary] = page["items"]
    path = f"/v1/rollouts/{summary['id']}"
    assert (await call("GET", path))[1]["summary"]["release"] == RELEASE
    watching = asyncio.create_task(call("GET", f"{path}/watch"))
    await asyncio.sleep(0.05)
    assert (await call("POST", f"{path}/pause", {"reason": "lunch"}))[0] == 204
    assert (await call("GET", path))[1]["summary"]["state"] == "Paused"
    assert (await call("POST", f"{path}/abort", {}))[0] == 204
    clock = hub.clock
    assert isinstance(clock, ManualClock)
    for _ in range(200):
        await hub.rollouts.decide()
        await clock.run_for(hub.rollouts._pace.coalesce)
        await asyncio.sleep(0.01)
        if watching.done():
            break
    code, events = await watching
    details = [
        json.loads(line[6:]) for line in events.decode().split("\n\n") if line[:5] == "data:"
    ]
    assert code == 200
    assert details[-1]["summary"]["state"] in ("Cancelled", "RolledBack", "Failed")
    assert (await call("POST", f"{path}/pause", {}))[0] == 409
    assert (await call("POST", "/v1/rollouts/none/pause", {}))[0] == 404


async def test_an_object_is_uploaded_verified_and_fetched_compressed(call: Operator) -> None:
    data = b"the program" * 1000
    name = sha256(data).hexdigest()
    wrong = "0" * 64
    _, missing = await call("POST", "/v1/objects/missing", {"sha256": [name]})
    assert missing == {"sha256": [name]}
    assert (await call("PUT", f"/v1/objects/{wrong}", data=data))[0] == 422
    assert (await call("PUT", f"/v1/objects/{name}", data=data))[0] == 204
    _, missing = await call("POST", "/v1/objects/missing", {"sha256": [name]})
    assert missing == {"sha256": []}
    code, packed = await call("GET", f"/v1/content/objects/{name[:2]}/{name[2:]}.zst")
    assert code == 200
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == data
    assert (await call("GET", f"/v1/releases/{name}"))[0] == 404
    assert (await call("PUT", "/v1/objects/short", data=data))[0] == 400


async def test_small_objects_are_uploaded_together_all_or_none(
    hub: LoopbackHub, call: Operator
) -> None:
    texts = ["one", "two", "three"]
    contents = {sha256(t.encode()).hexdigest(): b64encode(t.encode()).decode() for t in texts}
    wrong = {**contents, "0" * 64: "eA=="}
    assert (await call("POST", "/v1/objects", {"contents": wrong}))[0] == 422
    _, missing = await call("POST", "/v1/objects/missing", {"sha256": list(contents)})
    assert sorted(missing["sha256"]) == sorted(contents)
    assert (await call("POST", "/v1/objects", {"contents": {"short": "eA=="}}))[0] == 400
    for _ in range(2):
        assert (await call("POST", "/v1/objects", {"contents": contents}))[0] == 204
    _, missing = await call("POST", "/v1/objects/missing", {"sha256": list(contents)})
    assert missing == {"sha256": []}
    _, audit = await call("GET", "/v1/audit")
    lines = [line for line in audit["items"] if line["action"] == "objects.put"]
    assert [line["subject"] for line in lines] == ["3 objects"], "the second time none was new"
    assert lines[0]["detail"].startswith("11 bytes, names ")


@pytest.mark.parametrize(
    "path",
    ["tuf/..%2F..%2Fkeys%2Fonline.pem", "../keys/online.pem", "tuf/%2e%2e/x", "keys/online.pem",
     "tuf/.hidden", "objects", "tuf//timestamp.json", "tuf/x%00y"],
)  # fmt: skip
async def test_nothing_outside_the_content_can_be_fetched(call: Operator, path: str) -> None:
    url = URL(f"/v1/content/{path}", encoded=True)
    async with call.session.get(url, headers={"x-peer": OPERATOR}) as answer:
        assert answer.status == 404


async def test_only_the_timestamp_may_be_asked_for_again(call: Operator) -> None:
    headers = {"x-peer": OPERATOR}
    async with call.session.get("/v1/content/tuf/timestamp.json", headers=headers) as fresh:
        assert fresh.headers["Cache-Control"] == "no-cache"
    async with call.session.get("/v1/content/tuf/1.root.json", headers=headers) as fixed:
        assert "immutable" in fixed.headers["Cache-Control"]
        assert fixed.content_type == "application/json"


async def test_a_webhook_with_the_secret_wakes_the_source_and_without_it_does_not(
    hub: LoopbackHub, call: Operator
) -> None:
    body = {"ref": "refs/heads/main", "after": "1" * 40}
    good = {"x-gitlab-token": "hush", "x-gitlab-event": "Push Hook"}
    assert (await call("POST", "/v1/hooks/gitlab", body, peer="", headers=good))[0] == 202
    bad = {**good, "x-gitlab-token": "guess"}
    assert (await call("POST", "/v1/hooks/gitlab", body, peer="", headers=bad))[0] == 422
    assert hub.source.woken == 1


async def test_tokens_are_made_listed_and_revoked(call: Operator) -> None:
    code, token = await call("POST", "/v1/tokens", {"region": "eu"})
    assert (code, token["token"]) == (200, "ew1.secret")
    _, page = await call("GET", "/v1/tokens")
    assert "secret" not in json.dumps(page)
    assert (await call("DELETE", f"/v1/tokens/{token['identifier']}"))[0] == 204
    assert (await call("DELETE", f"/v1/tokens/{token['identifier']}"))[0] == 404


async def test_a_held_commit_is_approved_through_the_source(
    hub: LoopbackHub, call: Operator
) -> None:
    from edgewise.protocol.api import HeldChange

    await hub.rollouts.hold_change(HeldChange("h1", "main@sha1:2", "deletes 40 nodes"))
    assert (await call("POST", "/v1/rollouts/h1/approve", {"reason": "yes"}))[0] == 204
    assert hub.source.approved == ["h1"]


async def test_a_commit_is_traced_and_an_unknown_one_is_not_found(call: Operator) -> None:
    code, trace = await call("GET", "/v1/commits/main")
    assert (code, trace["author"]) == (200, "ada")
    assert (await call("GET", "/v1/commits/nope"))[0] == 404
    assert (await call("GET", "/v1/commits/--exec"))[0] == 400


async def test_nodes_and_strangers_may_not_do_what_operators_do(call: Operator) -> None:
    for peer, expected in (("spiffe://eu.acme/node/kiosk-1", 403), ("", 401)):
        for method, path in (
            ("GET", "/v1/status"),
            ("DELETE", "/v1/nodes/kiosk-1"),
            ("POST", "/v1/tokens"),
            ("GET", "/v1/audit"),
            ("POST", "/v1/builds"),
            ("PUT", "/v1/objects/" + "0" * 64),
        ):
            assert (await call(method, path, {}, peer=peer))[0] == expected
    assert (await call("GET", "/v1/health", peer=""))[0] == 200


async def test_a_refused_call_is_one_audit_line_an_hour_however_often_it_comes(
    hub: LoopbackHub, call: Operator
) -> None:
    for _ in range(3):
        await call("GET", "/v1/status", peer="spiffe://eu.acme/node/kiosk-1")
        await call("GET", "/v1/status", peer="")
    _, audit = await call("GET", "/v1/audit")
    [line] = audit["items"]
    assert (line["action"], line["subject"]) == ("refused", "GET /v1/status")
    assert line["actor"] == "spiffe://eu.acme/node/kiosk-1"


async def test_decisions_of_the_engine_are_audit_lines(hub: LoopbackHub, call: Operator) -> None:
    log = JournaledLog(hub.log, hub.journal)
    writing = asyncio.create_task(log.run())
    log.decision("rollout", because="80% of canary succeeded", id="r1", state="Baking")
    await asyncio.sleep(0.01)
    writing.cancel()
    _, audit = await call("GET", "/v1/audit")
    [line] = audit["items"]
    assert (line["action"], line["subject"]) == ("decision.rollout", "r1")
    assert "80%" in line["detail"]


NOW = ManualClock().now()


def receipt(outcome: Any) -> Receipt:
    return Receipt("n", 1, outcome, "new", "new", "r", NOW)


@pytest.mark.parametrize(
    ("running", "target", "told", "fate"),
    [
        ("new", "new", receipt("Succeeded"), "Running"),
        ("new", "new", None, "Unchanged"),
        ("old", "new", None, "Pending"),
        ("old", "new", receipt("Failed"), "Failed"),
        ("old", "old", receipt("Failed"), "Failed"),
        ("newer", "newer", receipt("Succeeded"), "Replaced"),
        ("old", "old", receipt("RolledBack"), "RolledBack"),
        ("old", "old", None, "Pending"),
    ],
)
def test_a_commits_fate_on_a_node_is_told_in_a_word(
    running: str, target: str, told: Receipt | None, fate: str
) -> None:
    assert fate_of("new", running, target, told) == fate
