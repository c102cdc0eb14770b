"""The server over real TLS: a certificate decides who may call what."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts
from edgewise.identity.people import EVERYTHING
from edgewise.net.routes import ANYONE, PEOPLE, Bytes, Call, Peer, Route
from edgewise.net.server import Listen, Server
from edgewise.net.tls import server_context
from edgewise.runtime.credentials import CredentialFiles
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog

pytestmark = pytest.mark.slow


async def who(call: Call[None]) -> str:
    return str(call.peer.id)


async def poll(call: Call[Any]) -> Bytes:
    return Bytes(str(call.peer.id).encode())


class Open:
    """Everybody may do everything."""

    def admit(self, peer: Peer, headers: Mapping[str, str]) -> Peer:
        return replace(peer, rights=EVERYTHING)


class Hub:
    def __init__(self, folder: Path) -> None:
        from edgewise.runtime.clock import SystemClock

        self.clock = ManualClock(SystemClock().now())
        self.folder = folder
        self.authority = Authority.open_or_create(folder / "pki", "acme", self.clock)
        self.own = CredentialFiles(folder / "own")
        self.authority.issue_hub(self.own, Hosts.of(["localhost", "127.0.0.1"]))
        routes = [
            Route("GET", "/v1/who", "", who, PEOPLE, needs="viewer"),
            Route("GET", "/v1/open", "", who, ANYONE),
            Route("POST", "/v1/poll", "", poll, PEOPLE, Any, needs="viewer", held=True),
        ]
        self.server = Server(routes, self.clock, SeededChance(), ListLog(), gate=Open())

    def client(self, user: str = "") -> aiohttp.ClientSession:
        context = ssl.create_default_context(cafile=str(self.own.roots))
        if user:
            files = CredentialFiles(self.folder / user)
            self.authority.issue_operator(user, files.directory, "https://localhost")
            context.load_cert_chain(files.chain, files.key)
        connector = aiohttp.TCPConnector(ssl=context)
        return aiohttp.ClientSession(f"https://localhost:{self.server.port}", connector=connector)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    hub = Hub(tmp_path)
    await hub.server.start(Listen(tls=server_context(hub.own)))
    yield hub
    await hub.server.close()


async def test_an_operator_is_known_by_certificate_and_a_stranger_is_told_what_lacks(
    hub: Hub,
) -> None:
    async with hub.client("ada") as session:
        assert await (await session.get("/v1/who")).json() == "spiffe://hub.acme/user/ada"
    async with hub.client() as session:
        assert await (await session.get("/v1/open")).json() == "None"
        refused: Any = await session.get("/v1/who")
        assert refused.status == 401
        assert (await refused.json())["type"].endswith("/Unauthenticated")


async def test_a_certificate_that_expires_on_a_kept_connection_is_not_good_any_more(
    hub: Hub,
) -> None:
    async with hub.client("ada") as session:
        assert (await session.get("/v1/who")).status == 200
        hub.clock.advance(timedelta(days=4000))
        refused = await session.get("/v1/who")
        assert refused.status == 401
        assert refused.headers["Connection"] == "close"


async def test_a_certificate_that_expires_between_two_polls_is_not_good_any_more(
    hub: Hub,
) -> None:
    async with hub.client("ada") as session:
        for _ in range(2):
            answer = await session.post("/v1/poll", data=b"{}")
            assert await answer.text() == "spiffe://hub.acme/user/ada"
            assert "Server" not in answer.headers  # its line answered, not the framework
        hub.clock.set_wall(hub.clock.now() + timedelta(days=4000))
        refused = await session.post("/v1/poll", data=b"{}")
        assert refused.status == 401
        assert refused.headers["Connection"] == "close"


async def test_nobody_polls_under_the_name_of_the_connection_before(hub: Hub) -> None:
    for name in ("ada", "grace"):
        async with hub.client(name) as session:
            answer = await session.post("/v1/poll", data=b"{}")
            assert await answer.text() == f"spiffe://hub.acme/user/{name}"
    async with hub.client() as session:
        assert (await session.post("/v1/poll", data=b"{}")).status == 401


async def test_a_stranger_from_another_organisation_does_not_get_past_the_handshake(
    hub: Hub, tmp_path: Path
) -> None:
    other = Authority.open_or_create(tmp_path / "other", "evil", hub.clock)
    files = CredentialFiles(tmp_path / "eve")
    other.issue_operator("eve", files.directory, "https://localhost")
    context = ssl.create_default_context(cafile=str(hub.own.roots))
    context.load_cert_chain(files.chain, files.key)
    url = f"https://localhost:{hub.server.port}/v1/open"
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(url, ssl=context)
