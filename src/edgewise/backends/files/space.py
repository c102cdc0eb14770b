"""The disk that a relay's cache may use: what goes when there is no room."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from edgewise.backends.files.cache_files import CacheFiles
from edgewise.delivery import packing, pins
from edgewise.delivery.pins import Reach
from edgewise.delivery.recency import Recency
from edgewise.model.errors import Untrusted
from edgewise.protocol.content import object_path
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

RESERVE: Final = 256 << 20
"""Bytes of the disk left free for others: receipts must still be written when the cache has
taken all it may."""
SAY_FULL_EVERY: Final = 600.0
"""Seconds between two lines that say that the disk is full."""


@dataclass(frozen=True, slots=True)
class SpaceTerms:
    """How much of the disk the cache may have."""

    limit: int
    """Bytes kept at most."""
    reserve: int = RESERVE
    """Bytes of the disk that stay free."""


class Space:
    """Which files are here, who uses them, and which have to go."""

    def __init__(self, files: CacheFiles, terms: SpaceTerms, clock: Clock, log: Log) -> None:
        self.files = files
        self.terms = terms
        self._clock = clock
        self._log = log
        self._recency = Recency(terms.limit, files.kept())
        self._busy: Counter[str] = Counter()
        self._held: frozenset[str] = frozenset()
        self._roots: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
        self._reach: Reach | None = None
        self._said_full = float("-inf")
        self.full = False
        """There was no room the last time."""
        self.on_drop: Callable[[str], None] = lambda path: None
        """Told of every file that goes."""
        files.clear_stale(clock.now().timestamp())

    def __contains__(self, path: str) -> bool:
        return path in self._recency

    @property
    def total(self) -> int:
        """Bytes kept."""
        return self._recency.total

    def pin(self, held: Collection[str], releases: Collection[str], lists: Collection[str]) -> None:
        """See ``Shelf.pin``."""
        self._held = frozenset(object_path(digest) for digest in held)
        roots = frozenset(releases), frozenset(lists)
        if roots != self._roots:
            self._roots, self._reach = roots, None

    def put(self, path: str, size: int) -> None:
        """It is on the disk now, with so many bytes."""
        self._recency.put(path, size, self._clock.now().timestamp())
        if self._reach is not None and path.startswith("objects/"):
            digest = path[8:10] + path[11:-4]
            if digest in self._reach.lacking:
                self._reach = None

    def drop(self, path: str) -> None:
        """It is gone from the disk, or has to go."""
        self._recency.drop(path)
        self.files.forget(path)
        self.on_drop(path)

    def settled(self, path: str) -> None:
        """The file has its name now."""
        self.files.mark(path, self._clock.now().timestamp())

    @contextmanager
    def using(self, path: str) -> Iterator[None]:
        """It is being served or written: it stays, and counts as used."""
        now = self._clock.now().timestamp()
        if self._recency.use(path, now):
            self.files.mark(path, now)
        self._busy[path] += 1
        try:
            yield
        finally:
            self._busy[path] -= 1
            if not self._busy[path]:
                del self._busy[path]

    async def room(self, size: int) -> bool:
        """Make room for ``size`` more bytes; False, and nothing goes, when that cannot be."""
        over = self._recency.total + size - self._recency.limit
        short = size + self.terms.reserve - self.files.free()
        if max(over, short) <= 0:
            self.full = False
            return True
        reach = await self._pinned()
        recency = self._recency
        wanted = max(over, short) + recency.limit - recency.total
        busy = frozenset(self._busy)
        gone = recency.victims(wanted, held=self._held, pinned=reach, busy=busy)
        freed = sum(recency.size(path) for path in gone)
        if freed < max(over, short):
            self._say_full(size, short)
            return False
        for path in gone:
            self.drop(path)
        self._log.event("cache made room", "debug", files=len(gone), bytes=freed)
        self.full = False
        return True

    async def _pinned(self) -> frozenset[str]:
        if self._reach is None:
            roots = self._roots
            self._reach = await asyncio.to_thread(pins.reach, *roots, self._document)
            if roots != self._roots:  # changed meanwhile
                self._reach = None
                return await self._pinned()
        return self._reach.paths

    def _document(self, digest: str, at_most: int) -> bytes | None:
        try:
            packed = (self.files.root / object_path(digest)).read_bytes()
            return packing.unpack(packed, digest, at_most=at_most)
        except (OSError, Untrusted):
            return None

    def _say_full(self, size: int, short: int) -> None:
        self.full = True
        now = self._clock.monotonic()
        if now - self._said_full < SAY_FULL_EVERY:
            return
        self._said_full = now
        self._log.event(
            "no room in the cache",
            "warning",
            bytes=size,
            disk_short_of=max(0, short),
            hint="free disk space, or give the cache more with --cache; content is passed on "
            "without being kept until then",
        )
