"""A relay's objects and deltas: pulled through, verified, kept within bounds.

Laws: many who ask for one file cause one download; nothing that did not verify is kept or
looks complete to anybody; what is kept stays within ``SpaceTerms``; a full disk stops the
keeping, never the serving.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import aclosing
from typing import Any, Final

from edgewise.backends.files.cache_files import CacheFiles, kept_pieces
from edgewise.backends.files.flights import Flight, NoRoom, ObjectFetch
from edgewise.backends.files.part_shelf import PartShelf, digest_of
from edgewise.backends.files.space import Space
from edgewise.delivery import packing
from edgewise.delivery.ports import NotHere, Served, Shelf, Upstream
from edgewise.model.errors import NeedsPerson, NotFound
from edgewise.protocol import limits
from edgewise.protocol.content import object_path
from edgewise.runtime.log import Log

_OBJECT: Final = re.compile(r"objects/[0-9a-f]{2}/[0-9a-f]{62}\.zst")
_DELTA: Final = re.compile(r"deltas/[0-9a-f]{2}/[0-9a-f]{62}\.ewd")


class FileShelf:
    """See ``delivery.ports.Shelf``. Close it."""

    def __init__(self, space: Space, upstream: Upstream, log: Log) -> None:
        self._space = space
        self._files: CacheFiles = space.files
        self._upstream = upstream
        self._log = log
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._parts = PartShelf(upstream, space, log, self._spawn)
        self._fetched = 0
        space.on_drop = self._parts.forget

    @property
    def stored_bytes(self) -> int:
        """See ``Shelf.stored_bytes``."""
        return self._space.total

    @property
    def fetched_bytes(self) -> int:
        """Bytes of objects and deltas that came from upstream since the start."""
        return self._fetched + self._parts.fetched

    def pin(self, held: Collection[str], releases: Collection[str], lists: Collection[str]) -> None:
        """See ``Shelf.pin``."""
        self._space.pin(held, releases, lists)

    def has(self, sha256: str) -> bool:
        """See ``Shelf.has``."""
        return self._files.exists(object_path(sha256))

    async def close(self) -> None:
        """See ``Shelf.close``."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(
        self, path: str, start: int = 0, end: int | None = None, *, here: bool = False
    ) -> Served:
        """See ``Shelf.open``."""
        if _OBJECT.fullmatch(path):
            return await self._open_object(path, here=here)
        if not _DELTA.fullmatch(path):
            raise NotFound(f"{path[:100]!r} is not a path of content")
        parts = await self._parts.open(path, start, end, here=here)
        return Served(
            parts.layout.size, parts.name, lambda first, last: self._parts.read(parts, first, last)
        )

    async def ensure(self, path: str) -> None:
        """See ``Shelf.ensure``."""
        if _OBJECT.fullmatch(path):
            if not self._files.exists(path):
                await self._flight(path).whole()
            if not self._files.exists(path):
                raise NeedsPerson(
                    f"there is no room for {path}", hint="free disk space, or --cache"
                )
            with self._space.using(path):
                return
        if not _DELTA.fullmatch(path):
            raise NotFound(f"{path[:100]!r} is not a path of content")
        await self._parts.whole(await self._parts.open(path, 0, None, here=False))

    async def put(self, sha256: str, data: bytes) -> None:
        """See ``Shelf.put``."""
        packing.unpack(packed := packing.pack(data), sha256, at_most=len(data))
        path = object_path(sha256)
        if not self._files.exists(path):
            await asyncio.to_thread(self._files.put, path, packed)
            self._space.put(path, len(packed))

    async def get(self, sha256: str, *, at_most: int) -> bytes:
        """See ``Shelf.get``. Raises Untrusted when the disk changed the bytes."""
        try:
            packed = (self._files.root / object_path(sha256)).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"object {sha256[:12]} is not kept here") from None
        return packing.unpack(packed, sha256, at_most=at_most)

    # Objects

    async def _open_object(self, path: str, *, here: bool) -> Served:
        size = self._files.size(path)
        if size is None and here:
            raise NotHere(f"{path} is not here")
        if size is None:
            flight = self._flight(path)
            try:
                size = await flight.begun()
            except NoRoom:
                size = flight.size
                return Served(size, digest_of(path), lambda s, e: self._passed(path, s, e))
            if flight.held is not None:
                return Served(size, digest_of(path), lambda s, e: self._landed(flight, s, e))
        return Served(size, digest_of(path), lambda s, e: self._read(path, s, e))

    def _flight(self, path: str) -> Flight:
        flight = self._flights.get(path)
        if flight is None:
            flight = self._flights[path] = Flight(path)
            self._spawn(self._fly(flight))
        return flight

    async def _fly(self, flight: Flight) -> None:
        fetch = ObjectFetch(flight, digest_of(flight.path), self._upstream, self._space)
        try:
            await fetch.run(self._log)
        finally:
            self._fetched += fetch.fetched
            del self._flights[flight.path]

    async def _landed(self, flight: Flight, start: int, end: int) -> AsyncIterator[bytes]:
        """A small one that has just come: in memory, wherever else."""
        with self._space.using(flight.path):
            async with aclosing(flight.read(start, end)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece

    async def _read(self, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        with self._space.using(path):
            fd = self._files.open(path)
            if fd is None:
                flight = self._flight(path)
                async with aclosing(flight.read(start, end)) as pieces:  # type: ignore[type-var]
                    async for piece in pieces:
                        yield piece
                return
            try:
                for piece in kept_pieces(fd, start, end, path):
                    yield piece
            finally:
                os.close(fd)

    async def _passed(self, path: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Straight from upstream, for one who asks: there is no room to keep it. Only the
        node's own check stands then."""
        bound = packing.packed_bound(limits.OBJECT)
        async with self._upstream.open(path, at_most=bound, start=start, end=end) as opened:
            async for piece in opened.pieces:
                self._fetched += len(piece)
                yield piece

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _meets_its_port(shelf: FileShelf) -> Shelf:
    return shelf
