"""Two organisations that trust each other's workloads, over their real bundle endpoints."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from msgspec import convert

sys.path.insert(0, str(Path(__file__).parent))

from relay_region import SecureHub, eventually, region

from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts
from edgewise.identity.names import Organisation
from edgewise.identity.spiffe_bundle import read, render
from edgewise.model.documents import FederatedTrustDomain
from edgewise.model.errors import NotFound, TryLater
from edgewise.net.client import Client, Endpoint
from edgewise.net.federation import Federation
from edgewise.net.tls import CredentialFiles, server_context, unverified_context
from edgewise.protocol.bundles import DomainBundle
from edgewise.runtime.clock import SystemClock
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog

ENDPOINT_ID = "spiffe://hub.partner/hub"


class Partner:
    """Another organisation: its authority, and a bundle endpoint that does as told."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.open_or_create(folder / "pki", "partner", SystemClock())
        self.credentials = CredentialFiles(folder / "hub")
        self.authority.issue_hub(self.credentials, Hosts.of(["127.0.0.1"]))
        self.body = render(DomainBundle(self.authority.roots, {}, 5, 300))
        self.status = 200
        self.asked = 0
        self.url = ""

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/bundle", self._answer)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self.runner.setup()
        tls = server_context(self.credentials)
        site = web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        self.url = f"https://127.0.0.1:{self.runner.addresses[0][1]}/bundle"

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=self.body, status=self.status, content_type="application/json")

    def spec(self, **change: Any) -> Any:
        endpoint = {"url": self.url, "profile": "https_spiffe", "endpointSPIFFEID": ENDPOINT_ID}
        first = render(DomainBundle(self.authority.roots, {}, 1, 300)).decode()
        document = {
            "apiVersion": "edgewise.dev/v1",
            "kind": "FederatedTrustDomain",
            "metadata": {"name": "partner"},
            "spec": {"trustDomain": "hub.partner", "bundleEndpoint": endpoint, "bundle": first}
            | change,
        }
        return convert(document, FederatedTrustDomain).spec


@pytest.fixture
async def partner(tmp_path: Path) -> AsyncIterator[Partner]:
    made = Partner(tmp_path / "partner")
    await made.start()
    yield made
    await made.runner.cleanup()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[SecureHub]:
    opened = await SecureHub.open(tmp_path / "hub")
    yield opened
    await opened.close()


class Running:
    """A hub's federation on a clock that the test moves."""

    def __init__(self, hub: SecureHub) -> None:
        self.clock = ManualClock()
        self.federation = Federation(
            hub.bundles, Organisation("acme"), self.clock, SeededChance(), ListLog()
        )
        self.task = asyncio.create_task(self.federation.run())

    async def later(self, seconds: float) -> None:
        await self.clock.run_for(timedelta(seconds=seconds))

    @property
    def problem(self) -> str:
        return self.federation.status()[0].problem


@pytest.fixture
async def running(hub: SecureHub) -> AsyncIterator[Running]:
    made = Running(hub)
    yield made
    made.task.cancel()


def published(hub: SecureHub) -> dict[str, DomainBundle]:
    assert hub.bundles.current is not None
    return hub.bundles.current.federated


async def test_a_foreign_bundle_is_fetched_and_reaches_the_nodes_bundles(
    hub: SecureHub, partner: Partner, running: Running
) -> None:
    await running.federation.want([partner.spec()])
    assert published(hub)["hub.partner"].sequence == 1  # at once, from the fleet repo
    await eventually(lambda: published(hub)["hub.partner"].sequence == 5)
    assert published(hub)["hub.partner"].x509 == partner.authority.roots
    assert running.problem == ""
    before = hub.bundles.sequence
    partner.body = render(DomainBundle(partner.authority.roots, {}, 6, 600))
    await running.later(299)
    assert partner.asked == 1
    await running.later(2)
    await eventually(lambda: published(hub)["hub.partner"].sequence == 6)
    assert hub.bundles.sequence > before
    await running.federation.want([])
    assert published(hub) == {}


async def test_a_broken_endpoint_keeps_the_last_good_bundle_and_says_so(
    hub: SecureHub, partner: Partner, running: Running
) -> None:
    await running.federation.want([partner.spec()])
    await eventually(lambda: published(hub)["hub.partner"].sequence == 5)
    good, good_body = published(hub)["hub.partner"], partner.body
    asked = partner.asked
    for body, status, why in (
        (b"{", 200, "malformed"),
        (json.dumps({"keys": []}).encode(), 200, "no key"),
        (b"", 500, "500"),
        (render(DomainBundle(partner.authority.roots, {}, 4)), 200, "goes back from 5 to 4"),
    ):
        partner.body, partner.status = body, status
        await running.later(1900)
        await eventually(lambda asked=asked: partner.asked > asked)
        await eventually(lambda why=why: why in running.problem)
        asked = partner.asked
        assert published(hub)["hub.partner"] == good
    partner.body, partner.status = good_body, 200
    await running.later(1900)
    await eventually(lambda: running.problem == "")


async def test_an_endpoint_that_is_somebody_else_is_not_believed(
    hub: SecureHub, partner: Partner, running: Running, tmp_path: Path
) -> None:
    other = partner.spec(
        bundleEndpoint={
            "url": partner.url,
            "endpointSPIFFEID": "spiffe://hub.partner/spire/server",
        }
    )
    await running.federation.want([other])
    await eventually(lambda: "not spiffe://hub.partner/spire/server" in running.problem)
    stranger = Authority.open_or_create(tmp_path / "stranger", "partner", SystemClock())
    foreign = render(DomainBundle(stranger.roots, {}, 1)).decode()
    await running.federation.want([partner.spec(bundle=foreign)])
    await eventually(lambda: "do not trust" in running.problem)
    web_profile = {"url": partner.url, "profile": "https_web"}
    await running.federation.want([partner.spec(bundleEndpoint=web_profile)])
    await eventually(lambda: "do not trust" in running.problem)


async def test_with_https_web_the_systems_roots_vouch_for_the_endpoint(
    hub: SecureHub, partner: Partner, running: Running
) -> None:
    roots = str(partner.credentials.roots)
    running.federation.web = lambda: ssl.create_default_context(cafile=roots)
    endpoint = {"url": partner.url, "profile": "https_web"}
    await running.federation.want([partner.spec(bundleEndpoint=endpoint, bundle="")])
    assert published(hub) == {}
    await eventually(lambda: published(hub).get("hub.partner") is not None)


async def test_our_own_domains_cannot_come_from_elsewhere(
    hub: SecureHub, partner: Partner, running: Running
) -> None:
    endpoint = {"url": partner.url, "profile": "https_web"}
    await running.federation.want([partner.spec(trustDomain="eu.acme", bundleEndpoint=endpoint)])
    assert "our own organisation" in running.problem
    assert "eu.acme" not in published(hub)


async def test_a_restarted_hub_goes_on_with_the_last_good_bundle(
    hub: SecureHub, partner: Partner, running: Running
) -> None:
    await running.federation.want([partner.spec()])
    await eventually(lambda: published(hub)["hub.partner"].sequence == 5)
    await partner.runner.cleanup()
    again = Running(hub)
    await again.federation.want([partner.spec()])
    assert published(hub)["hub.partner"].sequence == 5
    again.task.cancel()


async def test_hub_and_relay_publish_their_bundles_to_anybody(tmp_path: Path) -> None:
    async with region(tmp_path) as (hub, relay):
        for url in (hub.url, relay.url):
            stranger = Client(Endpoint((url,), unverified_context()), SystemClock())
            await eventually(lambda c=stranger: _published(c))
            answer = await stranger.request("GET", "/v1/bundles/eu.acme")
            assert answer.headers["content-type"] == "application/json"
            assert read(answer.body).x509 == hub.authority.roots
            assert len(read(answer.body).jwt) == 2
            with pytest.raises(NotFound, match="no trust domain"):
                await stranger.request("GET", "/v1/bundles/us.acme")
            await stranger.close()


async def _published(client: Client) -> bool:
    try:
        answer = await client.request("GET", "/v1/bundles/eu.acme")
    except (NotFound, TryLater):
        return False
    return len(read(answer.body).jwt) == 2
