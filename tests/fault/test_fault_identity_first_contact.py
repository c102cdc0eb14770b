"""A machine joins, renews and rejoins over the real server, and with somebody in between."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.backends.pki.authority import Authority, RegionalAuthority
from edgewise.backends.pki.certificates import Hosts, key_pem, make_key, make_svid
from edgewise.identity.names import Organisation
from edgewise.identity.on_agent import Machine, MachineIdentity, join, rejoin, renew
from edgewise.identity.on_hub import Enroller, HubPlace
from edgewise.identity.on_relay import RegionalEnroller
from edgewise.model.errors import Forbidden, TryLater, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.api.joining import JoinRoutes
from edgewise.net.api.journal import Journal
from edgewise.net.client import Client, Endpoint
from edgewise.net.gate import PeopleGate
from edgewise.net.joining import by_identity, by_token
from edgewise.net.register import PeopleRegister
from edgewise.net.routes import ANYONE, Call, Route
from edgewise.net.server import Listen, Server
from edgewise.net.tls import CredentialFiles, client_context, server_context
from edgewise.protocol.api import TokenRequest
from edgewise.protocol.join import RenewReply, RenewRequest, Roots, Token
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.testing.enrolments import MemoryEnrolments
from edgewise.testing.hub import MemoryHub
from edgewise.testing.log import ListLog
from edgewise.testing.people import MemoryPeople

LOOPBACK = Hosts.of(["127.0.0.1"])
CLOCK = SystemClock()


async def nothing(name: str) -> None:
    """Nobody else cares who joins."""


@dataclass
class Hub:
    """A hub with its identity routes on a real port."""

    directory: Path
    server: Server
    enroller: Enroller
    authority: Authority
    register: MemoryEnrolments

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.port}"

    async def token(self, **terms: object) -> Token:
        request: dict[str, Any] = {"region": "eu", **terms}
        token = Token.parse((await self.enroller.create_token(TokenRequest(**request))).token)
        return msgspec.structs.replace(token, urls=(self.url,))


async def start_hub(directory: Path) -> Hub:
    authority = Authority.open_or_create(directory / "pki", "acme", CLOCK)
    credentials = CredentialFiles(directory / "hub")
    authority.issue_hub(credentials, LOOPBACK)
    register = MemoryEnrolments()
    urls: list[str] = []
    place = HubPlace(Organisation("acme"), ("https://127.0.0.1:1",), authority.root_sha256, bytes)
    enroller = Enroller(register, authority, place, CLOCK, SystemChance(), ListLog())
    journal = await Journal.open(MemoryHub(), CLOCK)
    routes = JoinRoutes(enroller, nothing, journal).routes()
    people = await PeopleRegister.open(MemoryPeople(), CLOCK, SystemChance())
    gate = PeopleGate(people, Organisation("acme"), CLOCK)
    server = Server(routes, CLOCK, SystemChance(), ListLog(), gate=gate)
    await server.start(Listen(tls=server_context(credentials)))
    urls.append(f"https://127.0.0.1:{server.port}")
    enroller.place = HubPlace(Organisation("acme"), tuple(urls), authority.root_sha256, bytes)
    return Hub(directory, server, enroller, authority, register)


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    made = await start_hub(tmp_path)
    yield made
    await made.server.close()


async def joined(hub: Hub, machine: Machine) -> MachineIdentity:
    identity = MachineIdentity(hub.directory / machine.name)
    token = await hub.token(role=machine.role)
    door = await by_token(token, CLOCK)
    await join(identity, token, machine, door)
    await door.close()
    return identity


async def test_a_node_joins_renews_and_rejoins_over_the_wire(hub: Hub) -> None:
    identity = await joined(hub, Machine("node", "kiosk-1"))
    first = identity.card()
    door = by_identity(first, identity.credentials, CLOCK)
    second = await renew(identity, door)
    await door.close()
    assert second.serial != first.serial
    door = by_identity(second, identity.credentials, CLOCK, expired=True)
    third = await rejoin(identity, door)
    await door.close()
    assert third.serial != second.serial
    lineage = await hub.register.lineage("kiosk-1")
    assert lineage.issued == third.serial
    assert lineage.confirmed == second.serial


async def test_the_secret_is_not_sent_to_a_server_that_lacks_the_pinned_root(
    hub: Hub, tmp_path: Path
) -> None:
    impostor = await start_hub(tmp_path / "impostor")
    token = msgspec.structs.replace(await hub.token(), urls=(impostor.url,))
    with pytest.raises(Untrusted, match="does not have the root"):
        await by_token(token, CLOCK)
    await impostor.server.close()


async def test_an_impostor_that_repeats_the_real_root_does_not_get_the_secret_either(
    hub: Hub, tmp_path: Path
) -> None:
    """It can copy the public root, but not prove a certificate under it."""
    fake = Authority.open_or_create(tmp_path / "fake", "acme", CLOCK)
    credentials = CredentialFiles(tmp_path / "fake-hub")
    fake.issue_hub(credentials, LOOPBACK)
    asked: list[str] = []

    async def roots(call: Call[None]) -> Roots:
        return Roots(hub.authority.roots)

    async def steal(call: Call[None]) -> Roots:
        asked.append("join")
        return Roots(())

    routes = [
        Route("GET", "/v1/roots", "", roots, ANYONE, response=Roots),
        Route("POST", "/v1/join", "", steal, ANYONE, response=Roots),
    ]
    server = Server(routes, CLOCK, SystemChance(), ListLog())
    await server.start(Listen(tls=server_context(credentials)))
    token = msgspec.structs.replace(await hub.token(), urls=(f"https://127.0.0.1:{server.port}",))
    identity = MachineIdentity(tmp_path / "kiosk-1")
    door = await by_token(token, CLOCK)
    with pytest.raises(Untrusted, match="do not trust"):
        await join(identity, token, Machine("node", "kiosk-1"), door)
    assert asked == []
    await door.close()
    await server.close()


async def test_the_second_url_of_a_token_works_when_the_first_is_down(hub: Hub) -> None:
    token = await hub.token()
    token = msgspec.structs.replace(token, urls=("https://127.0.0.1:1", *token.urls))
    door = await by_token(token, CLOCK)
    await join(MachineIdentity(hub.directory / "k"), token, Machine("node", "k"), door)
    await door.close()


async def test_a_hub_that_is_down_is_tried_later(hub: Hub) -> None:
    token = msgspec.structs.replace(await hub.token(), urls=("https://127.0.0.1:1",))
    with pytest.raises(TryLater):
        await by_token(token, CLOCK)


async def test_a_relay_joins_and_renews_its_nodes_while_the_hub_is_away(hub: Hub) -> None:
    urls = ("https://127.0.0.1:7",)
    relay = await joined(hub, Machine("relay", "r1", urls=urls))
    node = await joined(hub, Machine("node", "kiosk-1"))
    before = node.card()
    line = by_identity(relay.card(), relay.credentials, CLOCK)
    await hub.server.close()
    roots = relay.credentials.root_certificates()
    regional = RegionalEnroller(
        organisation=Organisation("acme"),
        region="eu",
        issuer=RegionalAuthority.open(relay.directory, roots, "eu", CLOCK),
        hub=line,
        lineages=MemoryEnrolments(),
        gone={"kiosk-9": "forgotten"}.get,  # type: ignore[arg-type]
        clock=CLOCK,
        log=ListLog(),
    )

    class ToRelay:
        async def renew(self, request: RenewRequest) -> RenewReply:
            return await regional.renew(before.id, request, before.serial)

    after = await renew(node, ToRelay())  # type: ignore[arg-type]
    assert after.serial != before.serial
    csr = RenewRequest(b"")
    for other, why in (
        ("spiffe://us.acme/node/kiosk-1", "another region"),
        ("spiffe://eu.acme/node/kiosk-9", "gets nothing more"),
        ("spiffe://eu.other/node/kiosk-1", "not an identity of"),
        ("spiffe://eu.acme/relay/r1", "renews at the hub"),
        ("spiffe://hub.acme/hub", "may not do this"),
    ):
        with pytest.raises(Forbidden, match=why):
            await regional.renew(SpiffeId.parse(other), csr)
    with pytest.raises(TryLater):
        await regional.challenge()
    await line.close()


async def test_a_node_joins_through_a_relay_of_its_region_only(hub: Hub) -> None:
    relay = await joined(hub, Machine("relay", "r1", urls=("https://127.0.0.1:7",)))
    up = by_identity(relay.card(), relay.credentials, CLOCK)
    identity = MachineIdentity(hub.directory / "kiosk-2")
    card = await join(identity, await hub.token(), Machine("node", "kiosk-2"), up)
    assert card.urls == ("https://127.0.0.1:7",)
    enrolled = await hub.register.get("kiosk-2")
    assert enrolled is not None
    assert enrolled.via == "r1"
    other = MachineIdentity(hub.directory / "kiosk-3")
    with pytest.raises(Forbidden, match="region"):
        await join(other, await hub.token(region="us"), Machine("node", "kiosk-3"), up)
    await up.close()


async def test_a_stolen_relay_cannot_make_an_operator_of_its_own_region(hub: Hub) -> None:
    """The name constraint lets its CA sign any path in its domain; the hub must not care."""
    relay = await joined(hub, Machine("relay", "r1", urls=("https://127.0.0.1:7",)))
    roots = relay.credentials.root_certificates()
    stolen = RegionalAuthority.open(relay.directory, roots, "eu", CLOCK)
    for identity, works in (
        ("spiffe://hub.acme/user/admin", True),
        ("spiffe://eu.acme/user/admin", False),
        ("spiffe://eu.acme/hub", False),
    ):
        key = make_key()
        files = CredentialFiles(hub.directory / f"forged-{works}-{identity[-4:]}")
        spiffe = SpiffeId.parse(identity)
        signer = hub.authority._signer("hub") if works else stolen.signer
        chain = make_svid(signer, spiffe, key.public_key(), Hosts(), CLOCK.now()).chain
        files.trust(roots)
        files.replace(key_pem=key_pem(key), chain=chain)
        async with Client(Endpoint((hub.url,), client_context(files))) as client:
            asked = client.request("GET", "/v1/tokens")
            if works:
                assert (await asked).status == 200
            else:
                with pytest.raises(Forbidden):
                    await asked
