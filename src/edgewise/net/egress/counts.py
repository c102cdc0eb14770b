"""What got through and what did not, by app, host and reason. Bounded."""

from __future__ import annotations

from typing import Final

from edgewise.identity.egress import Refused

KEYS: Final = 512
"""Combinations counted one by one; an app that tries every name fills it, and all that comes
later is counted as host ``(others)``."""
NEWS: Final = 32
"""Refusals told at once; the others are only counted."""

Key = tuple[str, str, str]
OTHERS: Final = "(others)"


class Counts:
    """Written by one thread; ``snapshot`` may be called by another."""

    def __init__(self) -> None:
        self._counts: dict[Key, int] = {}
        self._news: dict[Key, tuple[Refused, int]] = {}

    def add(self, app: str, host: str, reason: str, refused: Refused | None = None) -> None:
        """One request; ``reason`` is empty when it got through."""
        key = (app, host, reason)
        if key in self._counts:
            self._counts[key] += 1
        else:
            if len(self._counts) >= KEYS:
                key = (app[:63] if len(self._counts) < 2 * KEYS else "", OTHERS, reason)
            self._counts[key] = self._counts.get(key, 0) + 1
        if refused is not None and (key in self._news or len(self._news) < NEWS):
            _, times = self._news.get(key, (refused, 0))
            self._news[key] = (refused, times + 1)

    def news(self) -> list[tuple[str, str, Refused, int]]:
        """Refusals since the last call: app, host, the last of its kind, how many."""
        if not self._news:
            return []
        found = [(k[0], k[1], refused, times) for k, (refused, times) in self._news.items()]
        self._news = {}
        return found

    def snapshot(self) -> dict[Key, int]:
        """All of them."""
        return dict(list(self._counts.items()))
