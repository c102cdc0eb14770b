"""Every verb that asks the hub: for people, for programs, and when it goes wrong."""

import asyncio
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.backends.git.repository import GitRepository
from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NotFound,
    TryLater,
    Untrusted,
)
from edgewise.net.git_http import GitHttp, Push, Pusher
from edgewise.protocol import api
from edgewise.protocol.audit import next_line
from edgewise.protocol.content import PartRef, Release
from edgewise.protocol.report import AppStatus, Refused, Traffic, sum_of
from edgewise.testing.git import WorkTree

NOW = datetime.now(UTC)
REV = "main@sha1:" + "ab" * 20
SUMMARY = api.RolloutSummary(
    "r1", "pos", REV, "1" * 64, "0" * 64, "Progressing", "stage canary", NOW, None, 10, 3, 0
)
STAGE = api.StageStatus("canary", "Running", 4, {"Succeeded": 3, "Downloading": 1})
DETAIL = api.RolloutDetail(
    SUMMARY, (STAGE,), (api.Transition(NOW, "Progressing", "hub", "canary may start"),)
)
PROBLEM = api.SourceProblem("fleets/pos.yaml", 7, 3, "no app 'helo'", "did you mean hello?")
NODE = api.NodeSummary(
    "pos-1", "pos", "eu", {"ring": "[bold]"}, "Synced", "Healthy", "Idle", True, NOW, "1" * 64,
    "1" * 64,
)  # fmt: skip
RECEIPT = api.ReceiptLine("pos-1", 4, "Succeeded", "1" * 64, "r1", NOW, "", 1200, 56_000_000, 3.2)
FELL = Traffic({"delta": 900}, {"delta": 900, "whole": 300}, 3, (
    Refused("ab" * 32, "part 1 of a delta is not what its head says", 900),
))  # fmt: skip
DEAR = msgspec.structs.replace(RECEIPT, traffic=FELL)
STATUS = api.HubStatus(
    "acme", "0.1", "hub",
    api.SourceStatus(REV, REV, (api.Condition("Stalled", True, "Bad", "no"),), (PROBLEM,)),
    (api.FleetStatus("pos", 10, 3, 10, 0, "1" * 64, "", REV, "OutOfSync", "Progressing", "r1",
                     "Progressing"),),
    (api.RelayStatus("east", "eu", False, NOW - timedelta(hours=2), 5),),
    (api.HeldChange("h1", REV, "would remove 40 nodes"),),
)  # fmt: skip
PLAN = api.Plan(
    REV, REV,
    (api.FleetPlan("pos", "0" * 64, "1" * 64, 10, 4,
                   (api.FileChange("app/hello", "changed", 4, "pos-1", "-a\n+b", 2048),),
                   (api.StagePlan("canary", 4, ("pos-1",), "100% then 5m"),), 8192),),
)  # fmt: skip
AUDIT = next_line(None, NOW, "ada", "node.hold", "pos-1")
AUDIT2 = next_line(AUDIT, NOW, "ada", "node.release", "pos-1")
TRACE = api.Trace(
    REV, "Ada", "Give", NOW, True, (), {"pos": "1" * 64}, (SUMMARY,),
    (api.TraceNode("pos-1", "pos", "Running", RECEIPT),), 1200, 56_000_000,
)  # fmt: skip
TRACE_DEAR = msgspec.structs.replace(
    TRACE, nodes=(api.TraceNode("pos-1", "pos", "Running", DEAR),), traffic=sum_of([FELL] * 3)
)
TOKEN = api.TokenCreated("t1", "ew1.secret", NOW)

VERBS: list[tuple[list[str], str, Any, str]] = [
    (["status"], "GET /v1/status", STATUS, "OutOfSync"),
    (["plan"], "POST /v1/plan", PLAN, "4 of 10 nodes change, about 8.2 kB travel"),
    (["rollout", "ls"], "GET /v1/rollouts", api.Page((SUMMARY,)), "main@ababababab"),
    (["rollout", "show", "r1"], "GET /v1/rollouts/r1", DETAIL, "canary may start"),
    (["node", "ls"], "GET /v1/nodes", api.Page((NODE,)), "ring=[bold]"),
    (["node", "show", "pos-1"], "GET /v1/nodes/pos-1",
     api.NodeDetail(NODE, "linux/amd64", "0.1", NOW, "east", (AppStatus("hello", "Healthy"),),
                    receipts=(RECEIPT,)), "1.2 kB of 56.0 MB"),
    (["node", "explain", "pos-1"], "GET /v1/nodes/pos-1/explain",
     api.Explanation("pos-1", ("fleet pos selects it",)), "1. fleet pos selects it"),
    (["node", "token", "--label", "ring=canary"], "POST /v1/tokens", TOKEN, "ew1.secret\n"),
    (["node", "tokens"], "GET /v1/tokens",
     api.Page((api.TokenLine("t1", "node", {}, "eu", NOW, 3, ("pos-1",)),)), "1/3"),
    (["artifact", "ls"], "GET /v1/artifacts",
     api.Page((api.ArtifactLine("hello", "1.0", ("linux/amd64",), 5_000_000),)), "5.0 MB"),
    (["release", "show", "1" * 64], "GET /v1/releases/" + "1" * 64,
     Release("pos", (PartRef("app", "hello", ("ring",), {"canary": "2" * 64}),)), "canary"),
    (["trace", "main"], "GET /v1/commits/main", TRACE, "1.2 kB instead of 56.0 MB"),
    (["trace", "main"], "GET /v1/commits/main", TRACE_DEAR,
     "refused by 3 nodes: delta abababababab, 2.7 kB came of it: part 1 of a delta is not what"),
    (["node", "show", "pos-1"], "GET /v1/nodes/pos-1",
     api.NodeDetail(NODE, "linux/amd64", "0.1", NOW, "east", (), receipts=(DEAR,)),
     "receipt 4 refused: delta abababababab, 900 B came of it: part 1 of a delta is not what"),
    (["audit"], "GET /v1/audit", api.Page((AUDIT, AUDIT2)), "node.hold"),
    (["audit", "verify"], "GET /v1/audit", api.Page((AUDIT, AUDIT2)), "verified: 2 lines"),
    (["rollout", "approve", "r1"], "POST /v1/rollouts/r1/approve", None, "approve: r1"),
    (["rollout", "pause", "r1"], "POST /v1/rollouts/r1/pause", None, "pause: r1"),
    (["rollout", "resume", "r1"], "POST /v1/rollouts/r1/resume", None, "resume: r1"),
    (["rollout", "abort", "r1"], "POST /v1/rollouts/r1/abort", None, "abort: r1"),
    (["rollout", "retry", "r1"], "POST /v1/rollouts/r1/retry", None, "retry: r1"),
    (["node", "hold", "pos-1"], "POST /v1/nodes/pos-1/hold", None, "hold: pos-1"),
    (["node", "release", "pos-1"], "POST /v1/nodes/pos-1/release", None, "release: pos-1"),
    (["node", "quarantine", "pos-1"], "POST /v1/nodes/pos-1/quarantine", None, "quarantine"),
    (["node", "forget", "pos-1", "--yes"], "DELETE /v1/nodes/pos-1", None, "forgotten: pos-1"),
    (["node", "revoke", "t1"], "DELETE /v1/tokens/t1", None, "revoked: t1"),
]  # fmt: skip
NAMED = pytest.mark.parametrize(
    ("line", "call", "value", "shows"), VERBS, ids=[" ".join(one[0][:2]) for one in VERBS]
)


@NAMED
def test_a_verb_shows_people_what_the_hub_says(
    hub: Any, cli: Any, line: list[str], call: str, value: Any, shows: str
) -> None:
    hub.answers[call] = value
    done = cli(*line)
    assert done.code == 0, done.err
    assert shows in done.out
    assert hub.calls[0][0].split("?")[0] == call


@NAMED
def test_a_verb_gives_programs_the_structures_of_the_api(
    hub: Any, cli: Any, line: list[str], call: str, value: Any, shows: str
) -> None:
    import msgspec

    hub.answers[call] = value
    done = cli(*line, "--output", "json")
    assert done.code == 0, done.err
    if line == ["audit", "verify"]:
        assert done.json == {"lines": 2, "head": f"2:{AUDIT2.hash}"}
    elif value is None:
        assert list(done.json) == ["done"]
    else:
        assert done.json == msgspec.json.decode(msgspec.json.encode(value))


ERRORS: list[tuple[EdgewiseError, int]] = [
    (BadUsage("the selector is odd", hint="write key=value"), 2),
    (NotFound("there is no such thing", hint="look at ls"), 2),
    (TryLater("the hub is starting", wait=timedelta(seconds=1)), 3),
    (Forbidden("you may not", hint="ask an admin"), 4),
    (Conflict("it has ended", hint="look at show"), 4),
    (Untrusted("the key is unknown"), 5),
]


@pytest.mark.parametrize("verb", VERBS, ids=[" ".join(one[0][:2]) for one in VERBS])
@pytest.mark.parametrize("error", ERRORS, ids=[type(e).__name__ for e, _ in ERRORS])
def test_a_refusal_of_the_hub_is_said_with_its_hint_and_exit_code(
    hub: Any, cli: Any, verb: tuple[list[str], str, Any, str], error: tuple[EdgewiseError, int]
) -> None:
    hub.answers[verb[1]] = error[0]
    done = cli(*verb[0])
    assert done.code == error[1]
    assert str(error[0]) in done.err
    assert error[0].hint in done.err
    assert "Traceback" not in done.err + done.out


def test_a_hub_that_is_away_is_exit_code_3_and_says_where_it_was_sought(
    hub: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEWISE_CONTEXT", str(hub.context(url="https://127.0.0.1:9")))
    done = cli("status")
    assert done.code == 3
    assert "cannot reach the hub at https://127.0.0.1:9" in done.err


def test_a_server_that_is_not_our_hub_is_not_asked_anything(
    hub: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hub.context(hub_id="spiffe://hub.acme/node/evil")
    monkeypatch.setenv("EDGEWISE_CONTEXT", str(path))
    done = cli("status")
    assert done.code == 5
    assert "not spiffe://hub.acme/node/evil" in done.err
    assert hub.calls == []


def test_without_a_context_the_next_move_is_told(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("EDGEWISE_CONTEXT", raising=False)
    done = cli("status")
    assert done.code == 2
    assert "edgewise up" in done.err


def test_a_plan_with_mistakes_shows_file_and_line_and_is_exit_code_4(hub: Any, cli: Any) -> None:
    hub.answers["POST /v1/plan"] = api.Plan("", REV, (), (PROBLEM,))
    done = cli("plan", "--head", "feature")
    assert done.code == 4
    assert "fleets/pos.yaml:7:3: no app 'helo' (did you mean hello?)" in done.err
    assert hub.calls == [("POST /v1/plan", {"base": "", "head": "feature"})]


def test_options_reach_the_hub(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/nodes"] = api.Page(())
    hub.answers["POST /v1/tokens"] = TOKEN
    assert "No node" in cli("node", "ls", "-l", "region=eu", "--fleet", "pos").out
    cli("node", "token", "--ttl", "2d", "--uses", "5", "--region", "eu", "--relay")
    assert hub.calls[0][0] == "GET /v1/nodes?fleet=pos&limit=1000&selector=region=eu"
    assert hub.calls[1][1] == {
        "role": "relay", "labels": {}, "region": "eu", "ttl_s": 172800.0, "uses": 5, "via": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    "line", [["node", "token", "--ttl", "soon"], ["node", "token", "--label", "x"], ["nope"]]
)
def test_wrong_usage_is_exit_code_2(hub: Any, cli: Any, line: list[str]) -> None:
    assert cli(*line).code == 2
    assert hub.calls == []


def test_forgetting_a_node_asks_first(hub: Any, cli: Any) -> None:
    assert cli("node", "forget", "pos-1", stdin="n\n").code == 2
    assert hub.calls == []


def test_pages_are_followed_to_the_last(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/rollouts"] = api.Page((SUMMARY,) * 1000, "r1")
    done = cli("rollout", "ls", "--limit", "2000", "-o", "json")
    assert len(done.json["items"]) == 2000
    assert [call for call, _ in hub.calls] == [
        "GET /v1/rollouts?limit=1000", "GET /v1/rollouts?after=r1&limit=1000",
    ]  # fmt: skip


def ended(state: api.RolloutState, *failures: api.NodeProgress) -> api.RolloutDetail:
    import msgspec

    summary = msgspec.structs.replace(SUMMARY, state=state, reason="because")
    return api.RolloutDetail(summary, (STAGE,), (), failures)


def test_watching_prints_each_change_once_and_ends_with_the_rollout(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/rollouts/r1"] = DETAIL
    hub.answers["GET /v1/rollouts/r1/watch"] = [DETAIL, DETAIL, ended("Succeeded")]
    done = cli("rollout", "watch", "r1")
    assert done.code == 0, done.err
    assert done.out.splitlines() == [
        "pos main@ababababab Progressing stage canary",
        "  stage canary Running of 4: Downloading 1 Succeeded 3",
        "pos main@ababababab Succeeded because",
    ]


@pytest.mark.parametrize(("state", "code"), [("RolledBack", 4), ("Failed", 4), ("Superseded", 3)])
def test_watching_a_rollout_that_does_not_succeed_is_no_success(
    hub: Any, cli: Any, state: api.RolloutState, code: int
) -> None:
    hub.answers["GET /v1/rollouts/r1"] = DETAIL
    failure = api.NodeProgress("pos-1", "canary", "Failed", "probe failed")
    hub.answers["GET /v1/rollouts/r1/watch"] = [ended(state, failure)]
    done = cli("rollout", "watch", "r1", "-o", "json")
    assert done.code == code
    assert len(done.out.splitlines()) == 2  # one document a line


def test_a_fleet_stands_for_its_newest_rollout(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/rollouts"] = api.Page((SUMMARY,))
    hub.answers["POST /v1/rollouts/r1/pause"] = None
    assert cli("rollout", "pause", "pos", "--reason", "lunch").out == "pause: r1\n"
    assert hub.calls[-1] == ("POST /v1/rollouts/r1/pause", {"reason": "lunch"})


def test_a_changed_line_breaks_the_audit_chain_where_it_was_changed(hub: Any, cli: Any) -> None:
    import msgspec

    forged = msgspec.structs.replace(AUDIT, actor="eve")
    hub.answers["GET /v1/audit"] = api.Page((forged, AUDIT2))
    done = cli("audit", "verify")
    assert done.code == 5
    assert "broken at line 1" in done.err


def test_a_push_outside_a_clone_says_where_to_run_it(hub: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("push", "--repo", str(tmp_path))
    assert done.code == 2
    assert "clone of the fleet repo" in done.err


@pytest.fixture
def fleet_repo(hub: Any, tmp_path: Path) -> Path:
    """The hub's own repository, which answers every push with one line."""
    repository = GitRepository(tmp_path / "fleet.git")
    asyncio.run(repository.ensure())

    async def authorise(request: Any, writes: bool) -> Pusher:
        if request.peer.role != "user":
            raise Forbidden(f"{request.peer} may not push")
        return Pusher(request.peer.id.name, governs=True)

    async def pushed(push: Push) -> tuple[str, ...]:
        return (f"accepted from {push.user}",)

    hub.git = GitHttp(repository.directory, authorise, pushed)
    return repository.directory


def test_a_push_goes_through_with_the_certificates_of_the_context(
    hub: Any, cli: Any, fleet_repo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    work = WorkTree(tmp_path / "work")
    commit = work.commit({"a.yaml": "a: 1\n"})
    done = cli("push", "--repo", str(work.path))
    said = capfd.readouterr().err
    assert done.code == 0, said
    assert "remote: edgewise: accepted from ada" in said
    assert done.out == f"pushed: main@{commit[:10]}\n"
    assert (fleet_repo / "refs/heads/main").read_text().strip() == commit


def test_a_push_that_git_refuses_is_exit_code_4(
    hub: Any, cli: Any, fleet_repo: Path, tmp_path: Path
) -> None:
    work = WorkTree(tmp_path / "work")
    work.commit({"a.yaml": "a: 1\n"})
    assert cli("push", "--repo", str(work.path)).code == 0
    work.git("commit", "--amend", "--quiet", "-m", "rewritten")
    done = cli("push", "--repo", str(work.path))
    assert done.code == 4
    assert "git push to https://127.0.0.1" in done.err


def test_a_push_whose_commit_has_mistakes_is_stored_and_exit_code_4(
    hub: Any, cli: Any, fleet_repo: Path, tmp_path: Path
) -> None:
    import msgspec

    work = WorkTree(tmp_path / "work")
    commit = work.commit({"a.yaml": "a: 1\n"})
    bad = msgspec.structs.replace(TRACE, compiled=False, problems=(PROBLEM,), rollouts=())
    hub.answers[f"GET /v1/commits/{commit}"] = bad
    done = cli("push", "--repo", str(work.path))
    assert done.code == 4
    assert "stored but not acted on" in done.err
    assert "pushed" not in done.out


def test_a_push_that_waits_follows_the_rollout_or_shows_the_mistakes(
    hub: Any, cli: Any, fleet_repo: Path, tmp_path: Path
) -> None:
    import msgspec

    work = WorkTree(tmp_path / "work")
    commit = work.commit({"a.yaml": "a: 1\n"})
    hub.answers[f"GET /v1/commits/{commit}"] = TRACE
    hub.answers["GET /v1/rollouts/r1"] = ended("Succeeded")
    done = cli("push", "--repo", str(work.path), "--wait")
    assert done.code == 0, done.err
    assert "Succeeded because" in done.out
    bad = msgspec.structs.replace(TRACE, compiled=False, problems=(PROBLEM,), rollouts=())
    hub.answers[f"GET /v1/commits/{commit}"] = bad
    done = cli("push", "--repo", str(work.path), "--wait")
    assert done.code == 4
    assert "fleets/pos.yaml:7:3" in done.err


def test_the_doctor_names_what_is_wrong_and_the_next_move(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/health"] = {"status": "ok"}
    hub.answers["GET /v1/status"] = STATUS
    base = "GET /v1/content/tuf/"
    soon, gone = NOW + timedelta(hours=5), NOW - timedelta(days=1)

    def signed(end: datetime, **more: Any) -> Any:
        return {"signed": {"expires": end.isoformat(), **more}}

    hub.answers |= {
        f"{base}timestamp.json": signed(soon, meta={"snapshot.json": {"version": 3}}),
        f"{base}3.snapshot.json": signed(soon, meta={"builds.json": {"version": 2}}),
        f"{base}2.builds.json": signed(gone),
        f"{base}1.root.json": signed(soon),
    }
    done = cli("doctor", "-o", "json")
    found = {one["check"]: one for one in done.json}
    assert done.code == 4
    assert found["git"]["level"] == "ok"
    assert found["time"]["level"] == "ok"
    assert found["your certificate"]["level"] == "ok"
    assert found["trust"]["level"] == "warning"
    assert found["source"]["level"] == "failed"
    assert found["relay east"]["level"] == "failed"
    assert found["tuf timestamp"]["level"] == "ok"
    assert found["tuf builds"]["level"] == "failed"
    assert "builder key" in found["tuf builds"]["next"]
    assert found["tuf root"]["level"] == "warning"
    assert all(one["next"] for one in done.json if one["level"] != "ok")
    assert "edgewise status" in cli("doctor").out


def test_an_empty_name_and_a_context_that_is_none_are_told_apart_from_attacks(
    hub: Any, cli: Any, tmp_path: Path
) -> None:
    done = cli("trace", "")
    assert (done.code, "names nothing" in done.err) == (2, True)
    (tmp_path / "context.json").write_text("-----BEGIN KEY-----")
    done = cli("--context", str(tmp_path / "context.json"), "status")
    assert done.code == 2
    assert "is no hub context" in done.err


@pytest.mark.parametrize("verb", ["push", "fetch", "status"])
def test_a_hub_that_hangs_is_told_after_seconds(
    hub: Any, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr("edgewise.cli.client._CONNECT_S", 0.05)
    WorkTree(tmp_path / "clone").commit({"edgewise.yaml": "a: 1\n"})
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        real = Path(os.environ["EDGEWISE_CONTEXT"])
        told = msgspec.json.decode(real.read_bytes())
        told["url"] = f"https://127.0.0.1:{silent.getsockname()[1]}"
        context = real.with_name("silent.json")
        context.write_bytes(msgspec.json.encode(told))
        where = ("-C", str(tmp_path / "clone")) if verb != "status" else ()
        done = cli("--context", str(context), verb, *where)
    assert done.code == 3
    assert "does not answer in time" in done.err
