"""Who may call what: the table, every route against it, and what selectors leave to see."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edgewise.identity.people_ports import Account
from edgewise.model.roles import INCLUDED, Binding
from edgewise.model.rules import RolloutRules
from edgewise.net.api.everything import description
from edgewise.net.api.records import Wanted
from edgewise.net.routes import Route
from edgewise.protocol.audit import verify_chain
from edgewise.protocol.report import Observation
from edgewise.rollout.fleet import MemberPlan, Proposal
from edgewise.testing.clock import ManualClock
from edgewise.testing.loopback_hub import OPERATOR, LoopbackHub

MATRIX = {
    "GET /v1/api-tokens": "self",
    "POST /v1/api-tokens": "self",
    "DELETE /v1/api-tokens/{id}": "self",
    "GET /v1/artifacts": "viewer",
    "GET /v1/attestations": "viewer, on nodes",
    "GET /v1/audit": "viewer",
    "GET /v1/builds": "viewer",
    "POST /v1/builds": "operator",
    "GET /v1/ca": "viewer",
    "POST /v1/ca/rotate-root": "admin",
    "GET /v1/commits/{revision}": "viewer, on nodes",
    "GET /v1/content/{path*}": "viewer",
    "GET /v1/deltas": "viewer",
    "GET /v1/fleets": "viewer, on nodes",
    "POST /v1/login/renew": "self",
    "POST /v1/logout": "self",
    "GET /v1/nodes": "viewer, on nodes",
    "GET /v1/nodes/{name}": "viewer, on nodes",
    "DELETE /v1/nodes/{name}": "operator, on nodes",
    "GET /v1/nodes/{name}/explain": "viewer, on nodes",
    "POST /v1/nodes/{name}/hold": "operator, on nodes",
    "POST /v1/nodes/{name}/quarantine": "operator, on nodes",
    "POST /v1/nodes/{name}/release": "operator, on nodes",
    "POST /v1/media": "operator",
    "POST /v1/objects": "operator",
    "POST /v1/objects/missing": "operator",
    "PUT /v1/objects/{sha256}": "operator",
    "POST /v1/plan": "viewer",
    "GET /v1/releases/{sha256}": "viewer",
    "GET /v1/rollouts": "viewer, on nodes",
    "GET /v1/rollouts/{id}": "viewer, on nodes",
    "POST /v1/rollouts/{id}/abort": "operator, on nodes",
    "POST /v1/rollouts/{id}/approve": "approver, on nodes",
    "POST /v1/rollouts/{id}/pause": "operator, on nodes",
    "POST /v1/rollouts/{id}/resume": "operator, on nodes",
    "POST /v1/rollouts/{id}/retry": "operator, on nodes",
    "GET /v1/rollouts/{id}/watch": "viewer, on nodes",
    "GET /v1/status": "viewer, on nodes",
    "GET /v1/tokens": "operator",
    "POST /v1/tokens": "operator",
    "DELETE /v1/tokens/{identifier}": "operator",
    "POST /v1/trees/weigh": "viewer",
    "GET /v1/users": "admin",
    "POST /v1/users": "admin",
    "DELETE /v1/users/{name}": "admin",
    "POST /v1/users/{name}/disable": "admin",
    "POST /v1/users/{name}/enable": "admin",
    "POST /v1/users/{name}/groups": "admin",
    "POST /v1/users/{name}/password": "self",
    "GET /v1/whoami": "self",
}
"""Every route that a person may call, and the role it takes. docs/people.md says the same."""

BODIES: dict[str, Any] = {
    "POST /v1/api-tokens": {"role": "viewer"},
    "POST /v1/builds": {"metadata": ""},
    "POST /v1/login/renew": {"csr": "YQ=="},
    "POST /v1/media": {"fleet": "none"},
    "POST /v1/objects": {"contents": {sha256(b"x").hexdigest(): "eA=="}},
    "POST /v1/objects/missing": {"sha256": []},
    "POST /v1/plan": {},
    "POST /v1/tokens": {},
    "POST /v1/users": {"name": "new", "password": "correct horse battery"},
    "POST /v1/users/{name}/groups": {"groups": ["shops"]},
    "POST /v1/users/{name}/password": {"new": "correct horse battery", "old": "x"},
}
BERLIN = {"site": "berlin"}
OLDENBURG = {"site": "oldenburg"}


def needs(route: Route) -> str:
    return f"{route.needs}, on nodes" if route.reach == "nodes" else str(route.needs)


def called(route: Route) -> str:
    return f"{route.method} {route.path}"


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[LoopbackHub]:
    clock = ManualClock()
    hub = await LoopbackHub.start(tmp_path, clock)
    where = {"b1": BERLIN, "b2": BERLIN, "o1": OLDENBURG, "o2": OLDENBURG, "lone": OLDENBURG}
    for name, labels in where.items():
        hub.people.add(name, "node", clock, labels)
    hub.people.add("frankfurt", "relay", clock, BERLIN)
    hub.people.add("hamburg", "relay", clock, OLDENBURG)
    for fleet, names in (("kiosks", ("b1", "b2")), ("mixed", ("o1",)), ("tills", ("o2",))):
        members = {name: MemberPlan("s" + name, "all", name) for name in names}
        if fleet == "mixed":
            hub.people.add("b3", "node", clock, BERLIN)
            members["b3"] = MemberPlan("sb3", "all", "b3")
        await hub.rollouts.propose(
            Proposal(fleet, "ab" * 32, hub.source.seen.revision, RolloutRules(), members),
            actor="test",
        )
        hub.source.seen.releases[fleet] = "ab" * 32
    said = Observation("ab" * 32, phase="Idle", health="Healthy")
    now = clock.now()
    hub.rollouts.observe({"b1": (now, said)}, via="frankfurt")
    hub.rollouts.observe({"o1": (now, said), "o2": (now, said)}, via="hamburg")
    hub.rollouts.observe({"frankfurt": (now, None), "hamburg": (now, None)})
    await hub.register.add(Account("bob", "local", now, password="1:correct horse"))
    yield hub
    await hub.close()


class Caller:
    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def __call__(self, method: str, path: str, body: Any = None, **who: str) -> Any:
        """(status, answer); ``who``: role, selector, fleet."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"x-peer": OPERATOR, **{f"x-{key}": value for key, value in who.items()}}
        async with self.session.request(method, path, data=data, headers=headers) as answer:
            text = await answer.content.read(1 << 20)
            return answer.status, json.loads(text) if "json" in answer.content_type else text


@pytest.fixture
async def call(hub: LoopbackHub) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{hub.server.port}") as session:
        yield Caller(session)


async def rollout_of(call: Caller, fleet: str) -> str:
    _, listed = await call("GET", f"/v1/rollouts?fleet={fleet}")
    return str(listed["items"][0]["id"])


def path_of(route: Route, rollout: str) -> str:
    filled = route.path.replace("{path*}", "tuf/none.json").replace("{sha256}", "ab" * 32)
    filled = filled.replace("{revision}", "main").replace("{identifier}", "t0")
    filled = filled.replace("/rollouts/{id}", f"/rollouts/{rollout}").replace("{id}", "f" * 16)
    return filled.replace("/users/{name}", "/users/bob").replace("{name}", "b1")


async def test_every_route_says_which_role_it_takes_and_the_table_knows_it(
    hub: LoopbackHub,
) -> None:
    forgotten = [called(r) for r in hub.server.routes if ("user" in r.allow) != bool(r.needs)]
    assert forgotten == [], "a route for people says `needs=`, any other says nothing"
    assert {called(r): needs(r) for r in hub.server.routes if r.needs} == MATRIX
    open_to_all = {called(r) for r in hub.server.routes if "anyone" in r.allow and r.mutates}
    assert open_to_all == {
        "POST /v1/join",
        "POST /v1/rejoin",
        "POST /v1/login/password",
        "POST /v1/login/device/poll",
    }
    said = {
        f"{method.upper()} {path}": what.get("x-role")
        for path, methods in description()["paths"].items()
        for method, what in methods.items()
    }
    assert {k for k, v in said.items() if v} == {k.replace("*}", "}") for k in MATRIX}


@pytest.mark.parametrize("role", ["", *INCLUDED])
async def test_each_role_may_call_what_the_table_says_and_nothing_else(
    hub: LoopbackHub, call: Caller, role: Any
) -> None:
    rollout = await rollout_of(call, "kiosks")
    for route in hub.server.routes:
        if route.needs in (None, "self"):
            continue
        body = BODIES.get(called(route), {} if route.method == "POST" else None)
        limited = {"selector": "site=berlin"} if route.reach == "everything" and role else {}
        status, problem = await call(route.method, path_of(route, rollout), body, role=role)
        allowed = bool(role) and route.needs in INCLUDED[role]
        assert (status == 403) is not allowed, (called(route), status, problem)
        if not allowed:
            assert f"this takes the role {route.needs}" in problem["detail"], "a deny names it"
            assert f"role: {route.needs}" in problem["hint"]
        elif limited:
            status, problem = await call(
                route.method, path_of(route, rollout), body, role=role, **limited
            )
            assert status == 403, called(route)
            assert "the whole organisation" in problem["detail"]


async def test_a_viewer_changes_nothing(hub: LoopbackHub, call: Caller) -> None:
    rollout = await rollout_of(call, "kiosks")
    before = hub.journal.last
    for route in hub.server.routes:
        if route.mutates and route.needs not in (None, "self"):
            body = BODIES.get(called(route), {} if route.method == "POST" else None)
            status, _ = await call(route.method, path_of(route, rollout), body, role="viewer")
            assert status == 403, called(route)
    lines = await hub.journal._store.audit(before.sequence if before else 0, 1000)
    assert {line.action for line in lines} == {"refused"}
    assert [one.name for one in hub.people.all() if one.quarantined] == []


async def test_an_approver_approves_but_does_not_operate(hub: LoopbackHub, call: Caller) -> None:
    rollout = await rollout_of(call, "kiosks")
    pause, approve = f"/v1/rollouts/{rollout}/pause", f"/v1/rollouts/{rollout}/approve"
    assert (await call("POST", pause, {}, role="approver"))[0] == 403
    assert (await call("POST", approve, {}, role="operator"))[0] == 403
    assert (await call("POST", approve, {}, role="approver"))[0] == 409, "nothing to approve"
    assert (await call("POST", pause, {}, role="operator"))[0] == 204


async def test_a_selector_holds_on_every_list(hub: LoopbackHub, call: Caller) -> None:
    mine = {"role": "viewer", "selector": "site=berlin"}
    _, nodes = await call("GET", "/v1/nodes", **mine)
    assert [n["name"] for n in nodes["items"]] == ["b1", "b2", "b3"]
    _, proofs = await call("GET", "/v1/attestations", **mine)
    assert [n["name"] for n in proofs["items"]] == ["b1", "b2", "b3"]
    _, fleets = await call("GET", "/v1/fleets", **mine)
    assert [(f["name"], f["nodes"], f["offline"]) for f in fleets["items"]] == [
        ("kiosks", 2, 1),
        ("mixed", 1, 1),
    ]
    _, status = await call("GET", "/v1/status", **mine)
    assert status["fleets"] == fleets["items"]
    assert [(r["name"], r["nodes"]) for r in status["relays"]] == [("frankfurt", 1)]
    assert (status["unplaced"], status["audit_lines"], status["audit_head"]) == (0, 0, "")
    _, rollouts = await call("GET", "/v1/rollouts", **mine)
    assert {(r["fleet"], r["nodes"]) for r in rollouts["items"]} == {("kiosks", 2), ("mixed", 1)}
    _, trace = await call("GET", "/v1/commits/main", **mine)
    assert sorted(trace["releases"]) == ["kiosks", "mixed"]
    assert [n["node"] for n in trace["nodes"]] == ["b1", "b2", "b3"]
    assert {(r["fleet"], r["nodes"]) for r in trace["rollouts"]} == {("kiosks", 2), ("mixed", 1)}


async def test_pages_of_rollouts_hold_only_what_one_may_see(hub: LoopbackHub, call: Caller) -> None:
    mine = {"role": "viewer", "selector": "site=berlin"}
    _, first = await call("GET", "/v1/rollouts?limit=1", **mine)
    _, second = await call("GET", f"/v1/rollouts?limit=1&after={first['next']}", **mine)
    assert {first["items"][0]["fleet"], second["items"][0]["fleet"]} == {"kiosks", "mixed"}
    assert second["next"] is None


async def test_what_one_may_not_see_is_not_there(hub: LoopbackHub, call: Caller) -> None:
    mine = {"role": "operator", "selector": "site=berlin"}
    tills = await rollout_of(call, "tills")
    for method, path in (
        ("GET", "/v1/nodes/o1"),
        ("GET", "/v1/nodes/o1/explain"),
        ("POST", "/v1/nodes/o1/hold"),
        ("POST", "/v1/nodes/o1/quarantine"),
        ("DELETE", "/v1/nodes/o1"),
        ("DELETE", "/v1/nodes/frankfurt"),
        ("GET", f"/v1/rollouts/{tills}"),
        ("GET", f"/v1/rollouts/{tills}/watch"),
        ("POST", f"/v1/rollouts/{tills}/pause"),
    ):
        status, _ = await call(method, path, {} if method == "POST" else None, **mine)
        assert status == 404, path
    assert (await call("GET", "/v1/nodes/b1", **mine))[0] == 200
    assert (await call("POST", "/v1/nodes/b1/hold", {}, **mine))[0] == 204


async def test_a_rollout_moves_by_who_has_the_role_over_all_of_its_fleet(
    hub: LoopbackHub, call: Caller
) -> None:
    kiosks, mixed = await rollout_of(call, "kiosks"), await rollout_of(call, "mixed")
    mine = {"role": "operator", "selector": "site=berlin"}
    assert (await call("POST", f"/v1/rollouts/{kiosks}/pause", {}, **mine))[0] == 204
    status, problem = await call("POST", f"/v1/rollouts/{mixed}/pause", {}, **mine)
    assert status == 403
    assert "all of fleet mixed" in problem["detail"]
    by_name = {"role": "operator", "fleet": "mixed"}
    assert (await call("POST", f"/v1/rollouts/{mixed}/pause", {}, **by_name))[0] == 204
    assert (await call("POST", f"/v1/rollouts/{kiosks}/resume", {}, **by_name))[0] == 404


async def test_counts_and_reasons_of_a_part_of_a_rollout_tell_nothing_of_the_rest(
    hub: LoopbackHub, call: Caller
) -> None:
    mixed = await rollout_of(call, "mixed")
    await call("POST", f"/v1/rollouts/{mixed}/pause", {"reason": "because of o1"})
    _, whole = await call("GET", f"/v1/rollouts/{mixed}")
    assert "because of o1" in json.dumps(whole), "or this test shows nothing"
    _, part = await call("GET", f"/v1/rollouts/{mixed}", role="viewer", selector="site=berlin")
    assert "o1" not in json.dumps(part).replace(mixed, "")
    assert [stage["total"] for stage in part["stages"]] == [1]


async def test_labels_of_the_repo_win_over_those_a_machine_joined_with(
    hub: LoopbackHub, call: Caller
) -> None:
    await hub.records.put({"o1": Wanted("eu", "mixed", 0, {"site": "berlin"})})
    _, nodes = await call("GET", "/v1/nodes", role="viewer", selector="site=berlin")
    assert "o1" in [n["name"] for n in nodes["items"]]


async def test_every_call_that_changes_something_is_in_the_audit_log(
    hub: LoopbackHub, call: Caller
) -> None:
    """Done or not: who, what, from where, and how it ended."""
    rollout = await rollout_of(call, "kiosks")
    for route in hub.server.routes:
        if not route.mutates or route.needs is None:
            continue
        before = hub.journal.last.sequence if hub.journal.last else 0
        hub.clock.advance(timedelta(hours=2))  # the same refusal is one line an hour
        body = BODIES.get(called(route), {} if route.method == "POST" else None)
        status, _ = await call(route.method, path_of(route, rollout), body)
        lines = await hub.journal._store.audit(before, 100)
        if called(route) in ("PUT /v1/objects/{sha256}", "POST /v1/logout") and status == 204:
            continue  # the object was there; the administrator has no session to end
        assert lines, (called(route), status)
        assert lines[-1].actor == OPERATOR, called(route)
        assert lines[-1].address == "127.0.0.1"
        done = lines[-1].action not in ("refused", "failed")
        assert done == (status < 300), (called(route), status, lines)
    assert verify_chain(await hub.journal._store.audit(0, 10_000)) is None


async def test_a_stream_ends_when_its_reader_may_see_less(hub: LoopbackHub) -> None:
    rollout = (await hub.rollouts.rollouts("kiosks"))[0].id
    now = hub.clock.now()
    await hub.register.bind((Binding("a", "viewer", ("bob",)),))
    session = await hub.register.start_session("bob", "ab", now + timedelta(days=1), "x")
    headers = {"x-peer": "spiffe://hub.acme/user/bob", "x-serial": "ab"}
    url = f"http://127.0.0.1:{hub.server.port}/v1/rollouts/{rollout}/watch"
    async with aiohttp.ClientSession() as http, http.get(url, headers=headers) as answer:
        assert (await answer.content.readline()).startswith(b"data: ")
        await answer.content.readline()
        await hub.register.end_sessions([session.id])
        await hub.rollouts.command(rollout, "pause", actor="test")
        await hub.clock.run_for(timedelta(seconds=1))
        assert await answer.content.read() == b""
