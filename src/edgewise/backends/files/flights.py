"""Objects on their way to a relay: one download, many who wait for it.

A small object is handed on once it is verified. A large one is handed on as it comes, all
but its last bytes: those are held back until the whole has matched its name, so that what
does not verify never looks complete to anybody.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Final

from edgewise.backends.files.cache_files import CHUNK
from edgewise.backends.files.space import Space
from edgewise.delivery import packing
from edgewise.delivery.ports import Upstream
from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater, Untrusted
from edgewise.protocol import limits
from edgewise.runtime.log import Log

WHOLE: Final = 4 << 20
"""Packed bytes up to which an object is verified before its first byte is handed on, and
kept in memory until then."""
HELD_BACK: Final = 64 << 10
"""Last bytes of a larger one that wait for the verdict."""
TRIES: Final = 5
"""Times that a download which breaks off is taken up again, as long as each brings bytes."""


class NoRoom(TryLater):
    """The disk is full: what was asked for can be passed on, but not kept."""


class Flight:
    """One object that is being fetched, or has just come."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = -1
        """Packed bytes; negative until upstream has said."""
        self.ready = 0
        """Packed bytes that may be handed on."""
        self.done = False
        self.error: EdgewiseError | None = None
        self.held: bytearray | None = None
        """A small one's bytes."""
        self.fd = -1
        """A large one's file."""
        self._readers = 0
        self._moved = asyncio.Event()

    def start_over(self) -> None:
        """Nobody has any of it yet: forget what came."""
        self.size, self.held = -1, None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def tell(self) -> None:
        """Those who wait look again."""
        self._moved.set()
        self._moved = asyncio.Event()

    def end(self, error: EdgewiseError | None = None) -> None:
        """It is over, for good or not."""
        self.error = error
        self.done = error is None
        self.ready = self.size if error is None else self.ready
        self.tell()
        self._let_go()

    async def begun(self) -> int:
        """The size, once bytes can be handed on. Raises what the fetch raised."""
        while not self.done and not self.ready and self.error is None:
            await self._moved.wait()
        return self._size_or_error()

    async def whole(self) -> int:
        """Wait for all of it. Raises what the fetch raised."""
        while not self.done and self.error is None:
            await self._moved.wait()
        return self._size_or_error()

    def _size_or_error(self) -> int:
        if self.error is not None:
            raise self.error
        return self.size

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes as they become ready. Raises what the fetch raised."""
        self._readers += 1
        try:
            while start < end:
                while start >= self.ready and self.error is None:
                    await self._moved.wait()
                self._size_or_error()
                length = min(end, self.ready, start + CHUNK) - start
                if self.held is not None:
                    piece = bytes(self.held[start : start + length])
                else:
                    piece = os.pread(self.fd, length, start)
                if not piece:
                    raise TryLater(f"{self.path} is shorter than it was")
                start += len(piece)
                yield piece
        finally:
            self._readers -= 1
            self._let_go()

    def _let_go(self) -> None:
        if self.fd >= 0 and not self._readers and (self.done or self.error is not None):
            os.close(self.fd)
            self.fd = -1


class ObjectFetch:
    """Brings one object, for a flight. ``run`` it once."""

    def __init__(self, flight: Flight, sha256: str, upstream: Upstream, space: Space) -> None:
        self._flight = flight
        self._sha256 = sha256
        self._upstream = upstream
        self._space = space
        self._have = 0
        self._check = self._checking()
        self.fetched = 0
        """Bytes that came over the line."""

    async def run(self, log: Log) -> None:
        """Fetch, verify, keep; whatever happens is told to those who wait."""
        flight = self._flight
        with self._space.using(flight.path):
            try:
                try:
                    await self._once()
                except Untrusted as error:
                    self._refuse(error, log)
                    if flight.ready:
                        raise  # some have bytes of it that no other source will give
                    await self._again(log)
            except EdgewiseError as error:
                self._space.drop(flight.path)
                flight.end(error)
            except BaseException:
                self._space.drop(flight.path)
                flight.end(TryLater("the relay is going down"))
                raise
            else:
                flight.end()

    async def _again(self, log: Log) -> None:
        try:
            await self._once()
        except Untrusted as error:
            self._refuse(error, log)
            raise

    def _refuse(self, error: Untrusted, log: Log) -> None:
        path = self._flight.path
        self._upstream.blame(path, str(error))
        log.event("content refused", "warning", path=path, because=str(error))
        self._space.files.drop(path)
        if not self._flight.ready:
            self._flight.start_over()
        self._have, self._check = 0, self._checking()

    def _checking(self) -> packing.Unpacking:
        return packing.Unpacking(self._sha256, at_most=limits.OBJECT)

    async def _once(self) -> None:
        await self._take_up()
        bound = packing.packed_bound(limits.OBJECT)
        tries = TRIES
        while True:
            before = self._have
            try:
                async with self._upstream.open(
                    self._flight.path, at_most=bound, start=before
                ) as opened:
                    await self._sized(opened.size)
                    async for piece in opened.pieces:
                        self.fetched += len(piece)
                        await self._take(piece)
                break
            except TryLater as error:
                tries -= 1
                if isinstance(error, NoRoom) or not tries or self._have == before:
                    self._put_by()
                    raise
            except asyncio.CancelledError:
                self._put_by()
                raise
        if self._have != self._flight.size:
            raise Untrusted(f"{self._flight.path} has {self._have} bytes, not what was said")
        await asyncio.to_thread(self._check.end)
        await self._settle()

    async def _take_up(self) -> None:
        """Go on where an earlier fetch was, also one before a restart."""
        fd = self._space.files.begun_file(self._flight.path)
        if fd is None:
            return
        try:
            self._have = await asyncio.to_thread(self._recheck, fd)
            if self._have <= WHOLE:
                self._flight.held = bytearray(os.pread(fd, self._have, 0))
        except Untrusted:
            self._space.files.drop(self._flight.path)
            self._have, self._check = 0, self._checking()
        finally:
            os.close(fd)

    def _recheck(self, fd: int) -> int:
        at = 0
        while piece := os.pread(fd, CHUNK, at):
            self._check.feed(piece)
            at += len(piece)
        return at

    async def _sized(self, size: int) -> None:
        flight = self._flight
        if flight.size == size and (flight.held is not None or flight.fd >= 0):
            return
        if not 0 < size <= packing.packed_bound(limits.OBJECT) or self._have > size:
            raise Untrusted(f"{flight.path} cannot have {size} bytes")
        if flight.ready:
            raise Untrusted(f"{flight.path} had {flight.size} bytes and now {size}")
        room = await self._space.room(size)
        flight.size = size
        if size <= WHOLE:
            flight.held = flight.held if flight.held is not None else bytearray()
        elif not room:
            raise NoRoom(f"there is no room for the {size} bytes of {flight.path}")
        elif flight.fd < 0:
            held, flight.held = flight.held, None
            flight.fd = self._space.files.begin(flight.path)
            if held:
                self._space.files.write(flight.fd, bytes(held), 0)
        if room:
            self._space.put(flight.path, size)
        flight.tell()

    async def _take(self, piece: bytes) -> None:
        flight = self._flight
        await asyncio.to_thread(self._check.feed, piece)
        if flight.held is not None:
            flight.held += piece
            self._have += len(piece)
            return
        try:
            self._space.files.write(flight.fd, piece, self._have)
        except NeedsPerson as error:
            self._space.full = True
            raise NoRoom(str(error)) from error
        self._have += len(piece)
        flight.ready = max(0, min(self._have, flight.size - HELD_BACK))
        flight.tell()

    def _put_by(self) -> None:
        if self._flight.held and self._flight.path in self._space:
            self._space.files.save(self._flight.path, bytes(self._flight.held))

    async def _settle(self) -> None:
        files, path = self._space.files, self._flight.path
        if self._flight.held is None:
            await asyncio.to_thread(files.finish, path, self._flight.fd)
            self._space.settled(path)
        elif path in self._space:
            try:
                await asyncio.to_thread(files.put, path, bytes(self._flight.held))
                self._space.settled(path)
            except NeedsPerson:
                self._space.full = True
                self._space.drop(path)
