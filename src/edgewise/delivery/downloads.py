"""Bytes from a source that breaks off: kept, gone on with, and counted. Through ports only.

Laws: a download that breaks off is taken up where it was, in this process and after a crash;
at most ``SMALL`` bytes of each are lost by a kill; every byte that came is counted by its way.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from io import BytesIO
from typing import Final, Literal

from edgewise.delivery import packing
from edgewise.delivery.delta import Part
from edgewise.delivery.ports import NodeFiles, Source
from edgewise.delivery.ways import Way
from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.protocol.content import object_path

SMALL: Final = 256 << 10
"""Bytes held in memory; what grows beyond goes to a file that can be resumed."""
TRIES: Final = 5
"""Times that a download which breaks off is taken up again, as long as each brings bytes."""
By = Way | Literal["document"]
"""What bytes came for."""


class Downloads:
    """Everything that one fetch reads from its source."""

    def __init__(self, store: NodeFiles, source: Source) -> None:
        self._store = store
        self._source = source
        self.used: Counter[str] = Counter()
        """Bytes that came, by what for."""
        self.came: Counter[str] = Counter()
        """Those of documents, deltas and packs, by path."""
        self.requests = 0
        self.sizes: dict[str, int] = {}
        """Packed bytes of objects that came whole."""

    @property
    def total(self) -> int:
        """Bytes that came."""
        return self.used.total()

    async def read(
        self, path: str, by: By, *, start: int, end: int | None, at_most: int
    ) -> AsyncIterator[bytes]:
        """As ``Source.read``, counted."""
        self.requests += 1
        async for chunk in self._source.read(path, at_most=at_most, start=start, end=end):
            self.used[by] += len(chunk)
            if by != "whole":
                self.came[path] += len(chunk)
            yield chunk

    # Whole objects

    async def object(
        self, sha256: str, at_most: int, keep: Callable[[Iterator[bytes]], None], by: By
    ) -> None:
        """Download one object and hand its content, as it is unpacked, to ``keep``.

        ``keep`` keeps nothing unless its iterator ends by itself, that is verified.
        """
        if self._store.has_partial(sha256):
            try:
                return self._unpack_partial(sha256, at_most, keep)
            except Untrusted:
                # Not whole yet, as a rule: go on from where it broke off.
                if self._store.has_partial(sha256) >= packing.packed_bound(at_most):
                    self._store.drop_partial(sha256)
        try:
            await self._download(sha256, at_most, keep, by)
        except Untrusted:
            self._store.drop_partial(sha256)
            await self._download(sha256, at_most, keep, by)

    async def _download(
        self, sha256: str, at_most: int, keep: Callable[[Iterator[bytes]], None], by: By
    ) -> None:
        path, bound = object_path(sha256), packing.packed_bound(at_most)
        try:
            held = await self.whole(path, sha256, by, start=0, end=None, at_most=bound)
            if held is None:
                self._unpack_partial(sha256, at_most, keep)
            else:
                keep(packing.unpacked(BytesIO(held), sha256, at_most=at_most))
                self.sizes[sha256] = len(held)
        except Untrusted:
            self._store.drop_partial(sha256)
            raise
        except NotFound as error:
            raise TryLater(f"the source does not have object {sha256[:12]} (yet)") from error

    def _unpack_partial(
        self, sha256: str, at_most: int, keep: Callable[[Iterator[bytes]], None]
    ) -> None:
        with self._store.partial(sha256) as file:
            file.seek(0)
            keep(packing.unpacked(file, sha256, at_most=at_most))
            self.sizes[sha256] = file.seek(0, 2)
        self._store.drop_partial(sha256)

    # Ranges

    async def whole(
        self, path: str, name: str, by: By, *, start: int, end: int | None, at_most: int
    ) -> bytes | None:
        """The bytes of a range, gathered under the digest ``name``; None when they are in its
        partial file. Raises what ``Source.read`` raises, TryLater after what came was kept."""
        for left in reversed(range(TRIES)):
            before = self.total
            try:
                return await self._once(path, name, by, start=start, end=end, at_most=at_most)
            except TryLater:
                if not left or self.total == before:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, path: str, name: str, by: By, *, start: int, end: int | None, at_most: int
    ) -> bytes | None:
        had = self._store.has_partial(name)
        held = bytearray()
        spilled = had > 0
        try:
            chunks = self.read(path, by, start=start + had, end=end, at_most=at_most - had)
            async for chunk in chunks:
                held += chunk
                if spilled or len(held) > SMALL:
                    spill(self._store, name, held)
                    held.clear()
                    spilled = True
        except TryLater:
            if held:
                spill(self._store, name, held)
            raise
        return None if spilled else bytes(held)

    async def small(self, path: str, name: str, by: By, *, start: int, end: int) -> bytes:
        """A range that fits into memory, whole. Raises as ``whole``; Untrusted when the file
        ends before it."""
        if self._store.has_partial(name) > end - start:
            self._store.drop_partial(name)
        data = None
        if self._store.has_partial(name) < end - start:
            data = await self.whole(path, name, by, start=start, end=end, at_most=end - start)
        if data is None:
            with self._store.partial(name) as file:
                file.seek(0)
                data = file.read(self._store.has_partial(name))
        self._store.drop_partial(name)
        if len(data) != end - start:
            raise Untrusted(f"{path} ends before byte {end}")
        return data


class Cutter:
    """Cuts a range into its parts as the bytes come; what lies between them is passed over."""

    def __init__(self, store: NodeFiles, parts: Sequence[Part]) -> None:
        self._store = store
        self._waiting = deque(parts)
        self._buffer = bytearray()
        self._spilled = 0
        self._kept = 0
        self._at = 0

    @property
    def waits(self) -> bool:
        """Whether a part is still missing."""
        return bool(self._waiting)

    def begin(self) -> int:
        """Where to read from: the first missing part, behind what came of it before."""
        part = self._waiting[0]
        self._buffer.clear()
        if 0 < self._store.has_partial(part.sha256) < part.length:
            with self._store.partial(part.sha256) as file:
                file.seek(0)
                self._buffer += file.read(part.length)
        else:
            self._store.drop_partial(part.sha256)
        self._spilled = self._kept = len(self._buffer)
        self._at = part.start + self._spilled
        return self._at

    def feed(self, chunk: bytes) -> Iterator[tuple[Part, bytes]]:
        """Parts that are whole now. Raises TryLater when what was kept of one was torn by a
        power cut: it is dropped, and ``begin`` is where to go on."""
        view = memoryview(chunk)
        while view and self._waiting:
            part = self._waiting[0]
            if self._at < part.start:
                passed = min(part.start - self._at, len(view))
                view = view[passed:]
                self._at += passed
                continue
            taken = view[: part.length - len(self._buffer)]
            self._buffer += taken
            view = view[len(taken) :]
            self._at += len(taken)
            if len(self._buffer) == part.length:
                self._check_kept(part)
                self._waiting.popleft()
                whole = bytes(self._buffer)
                self._buffer.clear()
                if self._spilled:
                    self._store.drop_partial(part.sha256)
                    self._spilled = 0
                yield part, whole
        if len(self._buffer) - self._spilled >= SMALL:
            self.keep()

    def _check_kept(self, part: Part) -> None:
        """Else a sound delta would be refused for what this disk did to it."""
        kept, self._kept = self._kept, 0
        if kept and hashlib.sha256(self._buffer).hexdigest() != part.sha256:
            self._store.drop_partial(part.sha256)
            self._buffer.clear()
            self._spilled = 0
            raise TryLater(f"{kept} bytes that were kept of a part are not what came")

    def keep(self) -> None:
        """Put what came of the part under way where a crash leaves it."""
        if self._waiting and len(self._buffer) > self._spilled:
            spill(self._store, self._waiting[0].sha256, self._buffer[self._spilled :])
            self._spilled = len(self._buffer)


def spill(store: NodeFiles, name: str, data: bytearray) -> None:
    """Append to a partial file."""
    with store.partial(name) as file:
        file.seek(0, 2)
        file.write(data)
