"""The clock, as a value that is passed in."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Wall time in UTC, a monotonic reading in seconds, and sleep."""

    def now(self) -> datetime: ...
    def monotonic(self) -> float: ...
    async def sleep(self, duration: timedelta) -> None: ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(max(0.0, duration.total_seconds()))


def _meets_its_port(clock: SystemClock) -> Clock:
    return clock
