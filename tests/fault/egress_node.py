"""A node's egress gateway with real sockets, real TLS and far ends that the test bends."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import AF_UNIX, socket
from typing import Any

from edgewise.identity.workload_ports import Caller
from edgewise.net.egress.bridge import AgentSupply, serve
from edgewise.net.egress.gateway import Gateway
from edgewise.net.egress.ports import Bounds
from edgewise.net.egress.resolver import Found, Then, literal
from edgewise.protocol.egress import EgressRule, EgressRules
from edgewise.runtime.clock import SystemClock
from edgewise.testing.egress import MemorySvids, TestAuthority, bundles_of, server_tls
from edgewise.testing.log import ListLog

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HOME = ("127.0.0.0/8",)
STOCK = "spiffe://eu.acme/app/shops/stock"


class OneCaller:
    """Everybody is this one."""

    def __init__(self, app: str = "till") -> None:
        self.caller: Caller | None = Caller(1, 0, 0, app=app)

    def of_unix(self, sock: socket) -> Caller | None:
        assert sock.family == AF_UNIX
        return self.caller

    def of_tcp(self, sock: socket) -> Caller | None:
        return self.caller


class Names:
    """Every name leads to 127.0.0.1, unless the test says otherwise."""

    def __init__(self) -> None:
        self.known: dict[str, list[str] | str] = {}
        self.asked: list[str] = []

    def resolve(self, host: str, port: int, then: Then) -> None:
        self.asked.append(host)
        found = self.known.get(host, [host] if literal(host, port) else ["127.0.0.1"])
        if isinstance(found, str):
            then(found)
            return
        places: list[Found] = [p for p in (literal(a, port) for a in found) if p is not None]
        then(places)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> Any:
        assert self.headers["content-type"] == "application/problem+json"
        found = json.loads(self.body)
        assert found["detail"]
        assert found["hint"]
        return found


@dataclass
class Node:
    gateway: Gateway
    port: int
    unix: Path
    svids: MemorySvids
    callers: OneCaller
    names: Names
    log: ListLog
    authority: TestAuthority
    servers: list[asyncio.Server] = field(default_factory=list)
    peers: list[Any] = field(default_factory=list)
    """Certificates that far ends saw, one for each connection."""

    async def far_end(
        self,
        talk: Serve | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        plain: bool = False,
    ) -> int:
        """A server on loopback with identity STOCK; returns its port."""
        if tls is None and not plain:
            svid = self.authority.svid("/app/shops/stock", "stock.acme.net")
            tls = server_tls(svid, [self.authority.root])

        async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.peers.append(writer.get_extra_info("peercert"))
            try:
                await (talk or echo)(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(noted, "127.0.0.1", 0, ssl=tls)
        self.servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def follow(self, *rules: EgressRule, **more: Any) -> None:
        """The policy is this one."""
        self.gateway.follow(EgressRules("out", allow=rules, **more))

    def rule(self, port: int, **more: Any) -> EgressRule:
        said: dict[str, Any] = {"spiffe_ids": (STOCK,), "addresses": HOME, **more}
        if said.get("mtls") is False or "trust" in said:
            said.pop("spiffe_ids")
        return EgressRule(said.pop("host", "stock.acme.net"), (port,), **said)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, request: bytes | str, *, method: str = "GET") -> Answer:
        """One request on a connection of its own. ``host:port/path`` is short for a GET."""
        reader, writer = await self.connect()
        data = request if isinstance(request, bytes) else get(request, method)
        writer.write(data)
        try:
            return await read_answer(reader, method)
        finally:
            writer.close()


def get(url: str, method: str = "GET") -> bytes:
    host = url.partition("/")[0]
    return f"{method} http://{url} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    status = int(lines[0].split(" ")[1])
    headers = {
        k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)
    }
    if method == "HEAD" or status in (101, 204, 304) or status < 200:
        return Answer(status, headers, b"")
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        await reader.readline()
        return Answer(status, headers, body)
    if "content-length" in headers:
        return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))
    return Answer(status, headers, await reader.read())


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    low = head.lower()
    body = b""
    if "transfer-encoding: chunked" in low:
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
        assert await reader.readline() == b"\r\n"
    elif "content-length: " in low:
        length = int(low.partition("content-length: ")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
    return head, body


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the request's head and body."""
    while True:
        head, body = await read_request(reader)
        said = head.encode() + body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said))
        writer.write(b"" if head.startswith("HEAD") else said)
        await writer.drain()


def answers(data: bytes, *, close: bool = False) -> Serve:
    """Answers every request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(data)
            await writer.drain()
            if close:
                return

    return serve


@asynccontextmanager
async def node(tmp_path: Path, bounds: Bounds | None = None) -> AsyncIterator[Node]:
    """A gateway that runs; app ``till`` has an identity."""
    authority = TestAuthority()
    svids = MemorySvids(
        {"till": authority.svid("/app/shops/till"), "kiosk": authority.svid("/app/shops/kiosk")},
        bundles_of(authority),
    )
    callers, names, log, clock = OneCaller(), Names(), ListLog(), SystemClock()
    supply = AgentSupply(svids, clock)
    gateway = Gateway(callers, supply, clock, log, bounds=bounds, resolver=names)
    unix = tmp_path / "egress.sock"
    port = gateway.listen(0, unix)
    made = Node(gateway, port, unix, svids, callers, names, log, authority)
    running = asyncio.create_task(serve(gateway, supply))
    try:
        yield made
    finally:
        running.cancel()
        for server in made.servers:
            server.close()
        await asyncio.wait([running])
        bugs = [fields for what, fields in log.lines if what == "egress bug"]
        assert not bugs, bugs
