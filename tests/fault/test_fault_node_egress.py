"""The agent half of the egress gateway: ports that are taken, rules that are left or cannot be."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from edgewise.host import egress_rules
from edgewise.host.callers import Facts
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import ProcessApp
from edgewise.protocol.egress import EgressRule, EgressRules
from edgewise.protocol.installed import Installed, InstalledApp, InstalledEgress
from edgewise.roles.agent_egress import NodeEgress, read_state
from edgewise.runtime.clock import SystemClock
from edgewise.testing.egress import MemorySvids
from edgewise.testing.log import ListLog


def installed(*, enforce: bool = False, user: str = "", policy: bool = True) -> Installed:
    app = ProcessApp("till", {}, ("x",), user=user)
    rules = EgressRules("out", apps=("till",), allow=(EgressRule("h"),), enforce=enforce)
    return Installed(
        "r", "n", "p",
        apps=(InstalledApp("a", app, "t", "d"),),
        egress=InstalledEgress("e", rules) if policy else None,
    )  # fmt: skip


@asynccontextmanager
async def agent(state: Path) -> AsyncIterator[tuple[NodeEgress, ListLog]]:
    log = ListLog()
    facts = Facts(lambda pid: "till")
    egress = NodeEgress(state, MemorySvids({}, None), lambda: facts, SystemClock(), log)
    running = asyncio.create_task(egress.run())
    try:
        yield egress, log
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_apps_that_the_policy_concerns_are_told_and_others_are_not(tmp_path: Path) -> None:
    async with agent(tmp_path) as (egress, _):
        assert egress.environment("till") == {}
        egress.follow(installed())
        told = egress.environment("till")
        state = read_state(tmp_path)
        assert state is not None
        assert told["http_proxy"] == told["HTTPS_PROXY"] == f"http://127.0.0.1:{state.port}"
        assert egress.environment("kiosk") == {}


async def test_the_port_is_the_same_after_a_restart_unless_somebody_has_it(tmp_path: Path) -> None:
    ports = []
    for taken in (False, False, True):
        other = socket.create_server(("127.0.0.1", ports[-1])) if taken else None
        async with agent(tmp_path) as (egress, log):
            egress.follow(installed())
            state = read_state(tmp_path)
            assert state is not None
            ports.append(state.port)
            said = any(what == "egress port is taken" for what, _ in log.lines)
            assert said == taken
            await asyncio.sleep(0)
        if other is not None:
            other.close()
    assert ports[0] == ports[1] != ports[2]


async def test_an_app_that_cannot_be_held_is_a_problem_that_is_told(tmp_path: Path) -> None:
    async with agent(tmp_path) as (egress, _):
        with pytest.raises(NeedsPerson, match="runs as the agent's own user"):
            egress.follow(installed(enforce=True))
        state = read_state(tmp_path)
        assert state is not None
        assert "till" in state.problem
        assert state.enforced == ()
        egress.follow(installed())
        assert (read_state(tmp_path) or state).problem == ""


async def test_rules_of_an_agent_before_are_taken_away_with_their_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    monkeypatch.setattr(egress_rules, "apply", lambda text: None)
    monkeypatch.setattr(egress_rules, "remove", gone.append)
    user = "nobody" if os.geteuid() == 0 else "root"
    for release in (installed(policy=False), installed()):
        async with agent(tmp_path) as (egress, _):
            egress.follow(installed(enforce=True, user=user))
            assert (read_state(tmp_path) or None) is not None
        async with agent(tmp_path) as (egress, _):
            egress.follow(release)
        assert gone == [egress_rules.table_of(tmp_path)]
        gone.clear()
