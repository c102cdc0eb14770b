"""What a fleet says of how bytes come, and what a node then does."""

from datetime import timedelta

from edgewise.delivery.on_agent import Limited
from edgewise.delivery.rates import Bucket
from edgewise.testing.clock import ManualClock
from edgewise.testing.source import MemorySource


class SleepingClock(ManualClock):
    """Whoever sleeps on it moves it."""

    async def sleep(self, duration: timedelta) -> None:
        self.advance(duration)


async def test_a_node_downloads_no_faster_than_it_may() -> None:
    clock = SleepingClock()
    source = MemorySource({"a": bytes(500_000)})
    limited = Limited(source, clock)
    limited.bucket = Bucket(10_000)
    began = clock.monotonic()
    got = 0
    async for chunk in limited.read("a", at_most=500_000):
        got += len(chunk)
        assert got <= 10_000 * (clock.monotonic() - began + 1) + 1
    assert got == 500_000
    assert 48 <= clock.monotonic() - began <= 50
