"""A node verifies, fetches and stages; the ordinary days."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.model.errors import NeedsPerson, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol.content import SealedSecret
from edgewise.protocol.installed import Installed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content
from edgewise.testing.source import path_of

APP = {"bin/run": b"#!/bin/sh\n", "data/a": b"a" * 5000, "data/b": b""}


class Node:
    def __init__(self, content: Content, path: Path, clock: ManualClock, name: str = "n1") -> None:
        self.content = content
        self.root = content.publisher.root
        self.path = path
        self.clock = clock
        self.name = name
        self.store = NodeStore(path)

    @property
    def trust(self) -> NodeTrust:
        return NodeTrust(self.path / "trust", self.root, node=self.name, clock=self.clock)

    async def install(self, release: str) -> Installed:
        verified = await self.trust.verify({}, None, self.content.source)
        assert verified.record
        return await fetch(
            release,
            verified.record,
            Terms(PLATFORM, reserve=0),
            trust=self.trust,
            store=self.store,
            source=self.content.source,
        )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def content(clock: ManualClock) -> Content:
    return await Content.open(clock)


@pytest.fixture
def node(content: Content, clock: ManualClock, tmp_path: Path) -> Node:
    return Node(content, tmp_path, clock)


async def test_a_wake_up_with_its_bundle_needs_no_request(content: Content, node: Node) -> None:
    release = await content.release({"hello": APP})
    channel = await content.announce(1, release)
    bundle = content.publisher.metadata_for("lab")
    verified = await node.trust.verify(bundle, content.record(), content.source)
    assert verified.channel == channel
    assert verified.record is not None
    assert verified.record.fleet == "lab"
    assert content.source.requests == []


async def test_a_node_without_a_bundle_fetches_what_it_needs(content: Content, node: Node) -> None:
    release = await content.release({"hello": APP})
    channel = await content.announce(1, release)
    verified = await node.trust.verify({}, content.record(), content.source)
    assert verified.channel == channel


async def test_what_was_verified_is_still_known_after_a_restart(
    content: Content, node: Node
) -> None:
    channel = await content.announce(1, await content.release({"hello": APP}))
    bundle = content.publisher.metadata_for("lab")
    await node.trust.verify(bundle, content.record(), content.source)
    again = await node.trust.verify(bundle, None, content.source)
    assert again.channel == channel
    assert again.record is not None


async def test_a_release_arrives_whole_and_is_started(content: Content, node: Node) -> None:
    release = await content.release({"hello": APP})
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    installed = await node.install(release)
    assert node.store.active() is None
    node.store.activate(release)
    assert node.store.active() == installed
    top = node.store.release_directory(release) / "apps" / "hello"
    assert (top / "data" / "a").read_bytes() == b"a" * 5000
    assert (top / "bin" / "run").stat().st_mode & 0o777 == 0o755
    assert 0 < installed.bytes_fetched == installed.bytes_full


async def test_a_second_release_fetches_only_what_is_new(content: Content, node: Node) -> None:
    first = await content.release({"hello": APP})
    await content.announce(1, first)
    await node.trust.verify({}, content.record(), content.source)
    await node.install(first)
    node.store.activate(first)
    second = await content.release({"hello": APP | {"data/c": b"new"}})
    content.source.requests.clear()
    installed = await node.install(second)
    wanted = [path for path, _ in content.source.requests if path.startswith("objects/")]
    assert len(wanted) == 4  # release, part, tree, the new file
    assert installed.bytes_fetched < installed.bytes_full
    node.store.activate(second)
    before = node.store.previous()
    assert before is not None
    assert before.release == first
    assert node.store.put_back().release == first
    assert node.store.previous() is None


async def test_fetching_what_is_here_fetches_nothing(content: Content, node: Node) -> None:
    release = await content.release({"hello": APP})
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    first = await node.install(release)
    served = content.source.served
    assert await node.install(release) == first
    objects = [p for p, _ in content.source.requests if p.startswith("objects/")]
    assert len(objects) == len(set(objects))
    assert content.source.served - served < 3000  # the timestamp and nothing else


async def test_garbage_goes_and_what_runs_stays(content: Content, node: Node) -> None:
    releases = []
    for number in range(4):
        release = await content.release({"hello": APP | {"n": b"%d" % number * 100}})
        await content.announce(number + 1, release)
        await node.trust.verify({}, content.record(), content.source)
        await node.install(release)
        node.store.activate(release)
        releases.append(release)
    assert node.store.collect(keep=[releases[0]]) >= 100
    left = {installed.release for installed in node.store.installed()}
    assert left == {releases[0], releases[2], releases[3]}
    assert node.store.active().release == releases[3]
    node.store.collect()
    assert {i.release for i in node.store.installed()} == {releases[2], releases[3]}


async def test_nothing_is_collected_while_a_fetch_runs(content: Content, node: Node) -> None:
    release = await content.release({"hello": APP})
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    with node.store.fetching():
        await node.install(release)
        (node.store.root / "releases" / release).rename(node.store.root / "aside")
        assert node.store.collect() == 0
    assert any((node.store.root / "store" / "objects").rglob("*-644"))


async def test_a_secret_that_is_not_sealed_yet_is_waited_for(content: Content, node: Node) -> None:
    secret = SealedSecret("pw", "0" * 64, "/run/pw", ("key",))
    release, documents = await content.documents({}, more=(secret,))
    await content.publisher.publish_release(release, documents)
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    with pytest.raises(TryLater, match="not sealed to n1"):
        await node.install(release)


async def test_a_platform_that_was_not_built_is_said(content: Content, node: Node) -> None:
    release = await content.release({"hello": APP})
    await content.announce(1, release)
    verified = await node.trust.verify({}, content.record(), content.source)
    with pytest.raises(NeedsPerson, match="not built for linux/riscv64"):
        await fetch(
            release,
            verified.record,
            Terms("linux/riscv64"),
            trust=node.trust,
            store=node.store,
            source=content.source,
        )


async def test_a_release_that_no_builder_signed_is_refused(content: Content, node: Node) -> None:
    release, documents = await content.documents({"hello": APP})
    await content.publisher.put_objects(documents)
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    with pytest.raises(Untrusted, match="no builder signed"):
        await node.install(release)


async def test_a_cut_download_goes_on_where_it_broke(content: Content, node: Node) -> None:
    big = os.urandom(700_000)
    release = await content.release({"hello": {"bin/run": big}})
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    path = path_of(Digest.of(big).sha256)
    content.source.cut(path, 300_000, 200_000)
    await node.install(release)
    starts = [start for p, start in content.source.requests if p == path]
    assert starts == [0, 300_000, 500_000]


async def test_a_hub_signs_again_in_time(content: Content, node: Node, clock: ManualClock) -> None:
    await content.announce(1, await content.release({"hello": APP}))
    for _ in range(40):
        clock.advance(timedelta(days=1))
        await content.publisher.refresh()
        await node.trust.verify(
            content.publisher.metadata_for("lab"), content.record(), content.source
        )


async def test_nodes_follow_new_keys(content: Content, node: Node, clock: ManualClock) -> None:
    release = await content.release({"hello": APP})
    await content.announce(1, release)
    await node.trust.verify({}, content.record(), content.source)
    await content.publisher.rotate("root")
    await content.publisher.rotate("online")
    channel = await content.announce(2, release)
    bundle = content.publisher.metadata_for("lab")
    assert (await node.trust.verify(bundle, None, content.source)).record is None
    verified = await node.trust.verify(bundle, content.record(sequence=2), content.source)
    assert verified.channel == channel
    await content.reopen(clock)
    assert content.publisher.channel("lab") == channel
