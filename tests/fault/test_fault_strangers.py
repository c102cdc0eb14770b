"""Whoever has proved nothing cannot keep the hub's sockets, over real TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts
from edgewise.net import bodies
from edgewise.net.routes import ANYONE, Call, Route
from edgewise.net.server import Listen, Server
from edgewise.net.strangers import Bounds
from edgewise.net.tls import server_context
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import CredentialFiles
from edgewise.testing.chance import SeededChance
from edgewise.testing.log import ListLog

ASK = b"GET /v1/hello HTTP/1.1\r\nhost: hub\r\n\r\n"
Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def hello(call: Call[None]) -> str:
    return "hello"


async def take(call: Call[dict[str, str]]) -> dict[str, str]:
    return call.body


class Hub:
    def __init__(self, folder: Path) -> None:
        clock = SystemClock()
        self.authority = Authority.open_or_create(folder / "pki", "acme", clock)
        self.own = CredentialFiles(folder / "own")
        self.authority.issue_hub(self.own, Hosts.of(["127.0.0.1"]))
        self.member = CredentialFiles(folder / "member")
        self.authority.issue_operator("ada", self.member.directory, "https://127.0.0.1")
        self.log = ListLog()
        routes = [
            Route("GET", "/v1/hello", "", hello, ANYONE),
            Route("POST", "/v1/take", "", take, ANYONE, request=dict[str, str]),
        ]
        self.server = Server(routes, clock, SeededChance(), self.log)

    async def listen(self, bounds: Bounds) -> None:
        await self.server.start(Listen(tls=server_context(self.own), strangers=bounds))

    async def connect(self, *, member: bool = False) -> Line:
        context = ssl.create_default_context(cafile=str(self.own.roots))
        if member:
            context.load_cert_chain(self.member.chain, self.member.key)
        return await asyncio.open_connection("127.0.0.1", self.server.port, ssl=context)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path)
    yield hub
    await hub.server.close()


async def ask(line: Line) -> bytes:
    line[1].write(ASK)
    head = await line[0].readuntil(b"\r\n\r\n")
    await line[0].readexactly(len(msgspec.json.encode("hello")))
    return head.partition(b"\r\n")[0]


async def ended(line: Line) -> bool:
    try:
        return await line[0].read(1) == b""
    except ConnectionError:
        return True


async def test_a_stranger_who_says_nothing_or_half_a_request_is_hung_up_on(hub: Hub) -> None:
    await hub.listen(Bounds(first_head=timedelta(milliseconds=50)))
    member = await hub.connect(member=True)
    silent = await hub.connect()
    half = await hub.connect()
    half[1].write(ASK[:-4])
    assert await ended(silent)
    assert await ended(half)
    assert b"200" in await ask(member)
    for line in (member, silent, half):
        line[1].close()


async def test_a_flood_of_strangers_costs_no_member_its_connection(hub: Hub) -> None:
    await hub.listen(Bounds(most=100, of_one_address=3))
    member = await hub.connect(member=True)
    asked = await hub.connect()
    assert b"200" in await ask(asked)
    silent = [await hub.connect() for _ in range(20)]
    assert b"200" in await ask(silent[-1])
    assert b"200" in await ask(member)
    assert await ended(asked)
    assert all([await ended(line) for line in silent[:-3]])
    for line in (member, asked, *silent):
        line[1].close()


async def test_a_body_that_does_not_come_is_waited_for_a_bounded_time(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "PATIENCE", timedelta(milliseconds=50))
    await hub.listen(Bounds())
    for framing in (b"content-length: 2", b"transfer-encoding: chunked"):
        reader, writer = await hub.connect()
        monkeypatch.setattr(bodies, "RATE", 1 << 30)
        writer.write(b"POST /v1/take HTTP/1.1\r\nhost: hub\r\n%b\r\n\r\n" % framing)
        assert b"408" in await reader.readline()
        assert b"TooSlow" in await reader.read()
        writer.close()


async def test_a_body_that_cannot_be_unpacked_is_the_callers_mistake_and_no_line_in_the_log(
    hub: Hub,
) -> None:
    await hub.listen(Bounds())
    reader, writer = await hub.connect()
    writer.write(
        b"POST /v1/take HTTP/1.1\r\nhost: hub\r\ncontent-encoding: gzip\r\n"
        b"content-length: 5\r\n\r\nabcde"
    )
    assert b"400" in await reader.readline()
    assert b"Content-Encoding" in await reader.read()
    assert not [line for line in hub.log.lines if line[1].get("level") == "error"]
    writer.close()
