"""HTTP/2 over a unix socket, for local callers whom the kernel names.

Each request is one task, which ends with its stream, its connection, or the process that made
the connection (``http2_connection``).

Laws: a caller costs bounded memory whatever it sends or does not read; one user cannot take the
last connection of all others; what is not HTTP/2 is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from edgewise.host.callers import Peer
from edgewise.model.errors import NeedsPerson
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

CONNECTIONS: Final = 256
"""Connections at once: each costs a descriptor more for its process, and about 60 KB."""
CONNECTIONS_OF_ONE: Final = 64
"""Of one user, so that no user shuts out the others. Root has no such bound."""
BACKLOG: Final = 64

Handler = Callable[["Stream"], Awaitable[None]]
"""Serves one request to its end. Its own errors are its own business."""


class Closed(ConnectionError):
    """The stream is over: the caller has gone, or does not want it any more."""


class Connection(Protocol):
    """What a stream and the listener ask of a connection."""

    peer: Peer

    def consumed(self, number: int, flow: int) -> None:
        """Let the caller send so much more."""

    def room(self, number: int) -> int:
        """How much may be sent now. Raises Closed."""

    def headers(self, number: int, headers: list[tuple[str, str]], *, end: bool) -> None:
        """Raises Closed."""

    def data(self, number: int, data: bytes, *, end: bool) -> None:
        """Raises Closed."""

    def hang_up(self) -> None:
        """End it, with a word to the caller."""


class Stream:
    """One request, and its answer."""

    def __init__(self, connection: Connection, number: int, headers: dict[str, str]) -> None:
        self._connection = connection
        self.number = number
        self.headers = headers
        self._pieces: asyncio.Queue[tuple[bytes, int]] = asyncio.Queue()
        self.may_write = asyncio.Event()
        self.answered = False
        """Whether the head of the answer is sent."""

    @property
    def peer(self) -> Peer:
        """The process that made the connection."""
        return self._connection.peer

    def feed(self, data: bytes, flow: int) -> None:
        """Data has come; ``flow`` bytes of window were used for it. 0: there is no more."""
        self._pieces.put_nowait((data, flow))

    async def receive(self) -> bytes:
        """The next piece of the request; empty at its end."""
        data, flow = await self._pieces.get()
        if flow:
            self._connection.consumed(self.number, flow)
        else:
            self.feed(b"", 0)  # the end stays the end
        return data

    def head(self, headers: list[tuple[str, str]], *, end: bool = False) -> None:
        """Send the head of the answer. Raises Closed."""
        self.answered = True
        self._connection.headers(self.number, headers, end=end)

    async def send(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the answer, as the caller makes room for it. Raises Closed."""
        left = memoryview(data)
        while left:
            size = min(self._connection.room(self.number), len(left))
            if size <= 0:
                self.may_write.clear()
                await self.may_write.wait()
                continue
            last = end and size == len(left)
            self._connection.data(self.number, left[:size].tobytes(), end=last)
            left = left[size:]

    def trailers(self, headers: list[tuple[str, str]]) -> None:
        """End the answer. Raises Closed."""
        self._connection.headers(self.number, headers, end=True)


class Listener:
    """The socket, and who is connected to it."""

    def __init__(self, handler: Handler, clock: Clock, log: Log) -> None:
        self.handler = handler
        self.clock = clock
        self.log = log
        self._open: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._path = ""

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._open)

    def _connection(self) -> asyncio.Protocol:
        from edgewise.net.workload.http2_connection import Connection

        return Connection(self)

    async def start(self, path: str) -> None:
        """Listen; whoever runs here may connect. Raises NeedsPerson when that cannot be."""
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            server = await asyncio.get_running_loop().create_unix_server(
                self._connection, path, backlog=BACKLOG
            )
            # Not what keeps anybody out: the kernel says who calls.
            os.chmod(path, 0o666)
        except OSError as error:
            raise NeedsPerson(
                f"the Workload API cannot listen at {path}: {error}",
                hint="a path has at most 107 bytes; choose another with --workload-socket",
            ) from error
        self._server, self._path = server, path

    async def close(self) -> None:
        """Stop listening and hang up on everybody."""
        if self._server is None:
            return
        self._server.close()
        for connection in tuple(self._open):
            connection.hang_up()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        self._server = None

    def admit(self, connection: Connection, transport: asyncio.Transport) -> Peer:
        """Who connected. Raises TryLater or Forbidden when it cannot be told or is too much."""
        peer = Peer.of(transport.get_extra_info("socket"))
        same = sum(1 for one in self._open if one.peer.uid == peer.uid)
        if len(self._open) >= CONNECTIONS or (peer.uid and same >= CONNECTIONS_OF_ONE):
            peer.close()
            raise NeedsPerson(
                f"user {peer.uid} has {same} connections, all users {len(self._open)}: no more",
                hint="a program that opens a connection for every fetch should keep one",
            )
        self._open.add(connection)
        return peer

    def leave(self, connection: Connection) -> None:
        """It is over."""
        self._open.discard(connection)
