"""A region over real mutual TLS: node, relay and hub, with what can go wrong between them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec import structs

sys.path.insert(0, str(Path(__file__).parent))

from relay_region import Node, RelayProcess, SecureHub, eventually, join_node, region

from edgewise.identity.on_agent import renew
from edgewise.model.errors import Forbidden, NotFound, TryLater
from edgewise.model.names import Digest
from edgewise.net.client import Endpoint
from edgewise.net.joining import by_identity
from edgewise.protocol.channel import Bitmap, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.content import object_path
from edgewise.protocol.join import Token
from edgewise.protocol.report import Observation, Receipt
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.runtime.clock import SystemClock

A, B = "a" * 64, "b" * 64
LONG = timedelta(seconds=20)

Place = tuple[SecureHub, RelayProcess]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with region(tmp_path) as both:
        yield both


async def token_of(hub: SecureHub, **terms: object) -> Token:
    return await hub.token(region="eu", via="frankfurt", **terms)


async def newest(node: Node, channel: int) -> SyncReply:
    """Poll until the channel has come, as a node does at its start."""
    async with asyncio.timeout(10):
        while True:
            reply = await node.line.exchange(SyncRequest(), LONG)
            files = reply.metadata if reply else {}
            data = files.get("channels/shops.json", b"{}")
            if reply is not None and f'"sequence":{channel}'.encode() in data:
                return reply
            await asyncio.sleep(0.05)


def receipt(node: Node, sequence: int) -> Signed:
    body = Receipt(node.card.name, sequence, "Succeeded", A, A, "r1", datetime.now(UTC))
    return node.identity.sign("receipt/1", encode(body))


async def test_a_node_joins_through_its_relay_and_gets_channel_and_content(
    place: Place, tmp_path: Path
) -> None:
    hub, _ = place
    body = b"the release" * 100
    digest = Digest.of(body).sha256
    await hub.publisher.put_objects({digest: body})
    await hub.announce(1, stable=A)
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    assert node.card.spiffe_id == "spiffe://eu.acme/node/kiosk"
    reply = await newest(node, 1)
    assert reply.record is not None
    path = f"/v1/content/{object_path(digest)}"
    whole = b"".join([piece async for piece in node.client.stream(path)])
    rest = b"".join([piece async for piece in node.client.stream(path, 10)])
    assert whole[10:] == rest
    with pytest.raises(NotFound):
        await node.client.request("GET", "/v1/content/objects/../relay.db")


async def test_a_wave_wakes_the_node_that_moves_and_not_the_other(
    place: Place, tmp_path: Path
) -> None:
    hub, relay = place
    await hub.announce(1, stable=A)
    token = await token_of(hub, uses=2)
    nodes = [await join_node(tmp_path, name, token) for name in ("one", "two")]
    for node in nodes:
        await newest(node, 1)
    polls = [
        asyncio.create_task(
            node.line.exchange(SyncRequest(1, "shops", 1, Observation(running=A)), LONG)
        )
        for node in nodes
    ]
    await eventually(lambda: _held(relay, 2))
    index = hub.records.get("two")
    assert index is not None
    await hub.announce(2, stable=A, candidate=B, wave=Bitmap.of([index[0].index]).data)
    reply = await asyncio.wait_for(polls[1], 2)
    assert reply is not None
    assert not polls[0].done()
    for poll in polls:
        poll.cancel()


async def _held(relay: RelayProcess, count: int) -> bool:
    return bool((await relay.health())["nodes_waiting"] == count)


async def test_a_signed_receipt_reaches_the_hub_and_a_forged_one_is_refused(
    place: Place, tmp_path: Path
) -> None:
    hub, relay = place
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    good = receipt(node, 1)
    forged = Signed("receipt/1", receipt(node, 2).payload, good.key_id, b"nonsense")
    reply = await node.line.exchange(SyncRequest(receipts=(good, forged)), LONG)
    # The relay cannot check it, so it takes both; the hub takes one and refuses the other.
    assert reply is not None
    assert reply.acknowledged == 2
    await eventually(lambda: _drained(relay))
    assert [r.sequence for r in await hub.store.receipts("kiosk")] == [1]


async def _drained(relay: RelayProcess) -> bool:
    health = await relay.health()
    return bool(health["receipts_waiting"] == 0 and health["hub_reachable"])


async def test_a_node_of_another_region_is_refused(place: Place, tmp_path: Path) -> None:
    hub, relay = place
    stranger = await join_node(tmp_path, "stray", await hub.token(region="us"))
    astray = Node(stranger.identity, (relay.url,))
    astray.client.endpoint = Endpoint((relay.url,), astray.client.endpoint.tls)
    with pytest.raises(Forbidden, match="another region"):
        await astray.line.exchange(SyncRequest(), LONG)
    with pytest.raises(Forbidden, match="another region"):
        await astray.client.request("GET", "/v1/content/tuf/timestamp.json")


async def test_a_forgotten_node_is_refused_by_its_relay(place: Place, tmp_path: Path) -> None:
    hub, relay = place
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    await hub.announce(1, stable=A)
    await newest(node, 1)
    poll = asyncio.create_task(node.line.exchange(SyncRequest(1, "shops", 1), LONG))
    await eventually(lambda: _held(relay, 1))
    await hub.register.forget("kiosk")
    hub.people.known.pop("kiosk")
    await hub.records.forget("kiosk")
    hub.board._relays.wake()
    with pytest.raises(Forbidden, match="forgotten or quarantined"):
        await asyncio.wait_for(poll, 2)


async def test_with_the_hub_away_the_region_syncs_fetches_and_renews(
    place: Place, tmp_path: Path
) -> None:
    hub, relay = place
    await hub.announce(1, stable=A)
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    await newest(node, 1)
    port = hub.port
    await hub.away()
    taken = await node.line.exchange(SyncRequest(receipts=(receipt(node, 1),)), LONG)
    assert taken is not None
    assert taken.acknowledged == 1
    await relay.stop()
    await relay.start()
    assert (await newest(node, 1)).record is not None
    timestamp = await node.client.request("GET", "/v1/content/tuf/timestamp.json")
    assert timestamp.body
    before = node.identity.card().serial
    card = structs.replace(node.card, urls=(relay.url,))
    line = by_identity(card, node.identity.credentials, SystemClock())
    after = await renew(node.identity, line)
    await line.close()
    assert after.serial != before
    other = Token.parse((await token_of(hub)).text())
    with pytest.raises(TryLater):
        await join_node(tmp_path, "late", other)
    assert (await relay.health())["receipts_waiting"] == 1
    await hub.reopen(port)
    await eventually(lambda: _drained(relay), within=40)
    assert [r.sequence for r in await hub.store.receipts("kiosk")] == [1]


async def test_a_connection_that_sends_nothing_does_not_keep_others_waiting(
    place: Place, tmp_path: Path
) -> None:
    hub, relay = place
    await hub.announce(1, stable=A)
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    host, port = "127.0.0.1", int(relay.url.rpartition(":")[2])
    idle = [await asyncio.open_connection(host, port) for _ in range(200)]
    for _, writer in idle[:100]:
        writer.write(b"\x16\x03\x01")
    async with asyncio.timeout(5):
        await newest(node, 1)
    for _, writer in idle:
        writer.transport.abort()


async def test_a_relay_does_not_answer_what_only_the_hub_does(place: Place, tmp_path: Path) -> None:
    hub, _ = place
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    for path in ("/v1/nodes", "/v1/tokens", "/v1/relay/sync", "/v1/audit"):
        with pytest.raises((NotFound, Forbidden)):
            await node.client.request("GET", path)


async def test_a_node_that_left_its_poll_is_no_error(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hub, relay = place
    await hub.announce(1, stable=A)
    node = await join_node(tmp_path, "kiosk", await token_of(hub))
    await newest(node, 1)
    poll = asyncio.create_task(node.line.exchange(SyncRequest(1, "shops", 1), LONG))
    await eventually(lambda: _held(relay, 1))
    poll.cancel()
    await node.client.close()
    await asyncio.sleep(0.1)
    await hub.announce(2, stable=B)
    await eventually(lambda: _held(relay, 0))
    assert not caplog.records
