"""What a relay, a mirror or a thief may try against a node, and what comes of it."""

import asyncio
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery import packing
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.model.errors import NeedsPerson, TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.content import PartRef, ProcessApp, Release, TreeRef
from edgewise.protocol.installed import Installed
from edgewise.runtime.clock import SystemClock
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content
from edgewise.testing.source import MemorySource, path_of

OLD = {"bin/run": b"old release", "data/same": b"same" * 1000}
NEW = {"bin/run": b"new release" * 500, "data/same": b"same" * 1000}


class Story:
    """A node that runs the old release; the new one is published."""

    clock: ManualClock
    content: Content
    node: NodeStore
    old: str
    new: str

    def trust(self, name: str = "n1") -> NodeTrust:
        root = self.node.root
        return NodeTrust(root / "trust", self.root, node=name, clock=self.clock)

    async def verify(self, **kept: object):
        bundle = kept.get("bundle", {})
        record = kept.get("record", self.content.record())
        source = kept.get("source", self.content.source)
        return await self.trust().verify(bundle, record, source)

    async def install(self, release: str, source: MemorySource | None = None) -> Installed:
        return await fetch(
            release,
            NodeRecord("n1", 1, "lab"),
            Terms(PLATFORM, reserve=0),
            trust=self.trust(),
            store=self.node,
            source=source or self.content.source,
        )

    def still_runs_the_old_release(self) -> bool:
        active = NodeStore(self.node.root).active()
        top = self.node.release_directory(self.old) / "apps" / "hello"
        return (
            active is not None
            and active.release == self.old
            and all((top / path).read_bytes() == data for path, data in OLD.items())
        )


@pytest.fixture
async def story(tmp_path: Path) -> Story:
    story = Story()
    story.clock = ManualClock()
    story.content = await Content.open(story.clock)
    story.root = story.content.publisher.root
    story.node = NodeStore(tmp_path / "node")
    story.old = await story.content.release({"hello": OLD})
    await story.content.announce(1, story.old)
    await story.verify()
    await story.install(story.old)
    story.node.activate(story.old)
    story.new = await story.content.release({"hello": NEW})
    await story.content.announce(2, story.new)
    return story


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


async def test_a_tampered_object_is_refused_and_the_old_release_runs_on(story: Story) -> None:
    await story.verify()
    path = path_of(Digest.of(NEW["bin/run"]).sha256)
    story.content.source.lie(path, lambda _: packing.pack(b"evil release"), times=2)
    with pytest.raises(Untrusted):
        await story.install(story.new)
    assert story.still_runs_the_old_release()
    assert story.node.staged(story.new) is None
    await story.install(story.new)


async def test_one_lie_is_healed_by_asking_again(story: Story) -> None:
    await story.verify()
    path = path_of(Digest.of(NEW["bin/run"]).sha256)
    story.content.source.lie(path, flip)
    await story.install(story.new)
    assert [p for p, _ in story.content.source.requests].count(path) == 2


async def test_a_tampered_manifest_is_refused(story: Story) -> None:
    await story.verify()
    story.content.source.lie(path_of(story.new), lambda _: packing.pack(b"{}"), times=2)
    with pytest.raises(Untrusted):
        await story.install(story.new)
    assert story.still_runs_the_old_release()


async def test_a_tampered_channel_in_the_bundle_is_replaced_by_the_signed_one(
    story: Story,
) -> None:
    bundle = dict(story.content.publisher.metadata_for("lab"))
    bundle["channels/lab.json"] = encode(Channel("lab", 99, stable="f" * 64))
    verified = await story.verify(bundle=bundle)
    assert verified.channel.sequence == 2


@pytest.mark.parametrize("part", ["timestamp", "snapshot", "targets", "channels"])
async def test_tampered_metadata_is_refused(story: Story, part: str) -> None:
    lying = MemorySource(dict(story.content.files), story.content.objects)
    for name, data in story.content.files.items():
        if name.endswith(f"{part}.json"):
            body = json.loads(data)
            body["signed"]["expires"] = "2030-01-01T00:00:00Z"
            lying.files[name] = json.dumps(body).encode()
    fresh = NodeTrust(story.node.root / "fresh", story.root, node="n1", clock=story.clock)
    with pytest.raises(Untrusted):
        await fresh.verify({}, story.content.record(), lying)
    assert story.still_runs_the_old_release()


async def test_an_old_repository_replayed_is_refused(story: Story) -> None:
    old = MemorySource(dict(story.content.files), story.content.objects)
    await story.content.announce(3, story.new)
    await story.verify()
    with pytest.raises(Untrusted, match="version"):
        await story.verify(source=old)
    assert story.still_runs_the_old_release()


async def test_an_old_repository_is_refused_even_when_tuf_forgot(story: Story) -> None:
    old = MemorySource(dict(story.content.files), story.content.objects)
    await story.content.announce(3, story.new)
    await story.verify()
    (story.node.root / "trust" / "timestamp.json").unlink()
    (story.node.root / "trust" / "snapshot.json").unlink()
    with pytest.raises(Untrusted, match="timestamp goes back"):
        await story.verify(source=old)


async def test_a_frozen_mirror_is_noticed_after_a_week(story: Story) -> None:
    await story.verify()
    story.clock.advance(timedelta(days=8))
    with pytest.raises(TryLater, match="what is installed keeps running"):
        await story.verify()
    with pytest.raises(TryLater, match="what is installed keeps running"):
        await story.install(story.new)
    assert story.still_runs_the_old_release()
    await story.content.publisher.refresh()
    await story.verify()
    await story.install(story.new)


async def test_a_node_with_its_clock_at_1970_starts_from_what_it_knows(story: Story) -> None:
    story.clock.advance(timedelta(days=60))
    await story.content.publisher.refresh()
    await story.verify()
    stale = MemorySource(dict(story.content.files), story.content.objects)
    story.clock.advance(timedelta(days=30))
    await story.content.publisher.refresh()
    await story.verify()
    story.clock = ManualClock(datetime(1970, 1, 2, tzinfo=UTC))
    verified = await story.verify()
    assert verified.channel.sequence == 2
    with pytest.raises(Untrusted):
        await story.verify(source=stale)
    await story.install(story.new)


async def test_a_node_with_its_clock_at_2099_says_so_and_recovers(story: Story) -> None:
    right = story.clock
    story.clock = ManualClock(datetime(2099, 1, 1, tzinfo=UTC))
    with pytest.raises(TryLater, match="2099-01-01") as error:
        await story.verify()
    assert "clock" in error.value.hint
    assert story.still_runs_the_old_release()
    story.clock = right
    assert (await story.verify()).channel.sequence == 2


async def test_a_record_for_another_node_is_refused(story: Story) -> None:
    with pytest.raises(Untrusted, match="a record for n2 was given to n1"):
        await story.verify(record=story.content.record("n2"))


async def test_a_record_that_a_relay_signed_is_refused(story: Story) -> None:
    good = story.content.record(sequence=2)
    payload = encode(NodeRecord("n1", 2, "other-fleet"))
    for forged in (
        Signed(good.purpose, payload, good.key_id, good.signature),
        Signed(good.purpose, payload, "0" * 64, good.signature),
        Signed("receipt/1", good.payload, good.key_id, good.signature),
    ):
        with pytest.raises(Untrusted):
            await story.verify(record=forged)


async def test_an_older_record_is_refused(story: Story) -> None:
    await story.verify(record=story.content.record(sequence=5))
    with pytest.raises(Untrusted, match="goes back from 5 to 4"):
        await story.verify(record=story.content.record(sequence=4))


async def test_the_channel_of_another_fleet_is_refused(story: Story) -> None:
    data = encode(Channel("shop", 1))
    publisher = story.content.publisher
    await publisher.publish_channels([Channel("shop", 1)])
    targets = dict(publisher._tuf.targets("channels"))
    from edgewise.delivery import trust

    targets["channels/lab.json"] = trust.target_of("channels/lab.json", data)
    await publisher._commit({"channels": publisher._tuf.next_channels(targets, story.clock.now())})
    with pytest.raises(Untrusted, match="channel of shop was given as that of lab"):
        await story.verify()


async def test_a_channel_that_goes_back_is_refused(story: Story) -> None:
    await story.verify()
    data = encode(Channel("lab", 1, stable=story.old))
    publisher = story.content.publisher
    await story.content.objects.put(Digest.of(data).sha256, data)
    from edgewise.delivery import trust

    targets = {"channels/lab.json": trust.target_of("channels/lab.json", data)}
    await publisher._commit({"channels": publisher._tuf.next_channels(targets, story.clock.now())})
    with pytest.raises(Untrusted, match="goes back from 2 to 1"):
        await story.verify()


async def test_a_zip_bomb_stops_at_the_signed_size(story: Story) -> None:
    await story.verify()
    path = path_of(Digest.of(NEW["bin/run"]).sha256)
    bomb = packing.pack(b"\0" * (200 << 20))
    assert len(bomb) < 8000
    story.content.source.lie(path, lambda _: bomb, times=2)
    with pytest.raises(Untrusted, match=r"more than|is longer than"):
        await story.install(story.new)
    assert story.still_runs_the_old_release()


def _link_out(tree: dict) -> None:
    tree["entries"] = [{"path": "out", "kind": "link", "target": "../../../../etc"}]


def _below_a_link(tree: dict) -> None:
    digest = Digest.of(b"x").sha256
    tree["entries"] = [
        {"path": "a", "kind": "link", "target": "b"},
        {"path": "a/evil", "kind": "file", "sha256": digest, "size": 1},
        {"path": "b", "kind": "dir", "mode": 0o755},
    ]


def _dots(tree: dict) -> None:
    tree["entries"] = [{"path": "../evil", "kind": "dir"}]


def _setuid(tree: dict) -> None:
    digest = Digest.of(b"x").sha256
    tree["entries"] = [{"path": "su", "kind": "file", "sha256": digest, "size": 1, "mode": 0o4755}]


@pytest.mark.parametrize("trick", [_link_out, _below_a_link, _dots, _setuid])
async def test_a_tree_that_would_write_outside_itself_is_refused(
    story: Story, trick: Callable[[dict], None]
) -> None:
    tree: dict = {"entries": [], "schema": 1}
    trick(tree)
    manifest = msgspec.json.encode(tree)
    ref = TreeRef(Digest.of(manifest).sha256, sum(e.get("size", 0) for e in tree["entries"]), 1)
    app = encode(ProcessApp("hello", {PLATFORM: ref}, ("run",)))
    release = encode(Release("lab", (PartRef("app", "hello", (), {"": Digest.of(app).sha256}),)))
    documents = {Digest.of(data).sha256: data for data in (b"x", manifest, app, release)}
    digest = Digest.of(release).sha256
    await story.content.publisher.publish_release(digest, documents)
    await story.verify()
    with pytest.raises(Untrusted):
        await story.install(digest)
    assert story.still_runs_the_old_release()


async def test_a_truncated_download_is_resumed_after_a_restart(story: Story) -> None:
    big = os.urandom(600_000)
    release = await story.content.release({"hello": {"bin/run": big}})
    await story.verify()
    path = path_of(Digest.of(big).sha256)
    story.content.source.cut(path, 400_000, 0)
    with pytest.raises(TryLater):
        await story.install(release)
    story.node = NodeStore(story.node.root)
    await story.install(release)
    assert [s for p, s in story.content.source.requests if p == path] == [0, 400_000, 400_000]


async def test_a_corrupt_beginning_is_thrown_away_once(story: Story) -> None:
    big = os.urandom(600_000)
    release = await story.content.release({"hello": {"bin/run": big}})
    await story.verify()
    path = path_of(Digest.of(big).sha256)
    story.content.source.cut(path, 400_000, 0)
    with pytest.raises(TryLater):
        await story.install(release)
    partial = next((story.node.root / "staging" / "partial").iterdir())
    data = bytearray(partial.read_bytes())
    data[1000] ^= 1
    partial.write_bytes(data)
    await story.install(release)
    starts = [s for p, s in story.content.source.requests if p == path]
    assert starts == [0, 400_000, 400_000, 0]


async def test_a_kept_file_that_the_disk_changed_is_fetched_again(story: Story) -> None:
    await story.verify()
    kept = next((story.node.root / "store" / "objects").rglob("*-644"))
    kept.write_bytes(b"rot")
    await story.install(story.new)
    top = story.node.release_directory(story.new) / "apps" / "hello"
    assert (top / "data" / "same").read_bytes() == NEW["data/same"]


async def test_a_damaged_release_file_is_a_clear_error(story: Story) -> None:
    path = story.node.release_directory(story.old) / "release.json"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(NeedsPerson, match=r"release.json is damaged"):
        story.node.active()


async def test_a_check_and_a_fetch_at_the_same_time_do_not_trip_over_each_other(
    story: Story,
) -> None:
    await story.verify()  # a fetch begins after a check has told of the release
    record = story.content.record()

    def use(ask_permission: bool) -> None:
        async def again_and_again() -> None:
            for _ in range(25):
                mine = NodeTrust(
                    story.node.root / "trust", story.root, node="n1", clock=SystemClock()
                )
                mine._now = story.clock.now  # type: ignore[method-assign]
                if ask_permission:
                    assert await mine.permission(story.new, story.content.source) > 0
                else:
                    verified = await mine.verify({}, record, story.content.source)
                    assert verified.channel is not None

        asyncio.run(again_and_again())

    await asyncio.gather(*(asyncio.to_thread(use, kind) for kind in (True, False, True, False)))
