"""A bound on bytes per second. Pure: time is an argument.

Laws: over any span the bytes let through are at most rate x span + burst; nobody waits longer
than his bytes take at that rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BURST_S: Final = 1.0
"""Seconds of the rate that may come at once: a second's pause is not seen, and smaller bursts
make TCP's window collapse."""


@dataclass(slots=True)
class Bucket:
    """A token bucket that may be overdrawn: bytes are counted after they came."""

    rate: float
    """Bytes a second; 0: no bound."""
    _tokens: float = -1.0
    _at: float = 0.0

    def take(self, count: int, now: float) -> float:
        """Seconds to wait after ``count`` bytes came at ``now`` (monotonic seconds)."""
        if self.rate <= 0:
            return 0.0
        full = self.rate * BURST_S
        if self._tokens == -1.0:
            self._tokens, self._at = full, now
        passed = max(0.0, now - self._at)
        self._tokens = min(full, self._tokens + passed * self.rate) - count
        self._at = max(self._at, now)
        return max(0.0, -self._tokens / self.rate)
