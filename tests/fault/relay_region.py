"""A hub and a relay in one process over real mutual TLS; stores are in memory or in a folder."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.identity.names import Organisation
from edgewise.identity.on_agent import Machine, MachineIdentity, join
from edgewise.identity.on_hub import Enroller, HubPlace, signature_holds
from edgewise.identity.workloads import Desk
from edgewise.net.api.bundles import Bundles, Ingredients
from edgewise.net.api.records import Wanted
from edgewise.net.client import Client, Endpoint, SyncLine
from edgewise.net.joining import by_token
from edgewise.net.server import Listen, Server
from edgewise.net.tls import client_context, reload, server_context, unverified_context
from edgewise.protocol.api import TokenRequest
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.join import Token
from edgewise.roles.relay import RelaySettings, join_hub, run
from edgewise.roles.root_rotation import Rotation
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import CredentialFiles
from edgewise.testing.enrolments import MemoryEnrolments
from edgewise.testing.hub import MemoryHub
from edgewise.testing.log import ListLog
from edgewise.testing.loopback_hub import LoopbackHub

HOLD = timedelta(seconds=3)
IDENTITIES = {"/app/shops/till": ("till.eu.acme", "till.example"), "/app/shops/web": ()}


class SecureHub(LoopbackHub):
    """The hub's real routes behind TLS, with real tokens, certificates and receipts."""

    enroller: Enroller
    register: MemoryEnrolments
    authority: Authority
    credentials: CredentialFiles
    front: Server
    url: str = ""

    @classmethod
    async def open(cls, folder: Path) -> SecureHub:
        """Listen on a free port of the kernel's choice."""
        clock = SystemClock()
        authority = Authority.open_or_create(folder / "pki", "acme", clock)
        register = MemoryEnrolments()
        hubs: list[SecureHub] = []
        place = HubPlace(
            Organisation("acme"),
            ("https://127.0.0.1:1",),
            authority.root_sha256,
            lambda: hubs[0].publisher.root,
        )
        enroller = Enroller(register, authority, place, clock, SystemChance(), ListLog())

        class Prepared(cls):  # type: ignore[valid-type, misc]
            def __init__(self, clock: Any) -> None:
                super().__init__(clock)
                self.joins = enroller
                hubs.append(self)

        hub = await Prepared.start(folder, clock)
        hub.enroller, hub.register, hub.authority = enroller, register, authority
        hub.credentials = CredentialFiles(folder / "hub-identity")
        authority.issue_hub(hub.credentials, Hosts.of(["127.0.0.1"]))
        hub.bundles.changed = lambda: [some.wake_all() for some in hub.waiters]
        running = (hub.nodes._waiters.run(), hub.board._relays._waiters.run(), hub.rollouts.run())
        hub.loops = [asyncio.create_task(part) for part in running]
        await hub.reopen(0)
        return hub

    async def reopen(self, port: int) -> None:
        """Listen, again after ``away``."""
        self.front = Server(self.server.routes, self.clock, SystemChance(), self.log)
        self.tls = server_context(self.credentials)
        await self.front.start(Listen("127.0.0.1", port, self.tls))
        self.port = self.front.port
        self.url = f"https://127.0.0.1:{self.port}"
        self.enroller.place = HubPlace(
            Organisation("acme"),
            (self.url,),
            self.authority.root_sha256,
            lambda: self.publisher.root,
        )

    async def away(self) -> None:
        """Nobody can reach it."""
        await self.front.close()

    async def _open(self, memory: MemoryHub, folder: Path) -> None:
        self.keyring = JwtKeyFiles(folder / "jwt", self.clock)

        async def sign(payload: bytes) -> Signed:
            return self.publisher.sign_bundles(payload)

        enroller = self.joins
        self.authority = enroller.issuer
        ingredients = Ingredients(
            Organisation("acme"), lambda: self.authority.roots, self.keyring, self.people
        )
        self.bundles = Bundles(memory, sign, ingredients, self.clock)
        await self.bundles.refresh()
        self.rotator = Rotation(
            self.authority,
            self.bundles,
            self.people,
            self.rollouts,
            enroller.register,
            self.clock,
            self.use_authority,
        )

    def use_authority(self) -> None:
        """As the hub does after each step of a rotation."""
        if self.authority.keep_hub(self.credentials, Hosts.of(["127.0.0.1"]), 0.5):
            reload(self.tls, self.credentials)
        self.enroller.place = replace(self.enroller.place, root_sha256=self.authority.root_sha256)

    def _desk(self) -> Desk:
        return Desk(
            Organisation("acme"), self.authority, self.keyring, lambda: self.bundles.current
        )

    def _verify(self, key: bytes, signed: Signed) -> bool:
        return signature_holds(key, signed)

    async def _sign(self, payload: bytes) -> Signed:
        return self.publisher.sign_record(decode(payload, NodeRecord, what="record"))

    async def _membership(self, name: str) -> None:
        await super()._membership(name)
        enrolled = self.register.enrolled[name]
        self.people.known[name] = enrolled
        if enrolled.role == "node":
            index = len(self.people.known)
            wanted = Wanted(enrolled.region, "shops", index, identities=IDENTITIES)
            await self.records.put({name: wanted})
            self.board._relays.wake()
        await self.bundles.membership(name, enrolled)

    async def token(self, **terms: Any) -> Token:
        """A join token; nodes of a region with a relay name it as ``via``."""
        return Token.parse((await self.enroller.create_token(TokenRequest(**terms))).token)

    async def announce(self, sequence: int, **what: Any) -> None:
        """Publish the channel of the one fleet."""
        await self.board.announce(Channel("shops", sequence, **what))

    async def close(self) -> None:
        for loop in self.loops:
            loop.cancel()
        await self.front.close()
        await super().close()


class Node:
    """A machine that has joined and polls."""

    def __init__(self, identity: MachineIdentity, urls: tuple[str, ...]) -> None:
        self.identity = identity
        self.card = identity.card()
        tls = client_context(identity.credentials)
        self.client = Client(Endpoint(urls, tls, self.card.expects), SystemClock())
        self.line = SyncLine(self.client)


async def join_node(folder: Path, name: str, token: Token) -> Node:
    """Join through whatever the token names."""
    identity = MachineIdentity(folder / name)
    line = await by_token(token, SystemClock())
    try:
        await join(identity, token, Machine("node", name, "linux/amd64"), line)
    finally:
        await line.close()
    return Node(identity, token.urls)


class RelayProcess:
    """The relay role as a task; ``kill`` leaves its directory as it is."""

    def __init__(self, settings: RelaySettings) -> None:
        self.settings = settings
        self.url = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Until it serves."""
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(run(self.settings, ready.set_result))
        done, _ = await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._task in done:
            self._task.result()
        self.url = ready.result()

    async def stop(self) -> None:
        """As SIGTERM does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def health(self) -> dict[str, Any]:
        """GET /v1/health, as anybody may."""
        async with Client(Endpoint((self.url,), unverified_context()), SystemClock()) as client:
            return json.loads((await client.request("GET", "/v1/health")).body)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def region(folder: Path) -> AsyncIterator[tuple[SecureHub, RelayProcess]]:
    """A hub, and relay frankfurt of region eu, joined and serving."""
    hub = await SecureHub.open(folder / "hub")
    settings = RelaySettings(folder / "relay", hold=HOLD)
    token = await hub.token(role="relay", region="eu")
    url = f"https://127.0.0.1:{free_port()}"
    await join_hub(settings, token.text(), "frankfurt", (url,))
    relay = RelayProcess(settings)
    await relay.start()
    try:
        yield hub, relay
    finally:
        await relay.stop()
        await hub.close()


async def eventually(what: Any, within: float = 10.0) -> None:
    """Wait until ``what()`` is true (it may be a coroutine function)."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        answer = what()
        if asyncio.iscoroutine(answer):
            answer = await answer
        if answer:
            return
        assert asyncio.get_running_loop().time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)
