"""Which of several sources of content is asked next. Pure.

The order is that of preference. A source that could not be reached rests for a while, longer
each time; one whose bytes did not verify rests for ``LIES``. Those that rest are asked last,
and only when nobody else is left: a tired source is better than none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

FIRST_REST: Final = timedelta(seconds=2)
LONGEST_REST: Final = timedelta(minutes=2)
"""A source that came back is used again within this time."""
LIES: Final = timedelta(minutes=15)
"""After bytes that did not verify: a CDN that mixes old and new files, or worse. Long enough
not to pay for every file twice, short enough that a mended cache is used again."""
LAST: Final = 1 << 30
"""The rank of the source that has everything."""
REMEMBERED: Final = 256
"""Newest paths of which it is known who gave them."""


@dataclass(slots=True)
class Standing:
    """How it went with one source."""

    name: str
    rank: int = 0
    """Smaller is asked sooner."""
    failures: int = 0
    """In a row."""
    rests_until: float = float("-inf")
    """Monotonic seconds."""
    why: str = ""
    """What went wrong the last time."""
    served_bytes: int = 0
    lies: int = 0
    refusals: int = 0
    """Files that it forbade; most likely they are not there."""


class Choice:
    """The sources, in order of preference."""

    def __init__(self, names: Iterable[str]) -> None:
        self.standings = [Standing(name, rank) for rank, name in enumerate(names)]
        if self.standings:
            self.standings[-1].rank = LAST
        self._gave: dict[str, set[int]] = {}

    def add(self, name: str) -> None:
        """One more source, preferred to the last one of the beginning only."""
        self.standings.append(Standing(name, len(self.standings)))

    def order(self, now: float) -> list[int]:
        """Indexes of the sources, in the order in which they are to be asked."""

        def rank(index: int) -> tuple[bool, float, int]:
            standing = self.standings[index]
            rest = standing.rests_until if standing.rests_until > now else 0.0
            return (rest > 0.0, rest, standing.rank)

        return sorted(range(len(self.standings)), key=rank)

    def gave(self, index: int, path: str, size: int) -> None:
        """It sent bytes of ``path``."""
        standing = self.standings[index]
        standing.failures = 0
        standing.served_bytes += size
        self._gave.setdefault(path, set()).add(index)
        while len(self._gave) > REMEMBERED:
            del self._gave[next(iter(self._gave))]

    def failed(self, index: int, why: str, now: float) -> None:
        """It could not be reached, or broke off."""
        standing = self.standings[index]
        standing.failures += 1
        rest = min(FIRST_REST * 2 ** min(standing.failures - 1, 10), LONGEST_REST)
        standing.rests_until = max(standing.rests_until, now + rest.total_seconds())
        standing.why = why

    def lied(self, index: int, why: str, now: float) -> None:
        """What it sent did not verify."""
        standing = self.standings[index]
        standing.lies += 1
        standing.rests_until = now + LIES.total_seconds()
        standing.why = why

    def blame(self, path: str, why: str, now: float) -> tuple[str, ...]:
        """Everybody who gave bytes of ``path`` rests: which of them lied cannot be told.
        Returns their names."""
        guilty = sorted(self._gave.pop(path, ()))
        for index in guilty:
            self.lied(index, why, now)
        return tuple(self.standings[index].name for index in guilty)
