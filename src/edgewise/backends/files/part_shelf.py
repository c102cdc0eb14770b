"""Deltas on a relay: each part is fetched, verified and kept by itself.

A node rarely needs all of a pack. What it asks for is fetched in parts, many who ask for one
part wait for the same download, and a part is handed on once its digest has matched.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from edgewise.backends.files.cache_files import CHUNK, disk_size, filled, kept_pieces
from edgewise.backends.files.flights import TRIES
from edgewise.backends.files.space import Space
from edgewise.delivery.layouts import LEAD_IN, Layout, check, head_length
from edgewise.delivery.ports import NotHere, Upstream
from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater, Untrusted
from edgewise.runtime.log import Log

FIRST: Final = 64 << 10
"""Bytes of an unknown delta that are asked for first: most heads are smaller."""
RUN: Final = 16 << 20
"""Bytes of neighbouring parts fetched with one request. Others get the line in between."""
KNOWN: Final = 64
"""Deltas whose heads stay in memory (``limits.DELTA_HEAD`` bounds each, 20 KB are usual). One
that is looked at again after that is read from the disk and checked anew."""
LOOSE: Final = 16
"""Readers at once that hold a part in memory because the disk is full."""


@dataclass(slots=True, eq=False)
class Parts:
    """One delta, as far as it is here."""

    path: str
    layout: Layout
    here: set[int] = field(default_factory=set)
    """Parts on the disk, verified since this relay started."""
    coming: dict[int, asyncio.Future[bytes | None]] = field(default_factory=dict)
    """None: it is on the disk; bytes: there was no room for it."""
    blamed: set[int] = field(default_factory=set)
    """Parts that did not verify once."""

    @property
    def name(self) -> str:
        """The digest that is its name."""
        return digest_of(self.path)


class PartShelf:
    """Every delta of a relay. ``spawn`` runs a download as a task of the relay's."""

    def __init__(
        self,
        upstream: Upstream,
        space: Space,
        log: Log,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._upstream = upstream
        self._space = space
        self._log = log
        self._spawn = spawn
        self._known: OrderedDict[str, Parts] = OrderedDict()
        self._opening: dict[str, asyncio.Future[Parts]] = {}
        self._loose = asyncio.Semaphore(LOOSE)
        self.fetched = 0
        """Bytes that came over the line."""

    async def open(self, path: str, start: int, end: int | None, *, here: bool) -> Parts:
        """The delta's head, fetched if need be. See ``Shelf.open``."""
        parts = self._known.get(path)
        if parts is None and here and not self._space.files.exists(path):
            raise NotHere(f"{path} is not here")
        if parts is None:
            parts = await self._opened(path)
        if path in self._known:
            self._known.move_to_end(path)
        if here:
            wanted = parts.layout.within(start, parts.layout.size if end is None else end)
            if not all(index in parts.here for index in wanted):
                raise NotHere(f"not all of these bytes of {path} are here")
        return parts

    def forget(self, path: str) -> None:
        """Its file is gone."""
        self._known.pop(path, None)

    async def read(self, parts: Parts, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes of the file, fetched as they are reached. Raises TryLater, Untrusted."""
        with self._space.using(parts.path):
            head = parts.layout.head
            if start < len(head):
                yield head[start : min(end, len(head))]
            for index in parts.layout.within(start, end):
                span = parts.layout.spans[index]
                first, last = max(start, span.start), min(end, span.end)
                data = await self._part(parts, index, end)
                if data is None:
                    async for piece in self._kept(parts, first, last):
                        yield piece
                    continue
                async with self._loose:
                    for at in range(first - span.start, last - span.start, CHUNK):
                        yield data[at : min(at + CHUNK, last - span.start)]

    async def whole(self, parts: Parts) -> None:
        """Have every part here. Raises NeedsPerson when the disk has no room."""
        with self._space.using(parts.path):
            for index in range(len(parts.layout.spans)):
                if await self._part(parts, index, parts.layout.size) is not None:
                    raise NeedsPerson(
                        f"there is no room for {parts.path}", hint="free disk space, or --cache"
                    )

    async def _kept(self, parts: Parts, start: int, end: int) -> AsyncIterator[bytes]:
        fd = self._space.files.open(parts.path)
        if fd is None:
            parts.here.clear()
            raise TryLater(f"{parts.path} has gone from the disk")
        try:
            for piece in kept_pieces(fd, start, end, parts.path):
                yield piece
        finally:
            os.close(fd)

    # Heads

    async def _opened(self, path: str) -> Parts:
        running = self._opening.get(path)
        if running is None:
            running = asyncio.get_running_loop().create_future()
            self._opening[path] = running
            self._spawn(self._open(path, running))
        return await asyncio.shield(running)

    async def _open(self, path: str, answer: asyncio.Future[Parts]) -> None:
        try:
            with self._space.using(path):
                parts = await asyncio.to_thread(self._from_disk, path)
                if parts is None:
                    self._space.drop(path)  # where a file is, it is damaged
                    parts = await self._from_upstream(path)
            self._known[path] = parts
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)
            answer.set_result(parts)
        except EdgewiseError as error:
            answer.set_exception(error)
            answer.exception()  # nobody may be waiting any more
        finally:
            if not answer.done():
                answer.set_exception(TryLater("the relay is going down"))
                answer.exception()
            del self._opening[path]

    def _from_disk(self, path: str) -> Parts | None:
        """What a file holds, every part checked. Blocks."""
        fd = self._space.files.open(path)
        if fd is None:
            return None
        try:
            length = head_length(os.pread(fd, LEAD_IN, 0))
            parts = Parts(path, Layout.of(os.pread(fd, length, 0), digest_of(path)))
            for start, end in filled(fd):
                for index in parts.layout.within(start, end):
                    span = parts.layout.spans[index]
                    try:
                        check(span, os.pread(fd, span.length, span.start), parts.name)
                    except Untrusted:
                        continue  # a hole, or torn by a power cut
                    parts.here.add(index)
        except Untrusted:
            return None
        finally:
            os.close(fd)
        return parts

    async def _from_upstream(self, path: str) -> Parts:
        try:
            return await self._fetch_head(path)
        except Untrusted as error:
            self._refuse(path, error)
        try:
            return await self._fetch_head(path)
        except Untrusted as error:
            self._refuse(path, error)
            raise

    async def _fetch_head(self, path: str) -> Parts:
        data = await self._range(path, 0, FIRST)
        length = head_length(data)
        if length > len(data):
            data += await self._range(path, len(data), length)
        parts = Parts(path, Layout.of(data[:length], digest_of(path)))
        if await self._space.room(length):
            try:
                fd = self._space.files.create(path)
                try:
                    self._space.files.write(fd, data[:length], 0)
                finally:
                    os.close(fd)
                self._space.put(path, length)
            except NeedsPerson:
                self._space.full = True
                self._space.drop(path)
        for index in parts.layout.within(length, len(data)):
            span = parts.layout.spans[index]
            if span.end <= len(data):
                await self._keep(parts, index, data[span.start : span.end])
            else:  # not asked for again
                self._space.files.save(_half(parts, index), data[span.start :])
        return parts

    async def _range(self, path: str, start: int, end: int) -> bytes:
        half = f"{path}.head-{start}"
        got = bytearray(self._space.files.begun(half))
        tries = TRIES
        while True:
            before = len(got)
            if before >= end - start:
                return bytes(got)
            try:
                opening = self._upstream.open(
                    path, at_most=end - start - before, start=start + before, end=end
                )
                async with opening as opened:
                    async for piece in opened.pieces:
                        self.fetched += len(piece)
                        got += piece
                return bytes(got)
            except TryLater:
                tries -= 1
                if not tries or len(got) == before:
                    self._space.files.save(half, bytes(got))
                    raise

    # Parts

    async def _part(self, parts: Parts, index: int, end: int) -> bytes | None:
        """Have a part here: None when it is on the disk, else its bytes."""
        if index in parts.here:
            return None
        coming = parts.coming.get(index)
        if coming is None:
            last = self._run_from(parts, index, end)
            loop = asyncio.get_running_loop()
            for one in range(index, last + 1):
                parts.coming[one] = loop.create_future()
            coming = parts.coming[index]
            self._spawn(self._fetch(parts, index, last))
        return await asyncio.shield(coming)

    def _run_from(self, parts: Parts, index: int, end: int) -> int:
        """The last of the missing parts that are fetched together with ``index``."""
        first = parts.layout.spans[index].start
        last = index
        for one in parts.layout.within(first, end):
            missing = one not in parts.here and one not in parts.coming
            if not missing or parts.layout.spans[one].end - first > RUN or self._space.full:
                break
            last = max(last, one)
        return last

    async def _fetch(self, parts: Parts, first: int, last: int) -> None:
        """Bring neighbouring parts; whatever happens is told to those who wait."""
        error: EdgewiseError = TryLater("the relay is going down")
        got = bytearray(self._space.files.begun(_half(parts, first)))
        index, tries = first, TRIES
        try:
            with self._space.using(parts.path):
                while index <= last:
                    before = _place(parts, index, got)
                    try:
                        index = await self._stream(parts, index, last, got)
                    except Untrusted as refused:
                        index = _first_missing(parts, index, last)
                        got.clear()
                        self._refuse(parts.path, refused)
                        if index in parts.blamed:
                            raise
                        parts.blamed.add(index)
                    except TryLater:
                        index = _first_missing(parts, index, last)
                        tries -= 1
                        if index <= last and (not tries or _place(parts, index, got) <= before):
                            raise
        except EdgewiseError as failed:
            error = failed
        finally:
            if index <= last and got:
                self._space.files.save(_half(parts, index), bytes(got))
            for one in range(first, last + 1):
                waiting = parts.coming.pop(one, None)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(error)
                    waiting.exception()

    async def _stream(self, parts: Parts, index: int, last: int, got: bytearray) -> int:
        """One request; returns the index behind the last part that came whole."""
        spans = parts.layout.spans
        start, end = spans[index].start + len(got), spans[last].end
        opening = self._upstream.open(parts.path, at_most=end - start, start=start, end=end)
        async with opening as opened:
            if opened.size != parts.layout.size:
                raise Untrusted(f"{parts.path} cannot have {opened.size} bytes")
            async for piece in opened.pieces:
                self.fetched += len(piece)
                got += piece
                while index <= last and len(got) >= spans[index].length:
                    data = bytes(got[: spans[index].length])
                    await asyncio.to_thread(check, spans[index], data, parts.name)
                    del got[: len(data)]
                    await self._keep(parts, index, data)
                    index += 1
        if index <= last:
            raise TryLater(f"{parts.path} broke off")
        return index

    async def _keep(self, parts: Parts, index: int, data: bytes) -> None:
        """A verified part: to the disk where there is room, and to those who wait."""
        room = await self._space.room(len(data))
        size = await asyncio.to_thread(self._write, parts, index, data) if room else None
        kept = size is not None
        if size is not None:
            self._space.put(parts.path, size)
            parts.here.add(index)
        waiting = parts.coming.pop(index, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None if kept else data)

    def _write(self, parts: Parts, index: int, data: bytes) -> int | None:
        """Returns what the file then takes of the disk; None: the disk is full. Blocks."""
        files = self._space.files
        try:
            fd = files.open(parts.path)
            if fd is None:
                parts.here.clear()
                fd = files.create(parts.path)
                files.write(fd, parts.layout.head, 0)
            try:
                files.write(fd, data, parts.layout.spans[index].start)
                return disk_size(os.fstat(fd))
            finally:
                os.close(fd)
        except NeedsPerson:
            self._space.full = True
            return None

    def _refuse(self, path: str, error: Untrusted) -> None:
        self._upstream.blame(path, str(error))
        self._log.event("content refused", "warning", path=path, because=str(error))


def digest_of(path: str) -> str:
    """The digest in the name of an object or a delta."""
    _, first, rest = path.split("/")
    return first + rest.partition(".")[0]


def _half(parts: Parts, index: int) -> str:
    return f"{parts.path}.{index}"


def _place(parts: Parts, index: int, got: bytearray) -> int:
    return parts.layout.spans[index].start + len(got)


def _first_missing(parts: Parts, index: int, last: int) -> int:
    while index <= last and index not in parts.coming:
        index += 1
    return index
