"""When the hub looks: at once for git, once for a crowd of machines that join."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from edgewise.roles.fleet_source import CROWD, PATIENCE, SETTLE, FleetSource
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog


class Watch:
    """git, which the test moves."""

    def __init__(self) -> None:
        self.moves: asyncio.Queue[str] = asyncio.Queue()

    async def changes(self) -> AsyncIterator[str]:
        while True:
            yield await self.moves.get()


class Roster:
    async def load_one(self, name: str) -> object:
        return SimpleNamespace(quarantined="")


class Looks(FleetSource):
    """Notes when it looks instead of looking."""

    def __init__(self) -> None:
        self.clock, self.watch = ManualClock(), Watch()
        parts: Any = SimpleNamespace(
            clock=self.clock, watch=self.watch, log=ListLog(), roster=Roster(), publisher=None
        )
        super().__init__(parts)
        self.at: list[float] = []

    async def _look(self) -> None:
        self.at.append(self.clock.monotonic())

    async def _follow_channels(self) -> None:
        return

    async def wait(self, duration: timedelta) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        await self.clock.run_for(duration)


@asynccontextmanager
async def looking() -> AsyncIterator[Looks]:
    """It has looked once, as at every start."""
    looks = Looks()
    task = asyncio.ensure_future(looks.run())
    try:
        for _ in range(5):
            await asyncio.sleep(0)
        await looks.wait(timedelta(seconds=5))
        assert len(looks.at) == 1
        looks.at.clear()
        yield looks
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_machine_that_joins_alone_soon_has_a_place() -> None:
    async with looking() as looks:
        begun = looks.clock.monotonic()
        await looks.changed("node-1")
        await looks.wait(timedelta(seconds=3))
        (at,) = looks.at
        assert at - begun <= (SETTLE + CROWD).total_seconds() + 0.001


async def test_a_crowd_that_joins_is_one_look() -> None:
    async with looking() as looks:
        for number in range(40):
            await looks.changed(f"node-{number}")
            await looks.wait(timedelta(milliseconds=10))
        await looks.wait(timedelta(seconds=3))
        assert len(looks.at) == 1


async def test_a_crowd_without_end_keeps_nobody_waiting_for_long() -> None:
    async with looking() as looks:
        for number in range(500):
            await looks.changed(f"node-{number}")
            await looks.wait(timedelta(milliseconds=10))
        assert 4 <= len(looks.at) <= 6
        longest = (SETTLE + PATIENCE + CROWD).total_seconds()
        waits = [b - a for a, b in zip(looks.at, looks.at[1:], strict=False)]
        assert max(waits) <= longest + 0.02


async def test_a_commit_waits_for_no_crowd() -> None:
    async with looking() as looks:
        begun = looks.clock.monotonic()
        await looks.changed("node-1")
        await looks.wait(SETTLE + timedelta(milliseconds=5))
        assert looks.at == []
        looks.watch.moves.put_nowait("a" * 40)
        for _ in range(10):
            await asyncio.sleep(0)
        await looks.wait(timedelta(milliseconds=1))
        assert len(looks.at) == 1
        assert looks.at[0] - begun < CROWD.total_seconds()
