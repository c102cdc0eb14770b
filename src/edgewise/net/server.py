"""HTTPS servers: typed routes, client certificates, problem documents.

aiohttp's low-level server under uvloop: the only common Python server that hands the
client certificate to the program. There is no framework above it: a request is one dict
look-up, one msgspec decode, one call and one encode, because ten thousand nodes ask once
a minute each.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import re
import resource
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Protocol
from urllib.parse import unquote

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from edgewise.model.errors import (
    BadUsage,
    EdgewiseError,
    Forbidden,
    NotFound,
    Unauthenticated,
    Untrusted,
)
from edgewise.net import bodies, contents, problems
from edgewise.net.peers import peer_of, read_peer
from edgewise.net.poll_lines import BODY, ENDS, SLICE, Poll, PollLines
from edgewise.net.routes import Bytes, Call, Events, FileAnswer, Peer, Route, missing, query_of
from edgewise.net.strangers import HANDSHAKE, Bounds, Framework, Strangers
from edgewise.protocol.api import Problem
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

BACKLOG: Final = 4096
"""Connections the kernel keeps while we shake hands: a region that comes back at once."""
KEEP_ALIVE: Final = timedelta(seconds=300)
"""Longer than any hold, so that a node's connection lives from poll to poll."""
SWEEP: Final = timedelta(seconds=30)
"""How late a connection that asks nothing is ended."""
GRACE_S: Final = 2.0
"""What a running call has when the server closes."""
EVENT_HEARTBEAT: Final = timedelta(seconds=15)
"""A comment line keeps proxies from cutting a quiet event stream."""

LARGE_BLOCK: Final = 128 << 10
"""Bytes from which on a block of memory is a mapping of its own: glibc's first value, kept."""
_M_MMAP_THRESHOLD: Final = -3
"""malloc.h."""

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Listen:
    """Where to listen. Port 0: the kernel chooses."""

    host: str = "127.0.0.1"
    port: int = 0
    tls: ssl.SSLContext | None = None
    """None is for tests: then nobody has an identity."""
    strangers: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Mount:
    """Everything below ``prefix``, answered by somebody else's protocol (git smart HTTP).

    ``answer`` gets a ``Request`` and authorises by itself.
    """

    prefix: str
    answer: Callable[[Any], Awaitable[web.StreamResponse]]


Refused = Callable[[Peer, str, str], Awaitable[None]]
"""(peer, method and path, why)"""


class Gate(Protocol):
    """Says what people may do. Implementations: net.gate.PeopleGate, testing.loopback_hub."""

    def admit(self, peer: Peer, headers: Mapping[str, str]) -> Peer:
        """The peer with its rights, by its certificate or the API token in the headers.

        Raises Unauthenticated for a token that is no good.
        """


class Request(web.BaseRequest):
    """aiohttp's request, with what a mounted protocol looks for."""

    peer: Peer
    match_info: dict[str, str]


class _Complaints(logging.Handler):
    """aiohttp's own log lines. What a stranger sends that is no HTTP is answered with 400 and
    is worth no line: whoever can connect could fill the disk."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._to = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        theirs = isinstance(error, HttpProcessingError | RequestPayloadError)
        if theirs or record.levelno < logging.WARNING:
            return
        said = f"{record.getMessage()}: {error!r}" if error else record.getMessage()
        self._to.event("http", "error", because=said[:500])


def _quiet_logger(log: Log) -> logging.Logger:
    """One of its own, outside the tree of loggers."""
    logger = logging.Logger("edgewise.http")
    logger.addHandler(_Complaints(log))
    return logger


class Server:
    """One port, many routes: ``start`` it, ``close`` it."""

    def __init__(
        self,
        routes: Iterable[Route],
        clock: Clock,
        chance: Chance,
        log: Log,
        mounts: Iterable[Mount] = (),
        gate: Gate | None = None,
    ) -> None:
        """``gate``: without one no person has any right."""
        self._gate = gate
        self._clock = clock
        self._chance = chance
        self._log = log
        self._mounts = tuple(mounts)
        self.routes: tuple[Route, ...] = tuple(routes)
        self._exact: dict[tuple[str, str], tuple[Route, Any]] = {}
        self._patterns: list[tuple[re.Pattern[str], Route, Any]] = []
        for route in self.routes:
            decoder = None if route.request is None else msgspec.json.Decoder(route.request)
            if route.parameters:
                self._patterns.append((route.pattern(), route, decoder))
            else:
                self._exact[route.method, route.path] = (route, decoder)
        self.on_refused: Refused | None = None
        """Told of every call that the caller may not make, or that failed verification."""
        self.on_failed: Refused | None = None
        """Told of every other call that should have changed something and did not."""
        self._http: web.Server | None = None
        self._lines: PollLines | None = None
        self._strangers: Strangers | None = None
        self._listening: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self.port = 0

    async def start(self, listen: Listen) -> None:
        """Listen. Raises BadUsage when the address is taken or not ours."""
        strangers = Strangers(listen.strangers, raise_file_limit())
        server = Framework(
            self._respond,
            strangers=strangers,
            request_factory=_request,
            access_log=None,
            logger=_quiet_logger(self._log),
            keepalive_timeout=KEEP_ALIVE.total_seconds(),
            tcp_keepalive=True,
        )
        held = tuple(r.path for r in self.routes if r.held and r.at_most >= BODY)
        lines = PollLines(held, self._answer_poll, server, self._clock, strangers)
        try:
            self._listening = await asyncio.get_running_loop().create_server(
                lines.line,
                listen.host,
                listen.port,
                backlog=BACKLOG,
                ssl=listen.tls,
                ssl_handshake_timeout=HANDSHAKE.total_seconds() if listen.tls else None,
                reuse_address=True,
            )
        except OSError as error:
            raise BadUsage(
                f"cannot listen on {listen.host}:{listen.port}: {error.strerror or error}",
                hint="choose another address with --listen HOST:PORT",
            ) from error
        self._http, self._lines, self._strangers = server, lines, strangers
        self._sweeping = asyncio.create_task(self._sweep(lines))
        self.port = self._listening.sockets[0].getsockname()[1]

    async def _sweep(self, lines: PollLines) -> None:
        while True:
            await self._clock.sleep(SWEEP)
            lines.sweep(KEEP_ALIVE.total_seconds())

    async def close(self) -> None:
        """Stop listening, end event streams, give running calls two seconds."""
        self._stop.set()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._listening is None or self._lines is None or self._http is None:
            return
        self._listening.close()
        await asyncio.sleep(0)  # what has come already begins to be handled
        self._http.pre_shutdown()
        await asyncio.gather(self._lines.close(GRACE_S), self._http.shutdown(GRACE_S))

    async def _respond(self, request: Any) -> web.StreamResponse:
        """What the framework calls."""
        strangers, connection = self._strangers, request.transport
        if strangers is None or connection is None:  # the peer has gone
            return web.Response(status=499)
        strangers.began(connection)
        try:
            answer = await self._supervised(request, self._answer)
        finally:
            strangers.ended(connection)
        return _response(answer) if isinstance(answer, Bytes) else answer

    def _answer_poll(self, poll: Poll) -> Coroutine[Any, Any, Bytes | None]:
        """What a line of ``net.poll_lines`` calls."""
        return self._supervised(poll, self._hold)

    async def _supervised(self, request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        """The one supervising function: whatever goes wrong leaves as a problem document."""
        started = self._clock.monotonic()
        try:
            response = await answer(request)
        except EdgewiseError as error:
            response = _problem(problems.problem_of(error))
            await self._tell(request, error)
        except problems.Refusal as refused:
            response = _problem(refused.problem)
        except ConnectionError:
            # The caller left while its answer was made (a held poll of a node that was
            # restarted): nobody reads this, and it is no error worth a traceback.
            response = Bytes(b"", status=499)
        except (asyncio.CancelledError, HttpProcessingError):
            raise
        except Exception as error:  # noqa: BLE001 - a fault of ours must not end the connection
            identifier = self._chance.token(6).hex()
            self._log.event(
                "unexpected error",
                "error",
                problem=identifier,
                method=request.method,
                path=request.path,
                error=repr(error),
                where=_where(error),
            )
            response = _problem(problems.internal(identifier))
        self._log.event(
            "request",
            "debug",
            method=request.method,
            path=request.path,
            status=204 if response is None else response.status,
            ms=round((self._clock.monotonic() - started) * 1000, 1),
        )
        return response

    async def _tell(self, request: Any, error: EdgewiseError) -> None:
        """The audit log hears of what was refused, and of changes that failed."""
        peer: Peer = getattr(request, "peer", None) or self._peer(request)
        call = f"{request.method} {request.path}"
        if isinstance(error, Forbidden | Untrusted):
            if self.on_refused is not None:
                await self.on_refused(peer, call, str(error))
        elif self.on_failed is not None and request.method != "GET" and peer.role == "user":
            await self.on_failed(peer, call, f"{type(error).__name__}: {error}")

    def _admit(self, peer: Peer, request: Any) -> Peer:
        return self._gate.admit(peer, request.headers) if self._gate is not None else peer

    async def _answer(self, request: Request) -> web.StreamResponse:
        for mount in self._mounts:
            if request.path.startswith(mount.prefix):
                request.peer = self._admit(self._peer(request), request)
                request.match_info = {"tail": request.path.removeprefix(mount.prefix)}
                return await mount.answer(request)
        route, decoder, path = self._find(request)
        request.peer = peer = self._admit(self._peer(request), request)
        authorise(route, peer)
        query = query_of(route.query, request.query)
        raw = b"" if route.streams else await bodies.read(request, route.at_most)
        body = _decoded(route, decoder, raw)
        call = Call(
            peer,
            body,
            path,
            query,
            request.headers,
            lambda: bodies.stream(request, route.at_most),
            raw,
        )
        return await self._reply(request, route, await route.answer(call))

    def _hold(self, poll: Poll) -> Awaitable[Any]:
        """A poll's answer to come. No coroutine: each costs a held poll 400 bytes."""
        route, decoder = self._exact[poll.method, poll.path]
        poll.peer = peer = self._admit(self._peer(poll), poll)
        authorise(route, peer)
        body, poll.raw = _decoded(route, decoder, poll.raw), b""
        query = query_of(route.query, poll.headers)
        return route.answer(Call(peer, body, poll.headers, query, poll.headers, _no_stream))

    def _find(self, request: web.BaseRequest) -> tuple[Route, Any, dict[str, str]]:
        # rel_url.path is decoded; a slash that came as %2F must not make another segment.
        found = self._exact.get((request.method, request.path))
        if found is not None:
            return *found, {}
        raw = request.rel_url.raw_path
        allowed = [m for m, p in self._exact if p == request.path]
        if allowed:  # a path by name is a resource of its own, not one of a pattern
            raise problems.Refusal(problems.wrong_method(request.method, tuple(sorted(allowed))))
        for pattern, route, decoder in self._patterns:
            if match := pattern.fullmatch(raw):
                if route.method == request.method or (request.method == "HEAD" and route.files):
                    return route, decoder, {k: unquote(v) for k, v in match.groupdict().items()}
                allowed += [route.method, "HEAD"] if route.files else [route.method]
        if allowed:
            raise problems.Refusal(
                problems.wrong_method(request.method, tuple(sorted(set(allowed))))
            )
        raise NotFound(
            f"{request.path[:200]} is not a path of this API",
            hint="GET /v1/openapi.json lists them",
        )

    def _peer(self, request: web.BaseRequest | Poll) -> Peer:
        if isinstance(request, Poll):
            peer = request.line.peer
            if peer is None:
                peer = request.line.peer = _proven(request.transport, read_peer)
        else:
            peer = _proven(request.transport, peer_of)
        if peer.expires is not None and peer.expires < self._clock.now():
            # Verified at the handshake, expired since.
            return Peer(None, None, peer.address)
        return peer

    async def _reply(
        self, request: web.BaseRequest, route: Route, value: Any
    ) -> web.StreamResponse:
        if value is None:
            return web.Response(status=204)
        if isinstance(value, Bytes):
            if len(value.data) > SLICE:
                return await _in_slices(request, value)
            return _response(value)
        if isinstance(value, Events):
            return await self._events(request, route, value)
        if isinstance(value, FileAnswer):
            value = contents.of_file(value)
        if isinstance(value, contents.ContentAnswer):
            return await contents.send(request, value)
        return web.Response(
            body=_encode(value), status=route.status, content_type="application/json"
        )

    async def _events(
        self, request: web.BaseRequest, route: Route, events: Events
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        items = aiter(events.items)
        pending: asyncio.Future[Any] | None = None
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            while not stopping.done():
                pending = pending or asyncio.ensure_future(anext(items, _END))
                await asyncio.wait(
                    {pending, stopping},
                    timeout=EVENT_HEARTBEAT.total_seconds(),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if not self._still(request, route):
                    break
                if not pending.done():
                    await response.write(b": still here\n\n")
                    continue
                item, pending = pending.result(), None
                if item is _END:
                    break
                await response.write(b"data: " + _encode(item) + b"\n\n")
            await response.write_eof()
        except (ConnectionError, EdgewiseError):
            pass  # the reader left, or may not see this any more
        finally:
            for task in (pending, stopping):
                if task is not None:
                    task.cancel()
        return response

    def _still(self, request: Any, route: Route) -> bool:
        """Whether the caller may do now what it could when its stream began. Another selector
        ends it as well: the next call gets what may be seen then."""
        peer = self._admit(self._peer(request), request)
        authorise(route, peer)
        before: Peer = request.peer
        return peer.rights == before.rights


_END: Final = object()


def authorise(route: Route, peer: Peer) -> None:
    """Raise Forbidden or Unauthenticated unless the peer may call the route."""
    if "anyone" in route.allow:
        return
    if peer.id is None:
        raise Unauthenticated()
    if peer.role not in route.allow:
        raise Forbidden(
            f"{peer.id} may not call {route.method} {route.path}",
            hint=f"it is for: {', '.join(sorted(route.allow))}",
        )
    if peer.role == "user":
        _authorise_person(route, peer)


def _authorise_person(route: Route, peer: Peer) -> None:
    if peer.ended:
        raise Forbidden(peer.ended, hint="`edgewise login` makes it anew")
    if peer.token and not route.tokens:
        raise Forbidden(
            f"{route.method} {route.path} takes a person, not an API token",
            hint="log in with `edgewise login`",
        )
    if route.needs is None:  # a machine's route, or one whose author forgot to say
        raise Forbidden(f"{peer.id} may not call {route.method} {route.path}")
    if route.needs == "self":
        return
    if not peer.rights.somewhere(route.needs):
        raise missing(route.needs, peer)
    if route.reach == "everything" and not peer.rights.everywhere(route.needs):
        raise missing(route.needs, peer, "this call concerns the whole organisation")


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one; returns it. One socket per node."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    # Size 0 switches aiohttp's own bound off: ours is per route and gives a problem document.
    return Request(
        message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=0
    )


def tune_memory() -> None:
    """For a process that keeps tens of thousands of connections; call it once it is set up.

    What exists then is never garbage, and full collections over a million live objects
    cost more than what they find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    _map_large_blocks()


def _map_large_blocks() -> None:
    """Keep every TLS connection's read buffer in a mapping of its own (mallopt(3)).

    uvloop gives each connection 256 KiB and uses the first page or two. On the heap, where
    glibc moves such blocks after the first of them was freed, they take over pages that
    others have written to: 19 KB more for each of 10,000 nodes. Other C libraries do
    without.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)
    except (OSError, AttributeError):
        return


def _proven(transport: asyncio.Transport | None, read: Callable[[Any, str], Peer]) -> Peer:
    if transport is None:
        raise ConnectionResetError("the peer has gone")
    address = transport.get_extra_info("peername")
    return read(transport.get_extra_info("ssl_object"), str(address[0]) if address else "unknown")


def _decoded(route: Route, decoder: Any, raw: bytes) -> Any:
    if decoder is None:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadUsage(
            f"the body of {route.method} {route.path} is malformed: {error}",
            hint="GET /v1/openapi.json describes it",
        ) from error


async def _no_stream() -> AsyncIterator[bytes]:
    nothing: tuple[bytes, ...] = ()
    for piece in nothing:
        yield piece


def _problem(problem: Problem) -> Bytes:
    headers = {}
    if problem.retry_after_s:
        headers["Retry-After"] = str(max(1, round(problem.retry_after_s)))
    if problem.status == 405:
        headers["Allow"] = problem.hint.removeprefix("use ").replace(" or ", ", ")
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Bytes(problems.encoded(problem), problems.CONTENT_TYPE, problem.status, headers)


def _response(answer: Bytes) -> web.Response:
    response = web.Response(
        body=answer.data,
        status=answer.status,
        content_type=answer.content_type,
        headers=answer.headers or None,
    )
    if answer.status in ENDS:
        response.force_close()
    return response


async def _in_slices(request: web.BaseRequest, answer: Bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_type = answer.content_type
    response.content_length = len(answer.data)
    await response.prepare(request)
    for start in range(0, len(answer.data), SLICE):
        await response.write(answer.data[start : start + SLICE])
    await response.write_eof()
    return response


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    code = trace.tb_frame.f_code
    return f"{code.co_filename}:{trace.tb_lineno} {code.co_qualname}"
