"""Certificates that live a minute, with real processes: a region renews without its hub."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import fleet_on_laptop

from edgewise.protocol.api import RolloutSummary
from edgewise.roles.node_certificate import read_card
from edgewise.runtime.clock import SystemClock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]
LIFE = timedelta(minutes=1)
LIVES = 3


async def test_a_region_outlives_its_certificates_while_the_hub_is_dead(tmp_path: Path) -> None:
    async with fleet_on_laptop(tmp_path, node_life="60s") as fleet:
        await fleet.roll_out("1.0.0")
        await fleet.publish("2.0.0")
        names = [node.name for node in fleet.nodes]
        pids = [fleet.app_pid(name) for name in names]
        await fleet.kill("hub")
        clock = SystemClock()
        begun = {name: read_card(fleet.state(name)).not_after for name in names}
        for name in names:
            assert begun[name] - clock.now() <= LIFE, "it lives as short as the hub was told"

        def outlived() -> bool:
            return all(
                read_card(fleet.state(name)).not_after >= begun[name] + LIVES * LIFE
                for name in names
            )

        await fleet.until(outlived, f"{LIVES} lives were renewed by the relay", within=300)
        assert clock.now() > max(begun.values()) + LIFE, "what the hub gave is long over"
        assert set(fleet.answers()) == {"hello 1.0.0"}
        assert [fleet.app_pid(name) for name in names] == pids, "no app noticed"
        for name in names:
            assert fleet.log(name).count("renewed") >= LIVES
        await fleet.start_hub()
        commit = await asyncio.wait_for(fleet.commit("2.0.0"), 60)
        ended: RolloutSummary = await fleet.ended(commit)
        assert ended.state == "Succeeded"
        await fleet.until_all_say("hello 2.0.0")
