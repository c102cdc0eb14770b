"""Connections that wait: a held poll keeps little more than its TLS connection.

A web framework keeps a parser, a request, two streams, their buffers and two tasks for each
connection: 10 KB, which 10,000 nodes ask of a hub for as long as it lives. A poll needs none
of them. So every connection begins as a ``PollLine``, which understands one thing: a plain
POST to a route that holds polls. Whatever else comes, or comes in another way, is handed to
the framework with all bytes as they came, and stays there until the connection ends.

Nothing is decided here about who may do what: ``Answer`` (net.server) does that.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from email.utils import format_datetime
from functools import lru_cache
from http import HTTPStatus
from typing import Any, Final, Literal, cast

from edgewise.net.routes import Bytes, Peer
from edgewise.net.strangers import Strangers
from edgewise.runtime.clock import Clock

HEAD: Final = 2 << 10
"""Bytes of a poll's head; ours have 150. A longer one is the framework's."""
BODY: Final = 16 << 10
"""Bytes of a poll's body that are gathered here: a hundred receipts are sent another way."""
AHEAD: Final = HEAD + BODY
"""Bytes that a caller may send before its poll is answered; nobody of ours does."""
SLICE: Final = 2 << 10
"""Bytes of an answer written at once. OpenSSL keeps a buffer of the largest write for as
long as a connection lives: 10 KB for each of 10,000 nodes after one wake-up."""

ENDS: Final = frozenset((401, 408, 413))
"""The rest of a body that is too large is not read; an expired peer shall come anew."""

_PLAIN: Final = frozenset(
    (b"host", b"accept", b"accept-encoding", b"content-length", b"content-type", b"user-agent")
)
"""Headers that change nothing in how a poll is read or judged. One with any other (a token,
an encoding, an expectation) goes to the framework."""
_HEADER: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\t]*?)[ \t]*")
_NUMBER: Final = re.compile(rb"[0-9]{1,6}")


@dataclass(slots=True)
class Poll:
    """One poll, as far as its judges look at it."""

    line: PollLine
    path: str
    raw: bytes
    peer: Peer | None = None
    method: str = "POST"

    @property
    def transport(self) -> asyncio.Transport | None:
        """None once the caller has gone."""
        return self.line.transport

    @property
    def headers(self) -> Mapping[str, str]:
        """None that count: a poll with such is not read here."""
        return {}


Answer = Callable[[Poll], Coroutine[Any, Any, Bytes | None]]
"""What to answer. Whatever goes wrong is an answer as well; only cancelling raises."""


def poll_in(data: bytes, paths: tuple[str, ...]) -> tuple[str, int, int] | Literal["", "other"]:
    """The first poll in what a caller has sent: path, begin and end of its body.

    Empty while it may become one; ``other`` once it cannot (RFC 9112, sections 3, 5, 6.3).
    """
    end = data.find(b"\r\n\r\n", 0, HEAD)
    for path in paths:
        start = _start(path)
        if end < 0:
            if len(data) < HEAD and start.startswith(data[: len(start)]):
                return ""
        elif data.startswith(start, 0, end):
            length = _length(data[len(start) : end])
            if length is None or length > BODY:
                return "other"
            body = end + 4
            return (path, body, body + length) if len(data) >= body + length else ""
    return "other"


@lru_cache(16)
def _start(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\n".encode()


@lru_cache(256)  # nodes differ by the length alone
def _length(headers: bytes) -> int | None:
    """Bytes of the body; None unless every header is plain and single."""
    seen: dict[bytes, bytes] = {}
    for line in headers.split(b"\r\n"):
        match = _HEADER.fullmatch(line)
        name = match[1].lower() if match else b""
        if match is None or name not in _PLAIN or name in seen:
            return None
        seen[name] = match[2]
    length = seen.get(b"content-length", b"")
    return int(length) if b"host" in seen and _NUMBER.fullmatch(length) else None


class PollLine(asyncio.Protocol):
    """One connection."""

    __slots__ = ("_full", "_lines", "_received", "_task", "heard", "peer", "transport")

    def __init__(self, lines: PollLines) -> None:
        self._lines = lines
        self.transport: asyncio.Transport | None = None
        self.peer: Peer | None = None
        """Whom the certificate names, once asked: a connection never gets another one."""
        self._received = b""
        self._task: asyncio.Task[Bytes | None] | None = None
        self._full = False
        """The caller does not read what it was answered."""
        self.heard = 0.0
        """When it connected, or was last answered; by the server's clock."""

    @property
    def running(self) -> asyncio.Task[Bytes | None] | None:
        """The answer that is being made, or held."""
        return self._task

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast(asyncio.Transport, transport)
        # uvloop keeps the certificate's fields, read out, for whoever might ask; net.peers asks
        # the connection itself. 2 KB.
        if fields := transport.get_extra_info("peercert"):
            fields.clear()
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._lines.add(self)
        self._lines.strangers.connected(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol. What is being answered goes on: it may be writing."""
        if self.transport is not None:
            self._lines.strangers.left(self.transport)
        self.transport, self._received = None, b""
        self._lines.drop(self)

    def pause_writing(self) -> None:
        """See asyncio.Protocol: nothing more is answered until the caller has read."""
        self._full = True

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._full = False
        self._next()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._received += data
        if self._task is None and not self._full:
            self._next()
        elif len(self._received) > AHEAD:
            self.abort()

    def _next(self) -> None:
        transport = self.transport
        if transport is None or not self._received or self._task is not None:
            return
        found = poll_in(self._received, self._lines.paths)
        if found == "other":
            self._hand_over(transport)
        elif found:
            path, begin, end = found
            poll = Poll(self, path, self._received[begin:end])
            self._received = self._received[end:]
            self._lines.strangers.began(transport)
            self._task = self._lines.begin(poll)
            self._task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[Bytes | None]) -> None:
        self._task = None
        transport = self.transport
        if transport is None or task.cancelled():
            self.abort()
            return
        self.heard = self._lines.now()
        self._lines.strangers.ended(transport)
        answer = task.result()
        ends = self._lines.closing or (answer is not None and answer.status in ENDS)
        data = self._lines.written(answer, ends=ends)
        for start in range(0, len(data), SLICE):
            transport.write(data[start : start + SLICE])
        if ends:
            transport.close()
        elif not self._full:
            self._next()

    def _hand_over(self, transport: asyncio.Transport) -> None:
        """To the framework, as if it had had the connection from its first byte on."""
        received, self._received, self.transport = self._received, b"", None
        self._lines.drop(self)
        handler = self._lines.framework()
        handler.connection_made(transport)
        transport.set_protocol(handler)
        handler.data_received(received)

    def end(self) -> None:
        """Close when what was answered is written."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close now; what is being answered is answered to nobody."""
        if self.transport is not None:
            self.transport.abort()

    def cancel(self) -> None:
        """Give up what is being answered as well."""
        if self._task is not None:
            self._task.cancel()
        self.abort()


class PollLines:
    """All connections that the framework does not have."""

    def __init__(
        self,
        paths: tuple[str, ...],
        answer: Answer,
        framework: Callable[[], Any],
        clock: Clock,
        strangers: Strangers,
    ) -> None:
        """``paths``: of the routes that hold polls. ``framework``: a protocol for the rest."""
        self.paths: Final = paths
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self.framework: Final = framework
        self.strangers: Final = strangers
        self._clock = clock
        self._lines: set[PollLine] = set()
        self._date = 0, b""
        self._shared: tuple[Bytes, bytes] | None = None
        self.closing = False

    def __len__(self) -> int:
        return len(self._lines)

    def now(self) -> float:
        """Seconds of the server's clock."""
        return self._clock.monotonic()

    def begin(self, poll: Poll) -> asyncio.Task[Bytes | None]:
        """Answer it."""
        return self._loop.create_task(self._answer(poll))

    def line(self) -> PollLine:
        """For a connection that is about to begin."""
        return PollLine(self)

    def add(self, line: PollLine) -> None:
        """It is connected."""
        line.heard = self.now()
        self._lines.add(line)

    def drop(self, line: PollLine) -> None:
        """It has ended, or is the framework's."""
        self._lines.discard(line)

    def sweep(self, longest_s: float) -> None:
        """End those that have asked nothing for so long."""
        oldest = self.now() - longest_s
        for line in [one for one in self._lines if one.running is None and one.heard < oldest]:
            line.abort()

    async def close(self, wait_s: float) -> None:
        """End all connections; those that are being answered have so long to finish."""
        self.closing = True
        busy = []
        for line in tuple(self._lines):
            if (task := line.running) is None:
                line.end()
            else:
                busy.append(task)
        if busy:
            await asyncio.wait(busy, timeout=wait_s)
        for line in tuple(self._lines):
            if line.running is not None:
                line.cancel()

    def written(self, answer: Bytes | None, *, ends: bool) -> bytes:
        """The answer as it is sent. One that thousands share is put together once a second."""
        now = self._clock.now()
        second = int(now.timestamp())
        if second != self._date[0]:
            self._date = second, format_datetime(now, usegmt=True).encode()
            self._shared = None
        if answer is None:
            return _NOTHING % self._date[1]
        if ends:
            return _head(answer, self._date[1], b"Connection: close\r\n") + answer.data
        if self._shared is None or self._shared[0] is not answer:
            self._shared = answer, _head(answer, self._date[1], b"") + answer.data
        return self._shared[1]


def _head(answer: Bytes, date: bytes, more: bytes) -> bytes:
    """Status line and headers (RFC 9110, section 6.6.1: with the date)."""
    named = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    return b"HTTP/1.1 %d %b\r\nDate: %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
        answer.status,
        _reason(answer.status),
        date,
        answer.content_type.encode(),
        len(answer.data),
        named.encode("latin-1"),
        more,
    )


_NOTHING: Final = b"HTTP/1.1 204 No Content\r\nDate: %s\r\n\r\n"


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""
