"""An update travels as a delta: hub, relay and nodes as real processes."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, fleet_on_laptop

from edgewise.protocol.api import Trace
from edgewise.protocol.delta import delta_path
from edgewise.protocol.travel import DeltaStatus
from edgewise.roles.demo_fleet import machine_code

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


async def test_an_update_travels_as_a_delta_from_the_hub_through_the_relay(fleet: Fleet) -> None:
    await fleet.publish("1.0.0", beside={"lib/engine.so": machine_code(0)})
    assert (await fleet.ended(await fleet.commit("1.0.0"))).state == "Succeeded"
    await fleet.publish("1.1.0", beside={"lib/engine.so": machine_code(1)})
    ready = fleet.client().get("/v1/deltas", DeltaStatus).deltas
    (delta,) = [one for one in ready if one.base and one.version == "1.1.0"]
    assert delta.state == "Ready", "publishing has waited for it"
    assert delta.size < delta.plain / 10
    commit = await fleet.commit("1.1.0")
    assert (await fleet.ended(commit)).state == "Succeeded"
    trace = fleet.client().get(f"/v1/commits/{commit}", Trace)
    fetched = [node.receipt.bytes_fetched for node in trace.nodes if node.receipt]
    assert len(fetched) == len(fleet.nodes)
    assert max(fetched) < delta.plain / 5, "each node took the delta"
    name = delta_path(delta.sha256).rpartition("/")[2]
    kept = [
        path for path in (fleet.laptop.directory / "relay").rglob("*") if path.match(f"{name}*")
    ]
    assert kept, "the relay has kept what it passed on"
