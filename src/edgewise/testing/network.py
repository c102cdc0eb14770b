"""A bad network on loopback: a TCP line that is slow, narrow, cut, or silent on demand.

For fault tests that want a real socket between two real ends::

    async with Line.to("127.0.0.1", hub.port) as line:
        connect_to(line.port)
        line.drop()          # packets vanish: both ends wait
        line.flow()
        line.cut()           # connections break and new ones are refused

Everything is per direction where that matters: ``up`` is towards the far end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

_PIECE = 16 << 10


@dataclass(slots=True)
class Direction:
    """What one direction of the line does to bytes."""

    latency: timedelta = timedelta()
    rate: int = 0
    """Bytes a second; 0: no limit. Shared by all connections of the line."""
    cut_after: int = -1
    """Break the connection once it has carried this many bytes; -1: never."""
    carried: int = 0
    """Bytes that went through so far, of all connections."""


@dataclass(slots=True)
class Line:
    """Listens on ``port`` and passes everything on to ``host:far_port``."""

    host: str
    far_port: int
    up: Direction = field(default_factory=Direction)
    down: Direction = field(default_factory=Direction)
    port: int = 0
    accepted: int = 0
    """Connections that were let through so far."""
    _server: asyncio.Server | None = None
    _open: set[asyncio.Task[None]] = field(default_factory=set)
    _flowing: asyncio.Event = field(default_factory=asyncio.Event)
    _is_cut: bool = False

    @classmethod
    @asynccontextmanager
    async def to(cls, host: str, port: int) -> AsyncIterator[Line]:
        """A line to ``host:port`` for as long as the block runs."""
        line = cls(host, port)
        line._flowing.set()
        line._server = await asyncio.start_server(line._carry, "127.0.0.1", 0)
        line.port = line._server.sockets[0].getsockname()[1]
        try:
            yield line
        finally:
            line._server.close()
            line.cut()
            if line._open:
                await asyncio.wait(line._open)

    def cut(self) -> None:
        """Break every connection, and every new one at once, until ``mend``."""
        self._is_cut = True
        self._flowing.set()
        for task in self._open:
            task.cancel()

    def mend(self) -> None:
        """Let new connections through again."""
        self._is_cut = False

    def drop(self) -> None:
        """Bytes stop without a word, as with a pulled cable; ``flow`` lets them on."""
        self._flowing.clear()

    def flow(self) -> None:
        """Undo ``drop``: what was held goes on."""
        self._flowing.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            back, far = await asyncio.open_connection(self.host, self.far_port)
            self.accepted += 1
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, far, self.up))
                both.create_task(self._pump(back, writer, self.down))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # A broken line is what this class is for; both ends see it below.
        finally:
            self._open.discard(task)
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction
    ) -> None:
        carried = 0
        while data := await reader.read(_PIECE):
            await self._flowing.wait()
            if way.latency:
                await asyncio.sleep(way.latency.total_seconds())
            if way.rate:
                await asyncio.sleep(len(data) / way.rate)
            if 0 <= way.cut_after <= carried + len(data):
                writer.write(data[: way.cut_after - carried])
                await writer.drain()
                raise ConnectionResetError("cut here, as told")
            writer.write(data)
            await writer.drain()
            carried += len(data)
            way.carried += len(data)
        writer.write_eof()
