"""Relays that ask each other before the hub, over real mutual TLS."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from relay_region import Node, RelayProcess, SecureHub, free_port, join_node, region

from edgewise.identity.names import Organisation, sibling_of
from edgewise.model.errors import NotFound, TryLater
from edgewise.model.names import Digest
from edgewise.net.tls import client_context
from edgewise.protocol.content import object_path
from edgewise.roles.relay import RelaySettings, join_hub


@dataclass
class Pair:
    """A hub, two relays of one region that name each other, and a node."""

    hub: SecureHub
    relays: tuple[RelayProcess, RelayProcess]
    node: Node

    async def publish(self, size: int = 20_000) -> str:
        body = os.urandom(size)
        digest = Digest.of(body).sha256
        await self.hub.publisher.put_objects({digest: body})
        return object_path(digest)

    async def get(self, relay: int, path: str) -> bytes:
        self.node.client.endpoint = replace(
            self.node.client.endpoint, urls=(self.relays[relay].url,)
        )
        self.node.client.forget_connections()
        pieces = self.node.client.stream(f"/v1/content/{path}")
        return b"".join([piece async for piece in pieces])

    async def fetched(self, relay: int) -> int:
        return int((await self.relays[relay].health())["fetched_bytes"])

    @asynccontextmanager
    async def web(self, relay: int) -> AsyncIterator[aiohttp.ClientSession]:
        """The node, with its own certificate and any headers."""
        tls = aiohttp.TCPConnector(ssl=client_context(self.node.identity.credentials))
        async with aiohttp.ClientSession(self.relays[relay].url, connector=tls) as web:
            yield web


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with region(tmp_path) as (hub, first):
        url = f"https://127.0.0.1:{free_port()}"
        settings = RelaySettings(tmp_path / "relay-2", hold=first.settings.hold, peers=(first.url,))
        token = await hub.token(role="relay", region="eu")
        await join_hub(settings, token.text(), "munich", (url,))
        second = RelayProcess(settings)
        await first.stop()
        first.settings = replace(first.settings, peers=(url,))
        await first.start()
        await second.start()
        node = await join_node(tmp_path, "kiosk", await hub.token(region="eu", via="frankfurt"))
        yield Pair(hub, (first, second), node)
        await node.client.close()
        await second.stop()


async def test_what_a_sibling_has_is_not_asked_of_the_hub(pair: Pair) -> None:
    path = await pair.publish()
    whole = await pair.get(0, path)
    await pair.hub.away()
    assert await pair.get(1, path) == whole
    assert await pair.fetched(1) == len(whole)


async def test_siblings_that_name_each_other_do_not_ask_in_a_circle(pair: Pair) -> None:
    missing = object_path("ab" * 32)
    async with asyncio.timeout(10):
        with pytest.raises(NotFound):
            await pair.get(0, missing)
        await pair.hub.away()
        with pytest.raises(TryLater):
            await pair.get(1, missing)


async def test_a_sibling_that_is_away_costs_one_try(pair: Pair) -> None:
    await pair.relays[0].stop()
    path = await pair.publish()
    assert await pair.get(1, path)


async def test_with_only_if_cached_a_relay_answers_from_its_disk_or_with_504(pair: Pair) -> None:
    path = await pair.publish()
    only = {"Cache-Control": "only-if-cached"}
    async with pair.web(0) as web:
        async with web.get(f"/v1/content/{path}", headers=only) as answer:
            assert answer.status == 504
            assert (await answer.json())["type"].endswith("/NotCached")
        whole = await pair.get(0, path)
        async with web.get(f"/v1/content/{path}", headers=only) as answer:
            assert await answer.read() == whole


async def test_ranges_head_and_tags_are_right_at_hub_and_relay(pair: Pair) -> None:
    path = f"/v1/content/{await pair.publish(300_000)}"
    whole = await pair.get(0, path.removeprefix("/v1/content/"))
    tags = set()
    urls = (pair.relays[0].url, pair.hub.url)
    tls = client_context(pair.node.identity.credentials)
    for url in urls:
        async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(ssl=tls)) as web:
            async with web.head(path) as answer:
                assert answer.headers["Content-Length"] == str(len(whole))
                assert answer.headers["Accept-Ranges"] == "bytes"
                assert "immutable" in answer.headers["Cache-Control"]
                assert answer.headers["Content-Type"] == "application/zstd"
                assert await answer.read() == b""
                tags.add(answer.headers["ETag"])
            async with web.get(path, headers={"Range": "bytes=1000-1999"}) as answer:
                assert (answer.status, await answer.read()) == (206, whole[1000:2000])
                assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(whole)}"
            async with web.get(path, headers={"Range": f"bytes={len(whole)}-"}) as answer:
                assert answer.status == 416
                assert answer.headers["Content-Range"] == f"bytes */{len(whole)}"
            async with web.get(path, headers={"If-None-Match": next(iter(tags))}) as answer:
                assert answer.status == 304
            async with web.get("/v1/content/tuf/timestamp.json") as answer:
                assert answer.headers["Cache-Control"] == "no-cache"
            async with web.post(path) as answer:
                assert answer.status == 405
                assert answer.headers["Allow"] == "GET, HEAD"
    assert len(tags) == 1


def test_only_relays_of_the_same_region_are_siblings() -> None:
    acme = Organisation("acme")
    own = acme.relay("eu", "frankfurt")
    assert sibling_of(own, acme.relay("eu", "munich"))
    for other in (own, acme.relay("us", "munich"), acme.node("eu", "munich"), acme.hub):
        assert not sibling_of(own, other)


async def test_another_in_a_siblings_place_gets_no_request(pair: Pair) -> None:
    """A server of the organisation whose certificate is no relay's of the region."""
    relay = pair.relays[1]
    await relay.stop()
    relay.settings = replace(relay.settings, peers=(pair.hub.url,))  # proves to be the hub
    await relay.start()
    path = await pair.publish()
    asked: list[str | None] = []
    route = next(r for r in pair.hub.server.routes if "content" in r.path)
    answer = route.answer

    async def watched(call: Any) -> Any:
        if call.path["path"] == path:
            asked.append(call.headers.get("Cache-Control"))
        return await answer(call)

    object.__setattr__(route, "answer", watched)
    assert await pair.get(1, path)
    assert asked == [None]
