"""The gateway's other half: ports that lead to an app, over mTLS with the app's own SVID.

TLS ends here; the bytes go to the app's port on loopback as they are, whatever protocol they
speak. A caller without a certificate, or with one that is not named, gets the reason as an
HTTP answer. It lives in a thread with a loop of its own: what an app transfers must not keep
the agent from its probes.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Literal

import msgspec

from edgewise.identity.ingress import admits
from edgewise.identity.workload_ports import LocalSvid
from edgewise.model.names import SpiffeId
from edgewise.net.tls import load_svid
from edgewise.runtime.credentials import pem_of

CONNECTIONS: Final = 128
"""Of one ingress; about 60 KB each. A caller beyond them is told to try again."""
BACKLOG: Final = 128
HANDSHAKE_S: Final = 10.0
"""A small machine under load takes a second."""
CONNECT_S: Final = 5.0
IDLE_S: Final = 3600.0
"""Without a byte in either direction; an app's own pings are for less."""
LINGER_S: Final = 2.0
"""Reading a refused request, so that its sender gets the answer instead of a reset."""
PIECE: Final = 64 << 10
"""Bytes read at a time, and buffered for an app that does not take more."""

Place = tuple[str, int]
"""Address and port to listen on."""
Reason = Literal["no-certificate", "caller", "busy", "app"]
"""Why a caller did not get through; docs/ingress.md explains each."""


class Refusal(msgspec.Struct, frozen=True):
    """What a refused caller reads: RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    hint: str
    """The next move."""
    reason: Reason


@dataclass(frozen=True, slots=True)
class Door:
    """One port, and everything that decides about it."""

    app: str
    place: Place
    to: int
    """The app's port on 127.0.0.1."""
    allow: tuple[str, ...]
    own: frozenset[str]
    """The organisation's trust domains."""
    svid: LocalSvid
    roots: tuple[bytes, ...]
    """DER, of the trust domains that may call."""


@dataclass(slots=True, eq=False)
class _Open:
    """A door that listens."""

    door: Door
    listening: socket.socket
    context: ssl.SSLContext
    server: asyncio.Server | None = None
    inside: dict[asyncio.StreamWriter, SpiffeId] = field(default_factory=dict)


Told = Callable[[Door, Reason, str], None]
"""(door, reason, sentence); called in the ingress's thread."""


class Ingress:
    """``start`` its thread, ``set`` the doors as often as they change, ``close``."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ingress", daemon=True)
        self._open: dict[Place, _Open] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._serving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin; nothing listens yet."""
        self._thread.start()

    async def set(self, doors: Mapping[Place, Door]) -> dict[Place, str]:
        """Have just these doors; connections that stay allowed go on. Returns what could not
        be opened, and why."""
        future = asyncio.run_coroutine_threadsafe(self._set(dict(doors)), self._loop)
        return await asyncio.wrap_future(future)

    def counts(self) -> dict[tuple[str, str], int]:
        """Connections by app and reason (empty: let through), since the start."""
        return dict(self._counts)

    async def close(self) -> None:
        """Close every port and connection."""
        if self._thread.is_alive():
            await self.set({})
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._end(), self._loop))
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join)
        self._loop.close()

    # In the thread

    async def _set(self, doors: dict[Place, Door]) -> dict[Place, str]:
        problems: dict[Place, str] = {}
        for place in self._open.keys() - doors.keys():
            self._shut(self._open.pop(place))
        for place, door in doors.items():
            try:
                await self._change(place, door)
            except (OSError, ValueError) as error:
                problems[place] = f"{error.strerror if isinstance(error, OSError) else error}"
        return problems

    async def _change(self, place: Place, door: Door) -> None:
        before = self._open.get(place)
        if before is not None and before.door.roots == door.roots:
            if before.door.svid != door.svid:
                load_svid(before.context, door.svid)
            before.door = door
            self._look_again(before)
            return
        context = _context(door)
        listening = before.listening if before else socket.create_server(place, backlog=BACKLOG)
        opened = _Open(door, listening, context, inside=before.inside if before else {})
        self._open[place] = opened
        # Through a copy of the descriptor: nobody is turned away while contexts change.
        opened.server = await asyncio.start_server(
            lambda reader, writer: self._serve(opened, reader, writer),
            sock=listening.dup(),
            ssl=context,
            ssl_handshake_timeout=HANDSHAKE_S,
            limit=PIECE,
        )
        if before is not None and before.server is not None:
            before.server.close()
        self._look_again(opened)

    def _look_again(self, opened: _Open) -> None:
        for writer, peer in list(opened.inside.items()):
            if not admits(opened.door.allow, peer, opened.door.own):
                writer.transport.abort()

    def _shut(self, opened: _Open) -> None:
        if opened.server is not None:
            opened.server.close()
        opened.listening.close()
        for writer in list(opened.inside):
            writer.transport.abort()

    async def _end(self) -> None:
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(
        self, opened: _Open, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if task := asyncio.current_task():
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        try:
            refused = self._judge(opened, writer)
            if refused is None:
                refused = await self._pass_on(opened, reader, writer)
            if refused is not None:
                await self._explain(opened.door, refused, reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # one side has gone, and the other is told by the close below
        finally:
            opened.inside.pop(writer, None)
            writer.close()
            with suppress(OSError, TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), LINGER_S)

    def _judge(self, opened: _Open, writer: asyncio.StreamWriter) -> Refusal | None:
        door = opened.door
        names = [
            value
            for kind, value in (writer.get_extra_info("peercert") or {}).get("subjectAltName", ())
            if kind == "URI"
        ]
        if not names:
            return _refusal(
                "no-certificate",
                401,
                f"{door.app} is called with a client certificate, and there is none",
                "call through your node's egress gateway, or with an SVID of your own",
            )
        try:
            (name,) = names
            peer = SpiffeId.parse(name)
        except ValueError:
            peer = None
        if peer is None or not admits(door.allow, peer, door.own):
            return _refusal(
                "caller",
                403,
                f"{', '.join(names)[:300]} may not call {door.app}",
                f"name it in the ingress of App {door.app}, under allow",
            )
        if len(opened.inside) >= CONNECTIONS:
            return _refusal(
                "busy", 503, f"{door.app} has {CONNECTIONS} connections", "try again in a moment"
            )
        opened.inside[writer] = peer
        return None

    async def _pass_on(
        self, opened: _Open, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Refusal | None:
        door = opened.door
        try:
            async with asyncio.timeout(CONNECT_S):
                near_in, near = await asyncio.open_connection("127.0.0.1", door.to, limit=PIECE)
        except (OSError, TimeoutError) as error:
            return _refusal(
                "app",
                502,
                f"{door.app} does not listen on port {door.to}: {str(error) or 'no answer'}",
                "look at the app with `edgewise node show`",
            )
        self._counts[door.app, ""] += 1
        up = asyncio.ensure_future(_pump(reader, near))
        down = asyncio.ensure_future(_pump(near_in, writer))
        try:
            # A caller that ended its half still gets the answer; one that has gone does not.
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
            if not down.done() and not up.exception():
                await down
        finally:
            near.close()
            for pump in (up, down):
                pump.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
        return None

    async def _explain(
        self,
        door: Door,
        refused: Refusal,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._counts[door.app, refused.reason] += 1
        self._told(door, refused.reason, refused.detail)
        body = msgspec.json.encode(refused)
        head = (
            f"HTTP/1.1 {refused.status} {refused.title}\r\n"
            f"Content-Type: application/problem+json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await reader.readuntil(b"\r\n\r\n")


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while True:
        async with asyncio.timeout(IDLE_S):
            data = await source.read(PIECE)
        if not data:
            break
        sink.write(data)
        async with asyncio.timeout(IDLE_S):
            await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()


def _refusal(reason: Reason, status: int, detail: str, hint: str) -> Refusal:
    title = HTTPStatus(status).phrase
    return Refusal(f"https://edgewise.dev/ingress/{reason}", title, status, detail, hint, reason)


def _context(door: Door) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # Asked for, and looked at after the handshake: who has none is told so.
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.load_verify_locations(cadata=pem_of(door.roots))
    load_svid(context, door.svid)
    return context
