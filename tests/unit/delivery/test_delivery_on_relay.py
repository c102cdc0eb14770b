"""A relay's cache: one download for many, nothing false kept, the hub away."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import pytest

from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery import packing
from edgewise.delivery.on_relay import Cache
from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content, MemoryMetadata
from edgewise.testing.objects import MemoryObjects
from edgewise.testing.source import MemorySource, path_of


class Relay:
    def __init__(self, content: Content, clock: ManualClock, limit: int = 10 << 20) -> None:
        self.files: dict[str, bytes] = {}
        self.objects = MemoryObjects()
        self.source = MemorySource(self.files, self.objects)
        self.cache = Cache(
            self.objects,
            MemoryMetadata(self.files),
            content.source,
            root=content.publisher.root,
            limit=limit,
            clock=clock,
        )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def content(clock: ManualClock) -> Content:
    return await Content.open(clock)


@pytest.fixture
def relay(content: Content, clock: ManualClock) -> Relay:
    return Relay(content, clock)


async def put(content: Content, data: bytes) -> str:
    digest = Digest.of(data).sha256
    await content.objects.put(digest, data)
    return digest


async def test_a_hundred_nodes_cause_one_download(content: Content, relay: Relay) -> None:
    path = path_of(await put(content, b"x" * 1000))
    await asyncio.gather(*(relay.cache.ensure(path) for _ in range(100)))
    assert content.source.requests == [(path, 0)]


async def test_those_who_wait_go_on_when_the_first_one_leaves(
    content: Content, relay: Relay
) -> None:
    path = path_of(await put(content, os.urandom(200_000)))
    first = asyncio.create_task(relay.cache.ensure(path))
    await asyncio.sleep(0)
    second = asyncio.create_task(relay.cache.ensure(path))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert relay.source.content(path)


async def test_a_lying_hub_is_not_believed_and_heals(content: Content, relay: Relay) -> None:
    path = path_of(await put(content, b"truth"))
    content.source.lie(path, lambda _: packing.pack(b"lie"))
    with pytest.raises(Untrusted):
        await relay.cache.ensure(path)
    assert relay.source.content(path) is None
    await relay.cache.ensure(path)
    assert relay.source.content(path) is not None


async def test_the_disk_is_bounded_and_the_least_used_goes_first(
    content: Content, clock: ManualClock
) -> None:
    relay = Relay(content, clock, limit=35_000)
    paths = [path_of(await put(content, os.urandom(10_000))) for _ in range(5)]
    for path in paths[:3]:
        await relay.cache.ensure(path)
    await relay.cache.ensure(paths[0])
    await relay.cache.ensure(paths[3])
    assert relay.cache.stored_bytes <= 35_000
    assert [relay.source.content(p) is not None for p in paths] == [True, False, True, True, False]


async def test_what_is_pinned_stays(content: Content, clock: ManualClock) -> None:
    relay = Relay(content, clock, limit=15_000)
    digests = [await put(content, os.urandom(10_000)) for _ in range(3)]
    relay.cache.pin([digests[0]])
    for digest in digests:
        await relay.cache.ensure(path_of(digest))
    assert digests[0] in relay.objects.packed


async def test_nodes_are_served_while_the_hub_is_away(
    content: Content, relay: Relay, clock: ManualClock, tmp_path: Path
) -> None:
    channel = await content.announce(1, await content.release({"a": {"bin/run": b"1"}}))
    await relay.cache.offer(content.publisher.metadata_for("lab"))
    content.source.away = True
    clock.advance(timedelta(hours=1))
    node = NodeTrust(tmp_path, content.publisher.root, node="n1", clock=clock)
    bundle = await relay.cache.bundle("lab")
    verified = await node.verify(bundle, content.record(), relay.cache)
    assert verified.channel == channel
    await relay.cache.ensure("tuf/timestamp.json")
    with pytest.raises(TryLater):
        await relay.cache.ensure(path_of("ab" * 32))


async def test_a_relay_gives_the_same_bundle_as_the_hub(content: Content, relay: Relay) -> None:
    await content.announce(1, await content.release({"a": {"bin/run": b"1"}}))
    await relay.cache.offer(content.publisher.metadata_for("lab"))
    assert await relay.cache.bundle("lab") == content.publisher.metadata_for("lab")


async def test_a_relay_fetches_metadata_when_a_node_asks(content: Content, relay: Relay) -> None:
    await content.announce(1, await content.release({"a": {"bin/run": b"1"}}))
    await relay.cache.ensure("tuf/timestamp.json")
    for name in content.publisher.metadata_for("lab"):
        if not name.startswith("channels/"):
            await relay.cache.ensure(f"tuf/{name}")
            assert relay.files[f"tuf/{name}"] == content.files[f"tuf/{name}"]


async def test_the_timestamp_only_moves_forward(
    content: Content, relay: Relay, clock: ManualClock
) -> None:
    old = content.publisher.metadata_for("lab")
    await content.announce(1, "")
    await relay.cache.offer(content.publisher.metadata_for("lab"))
    with pytest.raises(Untrusted, match="goes back"):
        await relay.cache.offer(old)


async def test_metadata_that_nobody_signed_is_not_kept(content: Content, relay: Relay) -> None:
    await content.announce(1, "")
    name = next(n for n in content.publisher.metadata_for("lab") if n.endswith(".channels.json"))
    content.source.lie(f"tuf/{name}", lambda data: data.replace(b"2026", b"2027"))
    with pytest.raises(Untrusted):
        await relay.cache.ensure(f"tuf/{name}")
    assert f"tuf/{name}" not in relay.files
    await relay.cache.ensure(f"tuf/{name}")


async def test_a_relay_follows_new_keys(content: Content, relay: Relay) -> None:
    await content.publisher.rotate("online")
    await content.publisher.rotate("root")
    await content.announce(1, "")
    await relay.cache.offer(content.publisher.metadata_for("lab"))
    assert await relay.cache.bundle("lab") == content.publisher.metadata_for("lab")


@pytest.mark.parametrize("path", ["../etc/passwd", "objects/zz/x.zst", "tuf/x.json", ""])
async def test_only_paths_of_content_are_asked_for(relay: Relay, path: str) -> None:
    with pytest.raises(NotFound):
        await relay.cache.ensure(path)
