"""The root of a real fleet is replaced: hub, relay and agents as processes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, fleet_on_laptop

from edgewise.identity.on_agent import MachineIdentity
from edgewise.protocol.api import CaStatus, RotateRoot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


def step(fleet: Fleet, what: str, **how: bool) -> CaStatus:
    request = RotateRoot(what, **how)  # type: ignore[arg-type]
    return fleet.client().post("/v1/ca/rotate-root", request, CaStatus)


def root_of(fleet: Fleet, name: str) -> str:
    return MachineIdentity(fleet.state(name) / "identity").card().root


async def test_agents_follow_their_fleet_to_another_root_and_go_on_rolling_out(
    fleet: Fleet,
) -> None:
    await fleet.roll_out("1.0.0")
    step(fleet, "prepare")

    def trusted() -> bool:
        now = fleet.client().get("/v1/ca", CaStatus)
        return now.ready == now.machines == 3

    await fleet.until(trusted, "every machine trusts both roots")
    step(fleet, "activate")
    # Nodes take up to an hour to renew; a person who does not wait makes them rejoin.
    after = step(fleet, "retire", force=True).roots[0].sha256
    names = [node.name for node in fleet.nodes]
    await fleet.until(
        lambda: all(root_of(fleet, name) == after for name in names), "every node rejoined"
    )
    ended = await fleet.roll_out("2.0.0")
    assert ended.state == "Succeeded"
    await fleet.until_all_say("hello 2.0.0")
