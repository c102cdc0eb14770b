"""Sticks with deltas and packs: small, whole in the end, and no more believed than others."""

import shutil
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest

from edgewise.backends.files.bundle import Bundle, write_bundle
from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.sqlite.relay import SqliteRelayMemory, open_relay_database
from edgewise.cli.bundle_deltas import Carried, carried
from edgewise.cli.content import FolderPlace
from edgewise.delivery import packing
from edgewise.delivery.contents import objects_of_tree
from edgewise.delivery.delta import parse_tree
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.model.errors import TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.codec import encode
from edgewise.protocol.content import object_path
from edgewise.protocol.delta import delta_path
from edgewise.protocol.installed import Installed
from edgewise.protocol.media import BundleIndex, MediaReply, MediaRequest
from edgewise.roles.media_import import _terms
from edgewise.roles.media_relay import Filling
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.delta_world import DeltaWorld, changed, noise

ONE = {"bin/run": b"#!/bin/sh\n", "big": noise(1, 400_000), "same": noise(2, 100_000)}
TWO = {
    "bin/run": b"#!/bin/sh\n",
    "big": changed(ONE["big"], 200_000, b"changed here"),
    "same": ONE["same"],
    "small": noise(3, 900),
}


@dataclass
class Folder:
    """What ``cli.content.Content`` reads, from a directory."""

    place: FolderPlace

    def object(self, sha256: str, at_most: int) -> bytes:
        with self.place.open(object_path(sha256), packing.packed_bound(at_most)) as file:
            return packing.unpack(file.read(), sha256, at_most=at_most)


@dataclass
class Site:
    """A node with version one that lost its network, and a hub with version two."""

    world: DeltaWorld
    folder: Path
    reply: MediaReply | None = None
    leave_out: set[str] = field(default_factory=set)

    def content(self) -> Folder:
        top = self.folder / "content"
        shutil.rmtree(top, ignore_errors=True)
        (top / "tuf").mkdir(parents=True)
        packed = {object_path(s): d for s, d in self.world.content.objects.packed.items()}
        for path, data in (self.world.content.files | packed).items():
            (top / path).parent.mkdir(parents=True, exist_ok=True)
            (top / path).write_bytes(data)
        return Folder(FolderPlace(top))

    async def export(
        self, *, base: bool = True, packs: bool = False, whole: bool = False
    ) -> tuple[Path, Carried]:
        """As ``edgewise bundle export`` does."""
        world = self.world
        manifests = {
            name: await world.content.objects.get(ref.sha256, at_most=limits.TREE)
            for name, ref in world.trees.items()
        }
        before = {world.trees["one"].sha256: parse_tree(manifests["one"])} if base else {}
        after = {world.trees["two"].sha256: parse_tree(manifests["two"])}
        request = MediaRequest("lab", "", 86_400.0, () if whole else tuple(before), packs)
        deltas = await world.content.publisher.media_deltas(request)
        self.reply = reply = world.content.publisher.media(request, deltas)
        objects = objects_of_tree(world.trees["two"].sha256, manifests["two"])
        if base:
            for sha256 in objects_of_tree(world.trees["one"].sha256, manifests["one"]):
                objects.pop(sha256, None)
        held = ExitStack()
        with held:
            found = carried(self.content(), deltas, (before, after), objects, held)  # type: ignore[arg-type]
            deltas_read = [(ref, file.read()) for ref, file in found.files]
        contents = {
            sha256
            for tree in manifests.values()
            for sha256 in objects_of_tree(Digest.of(tree).sha256, tree)
        } - {ref.sha256 for ref in world.trees.values()}
        kept = objects.keys() - found.left_out
        files = {f"tuf/{n}": data for n, data in reply.metadata.items() if "/" not in n}
        files["records/n1.json"] = encode(world.content.record())
        for sha256, data in world.content.objects.packed.items():
            if sha256 in kept or sha256 not in contents:
                files[object_path(sha256)] = data
        files |= {delta_path(ref.sha256): data for ref, data in deltas_read}
        return self.write(files), found

    def write(self, files: dict[str, bytes]) -> Path:
        to = self.folder / f"{len(list(self.folder.iterdir()))}.bundle"
        with write_bundle(to, BundleIndex("lab", "", (), (), 0, 0)) as writer:
            for path, data in sorted(files.items(), key=lambda item: item[0]):
                writer.add(path, len(data), BytesIO(data))
        return to

    async def install(self, stick: Path) -> Installed:
        """As ``edgewise bundle import`` does."""
        world, bundle = self.world, Bundle.open(stick)
        files = bundle.metadata()
        files.pop("timestamp.json", None)
        verified = await world.trust.take(files, bundle.record("n1"))
        assert verified.channel is not None
        release = verified.channel.stable
        installed = await fetch(
            release,
            NodeRecord("n1", 1, "lab"),
            replace(_terms(bundle, lambda done, total: None), reserve=0),
            trust=world.trust,
            store=world.store,
            source=bundle,
        )
        world.check("two")
        world.store.activate(release)
        return installed


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    clock = ManualClock()
    world = DeltaWorld(await Content.open(clock), clock, tmp_path / "node")
    (tmp_path / "sticks").mkdir()
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    await world.delta("one", "two")
    await world.delta("", "two")
    world.content.publisher.listing = world._listing
    await world.content.announce(9, world.releases["two"])
    return Site(world, tmp_path / "sticks")


def big(of: dict[str, bytes]) -> str:
    return Digest.of(of["big"]).sha256


async def test_a_stick_with_a_delta_is_small_and_installs_all(site: Site) -> None:
    small, found = await site.export()
    full, none = await site.export(whole=True)
    assert big(TWO) in found.left_out
    assert not none.files
    assert small.stat().st_size < full.stat().st_size / 5
    installed = await site.install(small)
    assert installed.traffic.used["delta"] > 0
    assert installed.traffic.refused == ()


async def test_what_a_delta_does_not_pay_for_is_on_the_stick_whole(site: Site) -> None:
    """A node that reads it through a relay, at the price of a link, takes it whole."""
    site.world.files["two"] = TWO
    stick, found = await site.export()
    left = {sha256 for sha256, _ in Bundle.open(stick).objects()}
    assert left.isdisjoint(found.left_out)
    assert {Digest.of(TWO["small"]).sha256} <= left | found.left_out


async def test_a_stick_with_packs_serves_a_node_that_has_nothing(
    site: Site, tmp_path: Path
) -> None:
    stick, found = await site.export(base=False, packs=True)
    assert {Digest.of(data).sha256 for data in TWO.values() if len(data) > 10_000} <= found.left_out
    site.world.root = tmp_path / "fresh"
    await site.world.trust.verify({}, site.world.content.record(), site.world.content.source)
    installed = await site.install(stick)
    assert installed.traffic.used["pack"] > 0


async def test_an_order_names_only_the_deltas_that_the_stick_has(site: Site) -> None:
    stick, found = await site.export()
    assert site.reply is not None
    channel = await site.world.content.publisher.listing(
        site.world.content.publisher.channel("lab")  # type: ignore[arg-type]
    )
    assert site.reply.deltas not in ("", Digest.of(channel).sha256)
    assert {sha for sha, _ in Bundle.open(stick).deltas()} == {ref.sha256 for ref, _ in found.files}
    assert all(ref.base for ref, _ in found.files)


async def test_a_hub_that_made_no_such_delta_exports_everything_whole(site: Site) -> None:
    site.world.refs = []
    stick, found = await site.export(packs=True)
    assert site.reply is not None
    assert site.reply.deltas == ""
    assert not found.left_out
    installed = await site.install(stick)
    assert "whole" in installed.traffic.used


async def test_a_delta_that_is_damaged_on_the_hub_goes_on_no_stick(site: Site) -> None:
    path = delta_path(site.world.refs[0].sha256)
    good = site.world.content.files[path]
    for at in (10, site.world.refs[0].head + 3, len(good) - 5):
        site.world.content.files[path] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        with pytest.raises(Untrusted):
            await site.export()
    site.world.content.files[path] = good[:-1]
    with pytest.raises(Untrusted):
        await site.export()


async def test_a_stick_whose_delta_was_damaged_or_swapped_leaves_the_old_release(
    site: Site,
) -> None:
    """What was left out for its sake is not there: the node says so and runs on."""
    stick, found = await site.export()
    bundle = Bundle.open(stick)
    files = {name: bundle.small(name, 1 << 30) for name in bundle.names()}
    files.pop("edgewise-bundle.json")
    (ref,) = (ref for ref, _ in found.files)
    data = files[delta_path(ref.sha256)]
    for wrong in (data[: ref.lead], data[:-40] + bytes(40), b"EWD1", bytes(len(data))):
        with pytest.raises(TryLater, match="does not have object"):
            await site.install(site.write(files | {delta_path(ref.sha256): wrong}))
        active = site.world.store.active()
        assert active is not None
        assert active.release == site.world.releases["one"]
    await site.install(stick)


async def test_a_node_that_has_another_release_is_told_what_is_missing(
    site: Site, tmp_path: Path
) -> None:
    stick, _ = await site.export()
    site.world.root = tmp_path / "other"
    await site.world.trust.verify({}, site.world.content.record(), site.world.content.source)
    with pytest.raises(TryLater, match="does not have object"):
        await site.install(stick)
    assert site.world.store.active() is None


async def test_nodes_behind_a_relay_that_got_the_stick_take_its_delta(
    site: Site, tmp_path: Path
) -> None:
    stick, found = await site.export()
    content, clock = tmp_path / "relay", site.world.clock
    database = open_relay_database(tmp_path / "relay.db")
    (content / "tuf").mkdir(parents=True)
    filling = Filling(
        content, SqliteRelayMemory(database), site.world.content.publisher.root, clock
    )
    cached = await filling.fill(Bundle.open(stick))
    database.close()
    assert cached.deltas == len(found.files) == 1
    held = CacheFiles(content)
    assert all(held.exists(delta_path(ref.sha256)) for ref, _ in found.files)
    # What the relay holds is all there is now.
    source = site.world.content.source
    source.objects, source.files = None, {}
    for path in content.rglob("*"):
        if path.is_file():
            source.files[str(path.relative_to(content))] = path.read_bytes()
    await site.world.trust.verify({}, site.world.content.record(), source)
    installed = await fetch(
        site.world.releases["two"],
        NodeRecord("n1", 1, "lab"),
        Terms(site.world.terms.platform, reserve=0),
        trust=site.world.trust,
        store=site.world.store,
        source=source,
    )
    site.world.check("two")
    assert installed.traffic.used["delta"] > 0


async def test_a_stick_with_deltas_travels_as_long_as_any(site: Site) -> None:
    stick, _ = await site.export()
    site.world.clock.advance(timedelta(hours=23))
    await site.install(stick)


async def test_a_node_that_needs_little_of_a_delta_takes_it_all_the_same(
    tmp_path: Path,
) -> None:
    """It has most of the release from elsewhere; over a link the rest would be cheaper whole,
    but the stick does not have it whole."""
    clock = ManualClock()
    world = DeltaWorld(await Content.open(clock), clock, tmp_path / "node")
    (tmp_path / "sticks").mkdir()
    run = {"bin/run": b"#!/bin/sh\n"}
    after = {f"doc/{n}": noise(n, 4_000) for n in range(40)}  # all in one part
    most = dict(list(after.items())[:-1])
    for name, files in (("zero", run | most), ("one", run), ("two", run | after)):
        await world.version(name, files)
    await world.install("zero")
    await world.install("one")
    await world.delta("one", "two")
    world.content.publisher.listing = world._listing
    await world.content.announce(9, world.releases["two"])
    site = Site(world, tmp_path / "sticks")
    stick, found = await site.export()
    (last,) = after.keys() - most.keys()
    assert Digest.of(after[last]).sha256 in found.left_out
    installed = await site.install(stick)
    assert "whole" not in installed.traffic.used
