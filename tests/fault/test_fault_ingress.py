"""A node's ingress with real TLS: who gets through to the app, who does not, and why."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from socket import create_server
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from egress_node import node

from edgewise.identity.workload_ports import LocalSvid
from edgewise.net import ingress as net_ingress
from edgewise.net.tls import load_svid
from edgewise.protocol.content import IngressPort, ProcessApp, WorkloadRegistration
from edgewise.protocol.egress import EgressRule
from edgewise.protocol.installed import Installed, InstalledApp
from edgewise.roles import agent_ingress
from edgewise.roles.agent_ingress import NodeIngress
from edgewise.runtime.credentials import pem_of
from edgewise.testing.clock import ManualClock
from edgewise.testing.egress import MemorySvids, TestAuthority, bundles_of
from edgewise.testing.log import ListLog

TILL, STOCK = "/app/shops/till", "/app/shops/stock"
REQUEST = b"GET /level HTTP/1.1\r\nHost: stock\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n42"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def free_port() -> int:
    with create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)
    await writer.drain()
    writer.close()


async def echoing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@dataclass
class Shop:
    """A node with the app ``stock`` behind an ingress."""

    ingress: NodeIngress
    svids: MemorySvids
    authority: TestAuthority
    log: ListLog
    port: int
    to: int
    clock: ManualClock
    state: Path
    servers: list[asyncio.Server] = field(default_factory=list)

    async def app(self, talk: Serve = answering) -> None:
        self.servers.append(await asyncio.start_server(talk, "127.0.0.1", self.to))

    def release(self, *allow: str, port: int = 0, app: str = "stock") -> None:
        """The node runs a release with this ingress."""
        identity = WorkloadRegistration(app, STOCK, (f"edgewise:app:{app}",))
        rule = IngressPort(port or self.port, self.to, allow, "127.0.0.1")
        part = ProcessApp(app, {}, ("x",), identity=identity, ingress=(rule,))
        self.ingress.follow(installed(part))

    async def connect(
        self, caller: LocalSvid | None, *roots: bytes, port: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=pem_of(roots or [self.authority.root]))
        if caller is not None:
            load_svid(context, caller)
        return await asyncio.open_connection("127.0.0.1", port or self.port, ssl=context)

    async def call(self, caller: LocalSvid | None) -> bytes:
        reader, writer = await self.connect(caller)
        writer.write(REQUEST)
        try:
            return await reader.read()
        finally:
            writer.close()

    async def opened(self) -> None:
        """Wait until the port listens."""
        while not await listens(self.port):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def installed(*apps: ProcessApp) -> Installed:
    found = tuple(InstalledApp("b" * 64, app, "c" * 64, f"apps/{app.name}") for app in apps)
    return Installed("a" * 64, "n1", "linux/amd64", found)


async def ends(reader: asyncio.StreamReader) -> bool:
    """Whether the connection is ended without a word."""
    try:
        return await reader.read() == b""
    except OSError:
        return True


async def turned_away(here: Shop, caller: LocalSvid) -> bool:
    """Whether TLS itself refuses the caller."""
    try:
        reader, writer = await here.connect(caller)
        writer.write(REQUEST)
    except OSError:
        return True
    found = await ends(reader)
    writer.close()
    return found


@asynccontextmanager
async def shop() -> AsyncIterator[Shop]:
    authority, log, clock = TestAuthority(), ListLog(), ManualClock()
    svids = MemorySvids({"stock": authority.svid(STOCK)}, bundles_of(authority))
    state = TemporaryDirectory()
    made = NodeIngress(Path(state.name), svids, lambda: "eu.acme", clock, log)
    running = asyncio.create_task(made.run())
    ports = free_port(), free_port()
    found = Shop(made, svids, authority, log, *ports, clock, Path(state.name))
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.wait([running])
        for server in found.servers:
            server.close()
        state.cleanup()


def problem(answer: bytes) -> Any:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    found = json.loads(body)
    assert found["hint"]
    return found


async def test_a_caller_that_is_named_reaches_the_app() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        assert await here.call(here.authority.svid(TILL)) == ANSWER
        assert here.ingress.counts() == {("stock", ""): 1}


async def test_a_caller_that_is_not_named_is_told_why_and_counted() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        said = problem(await here.call(here.authority.svid("/app/shops/kiosk")))
        assert (said["status"], said["reason"]) == (403, "caller")
        assert "spiffe://eu.acme/app/shops/kiosk may not call stock" in said["detail"]
        assert here.ingress.counts() == {("stock", "caller"): 1}
        await here.until(lambda: any(what == "ingress refused" for what, _ in here.log.lines))


async def test_the_node_itself_tells_who_came_and_who_did_not() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        await here.call(here.authority.svid(TILL))
        await here.call(here.authority.svid("spiffe://eu.acme/app/shops/other"))
        await here.clock.run_for(agent_ingress.KEEP)
        kept = agent_ingress.read_state(here.state)
        assert kept is not None
        assert [(p.app, p.port, p.allow, p.problem) for p in kept.ports] == [
            ("stock", here.port, (TILL,), "")
        ]
        assert [(c.reason, c.connections) for c in kept.counts] == [("", 1), ("caller", 1)]
        here.ingress.follow(None)
        await here.until(lambda: agent_ingress.read_state(here.state) is None)


async def test_a_caller_without_a_certificate_is_refused_with_the_reason() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        said = problem(await here.call(None))
        assert (said["status"], said["reason"]) == (401, "no-certificate")


async def test_a_certificate_of_another_authority_is_refused_although_its_name_fits() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        forger = TestAuthority()
        assert await turned_away(here, forger.svid(TILL))
        assert here.ingress.counts() == {}


async def test_an_expired_caller_is_refused() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        assert await turned_away(here, here.authority.svid(TILL, minutes=-1))


async def test_a_certificate_with_two_names_is_nobody() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        said = problem(await here.call(here.authority.svid(TILL, uris=2)))
        assert said["reason"] == "caller"


async def test_another_organisation_is_let_in_only_by_its_full_name() -> None:
    async with shop() as here:
        partner = TestAuthority("bank.example")
        here.svids.set_bundles(bundles_of(here.authority, foreign=[partner]))
        await here.app()
        here.release(f"spiffe://bank.example{TILL}")
        await here.opened()
        assert await here.call(partner.svid(TILL)) == ANSWER
        # Our own till does not even come as far as a refusal: our roots do not count here.
        assert await turned_away(here, here.authority.svid(TILL))


async def test_an_ingress_for_two_organisations_stays_closed_and_says_so() -> None:
    async with shop() as here:
        partner = TestAuthority("bank.example")
        here.svids.set_bundles(bundles_of(here.authority, foreign=[partner]))
        here.release(TILL, f"spiffe://bank.example{TILL}")
        await here.until(lambda: any(what == "ingress closed" for what, _ in here.log.lines))
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", here.port)


async def test_a_new_svid_is_shown_to_new_callers_and_open_connections_go_on() -> None:
    async with shop() as here:
        await here.app(echoing)
        here.release(TILL)
        await here.opened()
        till = here.authority.svid(TILL)
        reader, writer = await here.connect(till)
        before = writer.get_extra_info("ssl_object").getpeercert(True)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        await here.svids.replace(here.authority.svid(STOCK))
        shown = before
        while shown == before:
            _, other = await here.connect(till)
            shown = other.get_extra_info("ssl_object").getpeercert(True)
            other.close()
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
        writer.close()


async def test_a_new_root_counts_without_turning_anybody_away() -> None:
    async with shop() as here:
        await here.app(echoing)
        here.release(TILL)
        await here.opened()
        reader, writer = await here.connect(here.authority.svid(TILL))
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        fresh = TestAuthority()
        both = bundles_of(here.authority)
        domain = both.own["eu.acme"]
        both.own["eu.acme"] = type(domain)((here.authority.root, fresh.root))
        here.svids.set_bundles(both)
        await here.svids.replace()
        while True:
            try:
                far, near = await here.connect(fresh.svid(TILL))
                near.write(b"new")
                assert await far.readexactly(3) == b"new"
                break
            except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
                continue
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
        near.close()
        writer.close()


async def test_a_caller_that_is_no_longer_named_loses_its_connection() -> None:
    async with shop() as here:
        await here.app(echoing)
        here.release(TILL)
        await here.opened()
        reader, writer = await here.connect(here.authority.svid(TILL))
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        here.release("/app/shops/kiosk")
        assert await ends(reader)
        writer.close()


async def test_an_app_that_is_down_is_named_as_the_reason() -> None:
    async with shop() as here:
        here.release(TILL)
        await here.opened()
        said = problem(await here.call(here.authority.svid(TILL)))
        assert (said["status"], said["reason"]) == (502, "app")


async def test_a_port_that_is_taken_is_said_and_opens_later() -> None:
    async with shop() as here:
        await here.app()
        with create_server(("127.0.0.1", here.port)):
            here.release(TILL)
            await here.until(lambda: any(what == "ingress closed" for what, _ in here.log.lines))
        await here.svids.replace()
        await here.opened()
        assert await here.call(here.authority.svid(TILL)) == ANSWER


async def test_a_release_without_the_ingress_closes_the_port() -> None:
    async with shop() as here:
        await here.app()
        here.release(TILL)
        await here.opened()
        here.ingress.follow(None)

        while await listens(here.port):  # noqa: ASYNC110 - the kernel tells nobody
            await asyncio.sleep(0.01)


async def test_an_app_without_an_svid_is_not_shown_to_anybody_yet() -> None:
    async with shop() as here:
        await here.svids.replace(gone=f"spiffe://eu.acme{STOCK}")
        here.release(TILL)
        await here.until(lambda: any(what == "ingress closed" for what, _ in here.log.lines))
        await here.app()
        await here.svids.replace(here.authority.svid(STOCK))
        await here.opened()
        assert await here.call(here.authority.svid(TILL)) == ANSWER


async def test_megabytes_go_both_ways_and_arrive_whole() -> None:
    async with shop() as here:
        await here.app(echoing)
        here.release("/app/shops/*")
        await here.opened()
        reader, writer = await here.connect(here.authority.svid(TILL))
        data = bytes(range(256)) * 16_384

        async def send() -> None:
            for start in range(0, len(data), 1 << 16):
                writer.write(data[start : start + (1 << 16)])
                await writer.drain()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(data)) == data
        await sending
        writer.close()


async def test_more_connections_than_the_bound_are_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(net_ingress, "CONNECTIONS", 2)
    async with shop() as here:
        await here.app(echoing)
        here.release(TILL)
        await here.opened()
        till = here.authority.svid(TILL)
        inside = [await here.connect(till) for _ in range(2)]
        for reader, writer in inside:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        said = problem(await here.call(till))
        assert (said["status"], said["reason"]) == (503, "busy")
        for _, writer in inside:
            writer.close()


async def test_one_app_calls_another_through_both_gateways(tmp_path: Path) -> None:
    async with node(tmp_path) as tills, shop() as here:
        here.authority = tills.authority
        here.svids.set_bundles(bundles_of(tills.authority))
        await here.svids.replace(tills.authority.svid(STOCK))
        await here.app()
        here.release(TILL)
        await here.opened()
        rule = EgressRule(
            "stock.acme.net",
            (here.port,),
            spiffe_ids=(f"spiffe://eu.acme{STOCK}",),
            addresses=("127.0.0.0/8",),
        )
        await tills.follow(rule)
        answer = await tills.ask(f"stock.acme.net:{here.port}/level")
        assert (answer.status, answer.body) == (200, b"42")
        assert tills.callers.caller is not None
        tills.callers.caller = type(tills.callers.caller)(1, 0, 0, app="kiosk")
        refused = await tills.ask(f"stock.acme.net:{here.port}/level")
        assert refused.status == 403
        assert json.loads(refused.body)["reason"] == "caller"


def test_an_app_without_an_identity_asks_for_no_port() -> None:
    rule = IngressPort(8443, 8080, (TILL,))
    assert agent_ingress.wanted_by((ProcessApp("stock", {}, ("x",), ingress=(rule,)),)) == ()
