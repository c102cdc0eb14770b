"""A limit of bytes a second: a token bucket that may be overdrawn by one piece. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

BURST: Final = timedelta(seconds=1)
"""How much of the rate may be saved up: after a pause, a second's worth comes at once."""


@dataclass(slots=True)
class Brake:
    """One limit that many downloads share. Whoever takes waits until the debt is paid, so they
    take turns piece by piece."""

    rate: int
    """Bytes a second."""
    _level: float = field(default=0.0, init=False)
    """Bytes that may go at once; negative: owed."""
    _at: float = field(default=float("-inf"), init=False)

    def take(self, size: int, now: float) -> float:
        """Seconds to wait after ``size`` bytes. ``now``: monotonic seconds."""
        burst = self.rate * BURST.total_seconds()
        passed = min(now - self._at, 1e9)
        self._level = min(burst, self._level + passed * self.rate) - size
        self._at = now
        return max(0.0, -self._level / self.rate)
