"""What a relay keeps and what goes first when its disk is full. Pure.

Laws: what is **held** (channels and the releases that they name) and what is being served is
never given up; of the rest, what no channel of the relay's fleets leads to goes before what
one does; within each, what was used longest ago goes first. "Used" means served to somebody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Final, NamedTuple

MARK_EVERY: Final = timedelta(hours=1)
"""How often at most the disk is told that a file was used: one inode write an hour for each
file in use, and a restart forgets at most the last hour's order."""


class KeptFile(NamedTuple):
    """One file that was found on the disk."""

    path: str
    size: int
    """Bytes that it takes there."""
    used: float
    """Seconds since the epoch."""


class Recency:
    """Everything kept, by path, least recently used first."""

    def __init__(self, limit: int, kept: Iterable[KeptFile]) -> None:
        """``limit``: most bytes."""
        self.limit = limit
        self.total = 0
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._marked: dict[str, float] = {}
        for file in sorted(kept, key=lambda file: (file.used, file.path)):
            self._sizes[file.path] = file.size
            self._marked[file.path] = file.used
            self.total += file.size

    def __contains__(self, path: str) -> bool:
        return path in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def size(self, path: str) -> int:
        """Bytes of one file; 0 when it is not here."""
        return self._sizes.get(path, 0)

    def use(self, path: str, now: float) -> bool:
        """Somebody was served from it; True when the disk should be told so."""
        if path not in self._sizes:
            return False
        self._sizes.move_to_end(path)
        if now - self._marked[path] < MARK_EVERY.total_seconds():
            return False
        self._marked[path] = now
        return True

    def put(self, path: str, size: int, now: float) -> None:
        """It is here, with so many bytes; a new one counts as used now."""
        self.total += size - self._sizes.get(path, 0)
        self._sizes[path] = size
        self._marked.setdefault(path, now)

    def drop(self, path: str) -> None:
        """It is gone. Idempotent."""
        self.total -= self._sizes.pop(path, 0)
        self._marked.pop(path, None)

    def victims(
        self,
        room: int,
        *,
        held: Collection[str],
        pinned: Collection[str],
        busy: Collection[str],
    ) -> tuple[str, ...]:
        """What has to go so that ``room`` more bytes stay within the limit, in this order.

        What is ``held`` or ``busy`` is never among them, so the limit may be exceeded by it.
        """
        over = self.total + room - self.limit
        chosen: list[str] = []
        for wave in (False, True):
            for path, size in self._sizes.items():
                if over <= 0:
                    return tuple(chosen)
                if path in held or path in busy or (path in pinned) is not wave:
                    continue
                chosen.append(path)
                over -= size
        return tuple(chosen)
