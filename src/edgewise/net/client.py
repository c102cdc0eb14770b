"""The HTTP client of agent, worker and CLI: few connections, strict reading, our errors.

Whatever the network or the far end does leaves this file as TryLater (it may work later),
Untrusted (it is not who or what it should be) or the error that the far end named in its
problem document. Standard library and msgspec only: the resident agent uses it.

Repeating a call must be harmless: a connection can break after the far end has acted.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import msgspec

from edgewise.delivery.ports import NotHere, Source
from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    TryLater,
    Untrusted,
)
from edgewise.model.names import SpiffeId
from edgewise.net.downloads import RANGE, Download, Watched, total
from edgewise.net.http1 import PIECE, ClosedEarly, Head, body_of, read_head
from edgewise.net.tls import peer_id, peer_uri
from edgewise.protocol import limits
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.problem import Problem
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.runtime.clock import Clock, SystemClock

CONNECT_S: Final = 10.0
"""To connect and shake hands: five lost SYNs' worth."""
CONNECTIONS: Final = 2
"""Per client: one long poll and one download. Each costs the agent 16 KiB and the hub 50."""
IDLE_S: Final = 50.0
"""Older kept connections are not used again: middleboxes forget flows after a minute."""
STALL_S: Final = 30.0
SLOWEST: Final = 64
"""A download that brings less than this many bytes a second over ``STALL_S`` is given up."""
PREFER_FIRST_AGAIN_S: Final = 300.0
"""After falling back to another URL, how long until the first one is tried again."""
HOLD_MARGIN_S: Final = 20.0
"""How much longer than the server's hold we wait for a poll's answer."""
LONGEST_WAIT: Final = timedelta(hours=1)
"""A server cannot send us away for longer."""

Expect = Callable[[SpiffeId], bool]
"""Whether a peer with this SPIFFE ID is who we want to talk to."""


class CertificateRefused(Untrusted):
    """The far end does not accept our certificate: expired, or from another organisation.

    A node then proves its enrolment key and rejoins.
    """


NO_HEADERS: Final[Mapping[str, str]] = {}
_PATH = re.compile(r"/[!-~]*")


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer with a status below 300."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to connect, and who must answer."""

    urls: tuple[str, ...]
    """``https://host:port`` in order of preference. ``http://`` only without a context."""
    tls: ssl.SSLContext | None = None
    expect: Expect | None = None
    """Asked after the handshake, before anything is sent. None: any certificate that
    ``tls`` accepts (a CDN, or first contact)."""
    uri: str = ""
    """The SPIFFE ID that a server of another organisation must prove; empty: see ``expect``."""

    def __post_init__(self) -> None:
        if not self.urls:
            raise BadUsage("there is no URL to connect to", hint="join with a new token")
        for url in self.urls:
            scheme, _, _ = _split(url)
            if (scheme == "https") != (self.tls is not None):
                raise BadUsage(f"{url} does not fit: https needs a TLS context, http has none")


@dataclass(slots=True, eq=False)
class _Line:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    url: str
    used: float = 0.0
    kept: bool = False
    """Whether it has carried an answer before."""


@dataclass(slots=True)
class _Pace:
    """Notices a download that only trickles (TUF's slow-retrieval attack)."""

    waited: float = 0.0
    got: int = 0

    def add(self, seconds: float, size: int) -> None:
        self.waited += seconds
        self.got += size
        if self.waited >= STALL_S:
            if self.got < SLOWEST * self.waited:
                raise TryLater(f"only {self.got} bytes came in {self.waited:.0f} s")
            self.waited, self.got = 0.0, 0


@dataclass(slots=True)
class Client:
    """Calls to one place that may have several URLs. Close it, or use ``async with``."""

    endpoint: Endpoint
    clock: Clock = field(default_factory=SystemClock)
    connections: int = CONNECTIONS
    strangers: int = field(default=0, init=False)
    """How often a server's certificate was not believed."""
    peer: SpiffeId | None = field(default=None, init=False)
    """Who answered the newest connection; None before the first, and where nobody has to."""
    _free: asyncio.Semaphore = field(init=False)
    _idle: list[_Line] = field(default_factory=list, init=False)
    _open: set[_Line] = field(default_factory=set, init=False)
    _first: int = field(default=0, init=False)
    _fell_back: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(self.connections)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; calls that run break off with TryLater."""
        for line in (*self._idle, *self._open):
            line.writer.transport.abort()
        self._idle.clear()

    def forget_connections(self) -> None:
        """Close what is idle, so that a renewed certificate or a mended link is used."""
        for line in self._idle:
            line.writer.transport.abort()
        self._idle.clear()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float = 30.0,
        at_most: int = limits.API_BODY,
    ) -> Response:
        """One call, whole within ``timeout`` seconds.

        Raises what the far end's problem document says, TryLater, or Untrusted.
        """
        try:
            async with asyncio.timeout(timeout):
                async with self._exchange(method, path, body, {}) as (head, line):
                    allowed = at_most if head.status < 300 else PIECE
                    data = b"".join([p async for p in body_of(line.reader, head, at_most=allowed)])
        except TimeoutError as error:
            raise TryLater(f"no answer to {method} {path} within {timeout:g} s") from error
        if head.status >= 300:
            raise error_of(head.status, head.headers, data)
        return Response(head.status, head.headers, data)

    async def stream(
        self,
        path: str,
        start: int = 0,
        *,
        end: int | None = None,
        at_most: int = limits.OBJECT,
    ) -> AsyncIterator[bytes]:
        """GET ``path`` from byte ``start`` on (and up to ``end``), in pieces of at most 64 KiB.

        Close the iterator early with ``aclose``. Raises as ``request``, and TryLater when
        the bytes stop or only trickle.
        """
        async with self.open(path, (start, end), at_most=at_most) as download:
            async with aclosing(download.pieces) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece

    @asynccontextmanager
    async def open(
        self,
        path: str,
        span: tuple[int, int | None],
        *,
        at_most: int,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> AsyncIterator[Download]:
        """As ``stream``, of the bytes from one offset up to another, with the file's size."""
        start, end = span
        last = "" if end is None else str(end - 1)
        more = {"range": f"bytes={start}-{last}"} if start or last else {}
        failed: EdgewiseError | None = None
        try:
            async with asyncio.timeout(CONNECT_S * len(self.endpoint.urls) + STALL_S) as limit:
                async with self._exchange("GET", path, None, {**headers, **more}) as (head, line):
                    limit.reschedule(None)
                    if head.status < 300 or (head.status == 416 and start and total(head) >= 0):
                        pieces = Watched(self._range(head, line, span, at_most))
                        yield Download(total(head), pieces.run())
                        if not pieces.whole:  # the rest would be taken for the next answer
                            line.writer.transport.abort()
                    else:
                        failed = _refusal(head, await _bounded(line, head), headers)
            if failed is not None:  # now, so that the connection is kept
                raise failed
        except TimeoutError as error:
            raise TryLater(f"no answer to GET {path} within {STALL_S:g} s") from error

    async def _range(
        self, head: Head, line: _Line, span: tuple[int, int | None], at_most: int
    ) -> AsyncIterator[bytes]:
        start, end = span
        # A server that ignores ranges sends all of it, and is cut off at ``end``.
        cut = end is not None and head.status == 200
        left = at_most if end is None else min(at_most, end - start)
        bound = max(at_most, limits.DELTA) if cut else left
        content = self._content(head, line, start, bound)
        async with aclosing(content) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                yield piece[:left]
                left -= len(piece)
                if cut and left <= 0:
                    line.writer.transport.abort()
                    return

    async def _content(
        self, head: Head, line: _Line, start: int, at_most: int
    ) -> AsyncIterator[bytes]:
        if head.status == 416 and start:
            said = RANGE.fullmatch(head.headers.get("content-range", ""))
            await _drain(line, head)
            if said is not None and said[2] == str(start):
                return  # Everything is here already.
            raise Untrusted(f"the server has no bytes from {start} on, though it had before")
        skip = start
        if head.status == 206:
            found = RANGE.fullmatch(head.headers.get("content-range", ""))
            if found is None or found[1] != str(start):
                raise Untrusted("the server answered another range than was asked for")
            skip = 0
        pieces = body_of(line.reader, head, at_most=at_most + skip)
        pace = _Pace()
        while True:
            began = self.clock.monotonic()
            try:
                async with asyncio.timeout(STALL_S):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            pace.add(self.clock.monotonic() - began, len(piece))
            # A server that ignores ranges sends all of it; what we have is passed over.
            passed = min(skip, len(piece))
            skip -= passed
            if len(piece) > passed:
                yield piece[passed:]

    @asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> AsyncIterator[tuple[Head, _Line]]:
        """Send one request; the connection is kept only if its answer was read to the end."""
        if not _PATH.fullmatch(path):
            raise BadUsage(f"{path!r} cannot be asked for")
        async with self._free:
            head, line = await self._send(method, path, body, headers)
            whole = False
            try:
                yield head, line
                whole = head.reusable
            except OSError as error:
                raise _broken(line, error) from error
            finally:
                self._open.discard(line)
                if whole and not line.writer.is_closing():
                    line.used = self.clock.monotonic()
                    line.kept = True
                    self._idle.append(line)
                else:
                    line.writer.transport.abort()

    async def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[Head, _Line]:
        while True:
            line = await self._line()
            self._open.add(line)
            done = False
            try:
                line.writer.write(_request(line.url, method, path, body, headers))
                if body:
                    line.writer.write(body)
                await line.writer.drain()
                head = await read_head(line.reader)
                done = True
            except ClosedEarly as error:
                if not line.kept:
                    raise ClosedEarly(
                        f"{line.url} closed the connection at once",
                        hint="it may be starting, or does not accept our certificate any more",
                    ) from error
                if method != "GET":
                    raise
                continue  # The server closed a kept connection just now: ask on another.
            except OSError as error:
                if line.kept and method == "GET":
                    continue
                raise _broken(line, error) from error
            finally:
                if not done:
                    self._open.discard(line)
                    line.writer.transport.abort()
            return head, line

    async def _line(self) -> _Line:
        """A kept connection that still looks alive, or a new one."""
        now = self.clock.monotonic()
        if self._first and now - self._fell_back > PREFER_FIRST_AGAIN_S:
            self._first = 0
            self.forget_connections()
        while self._idle:
            line = self._idle.pop()
            fresh = now - line.used < IDLE_S
            if fresh and not line.reader.at_eof() and not line.writer.is_closing():
                return line
            line.writer.transport.abort()
        return await self._connect()

    async def _connect(self) -> _Line:
        """The first URL that answers as the peer we want, from the last good one on."""
        urls = self.endpoint.urls
        failures: list[EdgewiseError] = []
        for offset in range(len(urls)):
            index = (self._first + offset) % len(urls)
            try:
                line = await self._open_line(urls[index])
            except EdgewiseError as error:
                failures.append(error)
                continue
            if index != self._first:
                self._first, self._fell_back = index, self.clock.monotonic()
            return line
        if len(failures) == 1:
            raise failures[0]
        what = "; ".join(map(str, failures))[:600]
        if all(isinstance(error, Untrusted) for error in failures):
            raise Untrusted(what)
        raise TryLater(what)

    async def _open_line(self, url: str) -> _Line:
        scheme, host, port = _split(url)
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self.endpoint.tls, limit=PIECE
                )
        except ssl.SSLCertVerificationError as error:
            self.strangers += 1
            raise Untrusted(
                f"{url} has a certificate that we do not trust: {error.verify_message}",
                hint="is the clock right, and is this the right address?",
            ) from error
        except TimeoutError as error:
            raise TryLater(f"{url} did not answer within {CONNECT_S:g} s") from error
        except (OSError, UnicodeError) as error:
            raise TryLater(f"cannot reach {url}: {error}") from error
        if scheme == "https" and self.endpoint.expect is not None:
            found = peer_id(writer.get_extra_info("ssl_object"))
            if found is None or not self.endpoint.expect(found):
                writer.transport.abort()
                raise Untrusted(
                    f"{url} proved to be {found or 'nobody we know'}, not whom we want",
                    hint="check the URL; a node must talk to its own region's relay or the hub",
                )
            self.peer = found
        if self.endpoint.uri:
            proven = peer_uri(writer.get_extra_info("ssl_object"))
            if proven != self.endpoint.uri:
                writer.transport.abort()
                raise Untrusted(
                    f"{url} proved to be {proven[:200] or 'nobody'}, not {self.endpoint.uri}",
                    hint="ask the other organisation for the endpoint's SPIFFE ID",
                )
        _notice_dead_links(writer.get_extra_info("socket"))
        return _Line(reader, writer, url)


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> EdgewiseError:
    """The error that an answer with a status of 300 or more stands for.

    The far end's words are cut to size and freed of control characters.
    """
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, RecursionError):
        problem = Problem(type="", title="", status=status, detail="", exit_code=0)
    what = _plain(problem.detail or problem.title) or f"the server answered {status}"
    hint = _plain(problem.hint)
    if problem.exit_code == 3 or status in (408, 425, 429, 502, 503, 504):
        seconds = problem.retry_after_s or _seconds(headers.get("retry-after", "")) or 5.0
        limit = LONGEST_WAIT.total_seconds()
        # min() keeps NaN out as well: comparisons with it are false.
        return TryLater(what, wait=timedelta(seconds=max(0.1, min(limit, seconds))), hint=hint)
    if problem.exit_code == 5:
        return Untrusted(what, hint=hint)
    if status == 404:
        return NotFound(what, hint=hint)
    if status == 409:
        return Conflict(what, hint=hint)
    if status in (401, 403):
        return Forbidden(what, hint=hint)
    if problem.exit_code == 2 or status in (400, 405, 413, 415):
        return BadUsage(what, hint=hint)
    if status < 400:
        where = _plain(headers.get("location", ""))[:200]
        return Untrusted(
            f"the server sends us elsewhere ({status} to {where or 'nowhere'})",
            hint="redirects are not followed: name the URL that they lead to",
        )
    if status >= 500 and problem.exit_code == 0:
        return TryLater(what, hint=hint)
    return NeedsPerson(what, hint=hint)


@dataclass(frozen=True, slots=True)
class HttpSource:
    """Content over HTTP: a relay, the hub or a CDN (``delivery.ports.Source``)."""

    client: Client
    root: str = "/v1/content/"

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        pieces = self.client.stream(self.root + path, start, end=end, at_most=at_most)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class SyncLine:
    """The node's long poll."""

    client: Client
    path: str = "/v1/sync"

    async def exchange(self, request: SyncRequest, hold: timedelta) -> SyncReply | None:
        """Say what is new, and wait up to ``hold`` (as the server last announced it).

        None: nothing new. Raises TryLater, Untrusted, or what the server says.
        """
        response = await self.client.request(
            "POST",
            self.path,
            encode(request),
            timeout=hold.total_seconds() + HOLD_MARGIN_S,
            at_most=limits.SYNC_REPLY,
        )
        if response.status == 204:
            return None
        return decode(
            response.body, SyncReply, what="the answer to a poll", at_most=limits.SYNC_REPLY
        )


def _request(
    url: str, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
) -> bytes:
    host = url.partition("://")[2].rstrip("/")
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", "accept-encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines += [f"content-length: {len(body)}", "content-type: application/json"]
    elif method != "GET":
        lines.append("content-length: 0")
    return "\r\n".join((*lines, "", "")).encode("ascii")


def _split(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. Raises BadUsage for what is not a plain http(s) origin."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BadUsage(f"{url!r} is not like https://host:port") from error
    plain = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or not plain or "@" in url:
        raise BadUsage(f"{url!r} is not like https://host:port")
    if not url.isascii() or any(c.isspace() for c in url):
        raise BadUsage(f"{url!r} is not like https://host:port")
    return parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _broken(line: _Line, error: OSError) -> EdgewiseError:
    # With TLS 1.3 the server judges our certificate after our handshake is done, so its
    # alert arrives where an answer should.
    reason = str(getattr(error, "reason", "") or "")
    if isinstance(error, ssl.SSLError) and re.search("ALERT.*(CERTIFICATE|UNKNOWN_CA)", reason):
        return CertificateRefused(
            f"{line.url} does not accept our certificate ({reason.lower().replace('_', ' ')})",
            hint="the agent rejoins by itself; if that fails, join with a new token",
        )
    if isinstance(error, TimeoutError):
        return TryLater(f"nothing came from {line.url} for {STALL_S:g} s")
    return TryLater(f"the connection to {line.url} broke: {error}")


def _notice_dead_links(sock: socket.socket) -> None:
    """Break a connection whose far end is gone within about a minute, in the kernel."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def _refusal(head: Head, body: bytes, sent: Mapping[str, str]) -> EdgewiseError:
    error = error_of(head.status, head.headers, body)
    if head.status == 504 and "only-if-cached" in sent.get("cache-control", ""):
        return NotHere(str(error))
    if head.status == 416:  # S3 does not say how many bytes there are; a whole file looks the same
        return TryLater("the server has no bytes from there on")
    return error


async def _bounded(line: _Line, head: Head) -> bytes:
    async with asyncio.timeout(STALL_S):
        return b"".join([p async for p in body_of(line.reader, head, at_most=PIECE)])


async def _drain(line: _Line, head: Head) -> None:
    await _bounded(line, head)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:2000]).strip()


def _seconds(text: str) -> float:
    return float(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0.0


def _meets_its_port(source: HttpSource) -> Source:
    return source
