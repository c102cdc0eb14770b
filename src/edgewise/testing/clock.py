"""A clock that moves only when the test says so."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta

from edgewise.runtime.clock import Clock


class ManualClock:
    """Starts at ``start``; ``advance`` wakes sleepers in the order of their due time."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._now = start
        self._ahead = timedelta()
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> datetime:
        return self._now + self._ahead

    def set_wall(self, when: datetime) -> None:
        """Somebody sets the wall clock; monotonic time and sleepers do not notice."""
        self._ahead = when - self._now

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    async def sleep(self, duration: timedelta) -> None:
        if duration <= timedelta():
            await asyncio.sleep(0)
            return
        self._count += 1
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + duration, self._count, waiting))
        await waiting

    def advance(self, duration: timedelta) -> None:
        """Move time on. In async tests prefer ``run_for``, which lets sleepers run."""
        self._now += duration
        while self._sleepers and self._sleepers[0][0] <= self._now:
            _, _, waiting = heapq.heappop(self._sleepers)
            if not waiting.done():
                waiting.set_result(None)

    async def run_for(self, duration: timedelta) -> None:
        """Move time on step by step, letting every sleeper that becomes due run."""
        end = self._now + duration
        while self._sleepers and self._sleepers[0][0] <= end:
            self.advance(self._sleepers[0][0] - self._now)
            for _ in range(20):
                await asyncio.sleep(0)
        self.advance(end - self._now)
        for _ in range(20):
            await asyncio.sleep(0)


def _meets_its_port(clock: ManualClock) -> Clock:
    return clock
