"""How often each of many may ask: token buckets, without a clock of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from edgewise.model.errors import TryLater

MOST_NAMES: Final = 200_000
"""Buckets kept; those that are full again go first."""


@dataclass(slots=True)
class Rates:
    """At most ``burst`` at once and ``per_second`` for long, for each name."""

    burst: float
    per_second: float
    _left: dict[str, tuple[float, datetime]] = field(default_factory=dict, init=False)

    def take(self, name: str, count: int, now: datetime) -> None:
        """Use up ``count``. Raises TryLater, saying when, if there are not so many left."""
        left, at = self._left.get(name, (self.burst, now))
        passed = max(0.0, (now - at).total_seconds())
        left = min(self.burst, left + passed * self.per_second)
        if left < count:
            wait = timedelta(seconds=(count - left) / self.per_second)
            raise TryLater(
                f"{name} asks too often: {self.burst:g} at once, {self.per_second:g} a second",
                wait=wait,
            )
        if len(self._left) >= MOST_NAMES and name not in self._left:
            self._make_room(now)
        self._left[name] = (left - count, now)

    def _make_room(self, now: datetime) -> None:
        full_after = timedelta(seconds=self.burst / self.per_second)
        self._left = {n: kept for n, kept in self._left.items() if now - kept[1] < full_after}
        while len(self._left) >= MOST_NAMES:
            del self._left[next(iter(self._left))]
