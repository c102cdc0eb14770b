"""A source in memory that fails when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from edgewise.delivery.ports import Opened, Source, Upstream
from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.protocol.content import object_path
from edgewise.testing.objects import MemoryObjects

_CHUNK = 16 << 10


class MemorySource:
    """``files`` by path, then ``objects``. Faults are looked up by path at every read.

    ``requests`` lists (path, start) of every read, ``served`` counts the bytes.
    """

    def __init__(
        self, files: dict[str, bytes] | None = None, objects: MemoryObjects | None = None
    ) -> None:
        self.files = files if files is not None else {}
        self.objects = objects
        self.away = False
        """Nothing can be reached while set."""
        self.requests: list[tuple[str, int]] = []
        self.served = 0
        self.blamed: list[str] = []
        self._sizes: dict[str, int] = {}
        self._cuts: dict[str, list[int]] = {}
        self._lies: dict[str, list[Callable[[bytes], bytes]]] = {}

    def cut(self, path: str, *after: int) -> None:
        """The next reads of ``path`` break off, each after its number of bytes."""
        self._cuts.setdefault(path, []).extend(after)

    def mend(self) -> None:
        """Forget cuts that did not happen yet."""
        self._cuts.clear()

    def lie(self, path: str, change: Callable[[bytes], bytes], *, times: int = 1) -> None:
        """The next ``times`` reads of ``path`` give ``change(bytes)`` instead."""
        self._lies.setdefault(path, []).extend([change] * times)

    def content(self, path: str) -> bytes | None:
        """What an honest read gives."""
        if path in self.files:
            return self.files[path]
        if self.objects is not None and path.startswith("objects/"):
            sha256 = path.removeprefix("objects/").removesuffix(".zst").replace("/", "")
            return self.objects.packed.get(sha256)
        return None

    @asynccontextmanager
    async def open(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[Opened]:
        pieces = self.read(path, at_most=at_most, start=start, end=end)
        first = await anext(pieces, b"")
        size = self._sizes.pop(path, None)
        if size is None:
            raise TryLater("nothing came")

        async def rest() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        async with aclosing(pieces):  # type: ignore[type-var]
            yield Opened(size, rest())

    def blame(self, path: str, why: str) -> None:
        self.blamed.append(path)

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        self.requests.append((path, start))
        await asyncio.sleep(0)
        if self.away:
            raise TryLater("the source is away")
        data = self.content(path)
        if lies := self._lies.get(path):
            data = lies.pop(0)(data or b"")
        if data is None:
            raise NotFound(f"no {path} here")
        self._sizes[path] = len(data)
        whole = len(data) if end is None else min(end, len(data))
        cuts = self._cuts.get(path)
        stop = min(whole, start + cuts.pop(0)) if cuts else whole
        sent = 0
        for offset in range(start, stop, _CHUNK):
            chunk = data[offset : min(stop, offset + _CHUNK)]
            sent += len(chunk)
            if sent > at_most:
                raise Untrusted(f"{path} is longer than {at_most} bytes")
            self.served += len(chunk)
            yield chunk
            await asyncio.sleep(0)
        if stop < whole:
            raise TryLater(f"the source broke off in {path}")


def path_of(sha256: str) -> str:
    """The path of an object, for ``cut`` and ``lie``."""
    return object_path(sha256)


def _meets_its_port(source: MemorySource) -> tuple[Source, Upstream]:
    return source, source
