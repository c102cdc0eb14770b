"""A relay's cache: one download for many, nothing false kept, the hub away."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path

import pytest

from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery import packing
from edgewise.delivery.on_relay import Cache
from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content, MemoryMetadata
from edgewise.testing.log import ListLog
from edgewise.testing.source import path_of


class Relay:
    def __init__(self, content: Content, folder: Path, clock: ManualClock, limit: int) -> None:
        self.files: dict[str, bytes] = {}
        self.folder = folder
        self.log = ListLog()
        disk = CacheFiles(folder)
        self.space = Space(disk, SpaceTerms(limit, reserve=0), clock, self.log)
        self.shelf = FileShelf(self.space, content.source, self.log)
        self.cache = Cache(
            self.shelf,
            MemoryMetadata(self.files),
            content.source,
            root=content.publisher.root,
            clock=clock,
        )

    def has(self, path: str) -> bool:
        return (self.folder / path).exists()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def content(clock: ManualClock) -> Content:
    return await Content.open(clock)


@pytest.fixture
def relay(content: Content, clock: ManualClock, tmp_path: Path) -> Relay:
    return Relay(content, tmp_path, clock, 10 << 20)


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
    assert relay.has(path)


async def test_a_lying_hub_is_not_believed_and_heals(content: Content, relay: Relay) -> None:
    path = path_of(await put(content, b"truth"))
    content.source.lie(path, lambda _: packing.pack(b"lie"), times=2)
    with pytest.raises(Untrusted):
        await relay.cache.ensure(path)
    assert not relay.has(path)
    await relay.cache.ensure(path)
    assert relay.has(path)


async def test_the_disk_is_bounded_and_the_least_used_goes_first(
    content: Content, clock: ManualClock, tmp_path: Path
) -> None:
    relay = Relay(content, tmp_path, clock, limit=35_000)
    paths = [path_of(await put(content, os.urandom(10_000))) for _ in range(5)]
    for path in paths[:3]:
        await relay.cache.ensure(path)
    await relay.cache.ensure(paths[0])
    await relay.cache.ensure(paths[3])
    assert relay.cache.stored_bytes <= 35_000
    assert [relay.has(p) for p in paths] == [True, False, True, True, False]


async def test_what_a_channel_leads_to_outlives_everything_else(
    content: Content, clock: ManualClock, tmp_path: Path
) -> None:
    relay = Relay(content, tmp_path, clock, limit=60_000)
    app = {"bin/run": b"1", "share/data": os.urandom(30_000)}
    channel = await content.announce(1, await content.release({"till": app}))
    await relay.cache.offer(content.publisher.metadata_for("lab"))
    relay.cache.pin([channel])
    data = path_of(Digest.of(app["share/data"]).sha256)
    for path in [path_of(digest) for digest in content.objects.packed]:
        await relay.cache.ensure(path)
    others = [path_of(await put(content, os.urandom(10_000))) for _ in range(8)]
    for path in others:
        await relay.cache.ensure(path)
    assert relay.has(data)
    assert relay.cache.stored_bytes <= 60_000
    assert [relay.has(path) for path in others] == [False] * 6 + [True] * 2
    relay.cache.pin([])
    for path in others:
        await relay.cache.ensure(path)
    assert not relay.has(data)


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
