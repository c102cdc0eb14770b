"""A stick that anybody may have held: what it can and cannot make a node do."""

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest

from edgewise.backends.files.bundle import INDEX, Bundle, write_bundle
from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.backends.sqlite.relay import SqliteRelayMemory, open_relay_database
from edgewise.backends.tuf.client import NodeTrust
from edgewise.backends.tuf.repository import FileMetadata
from edgewise.delivery import packing
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.delivery.on_relay import Cache
from edgewise.delivery.ports import Verified
from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    NeedsPerson,
    NotFound,
    TryLater,
    Untrusted,
)
from edgewise.protocol.channel import Channel, NodeRecord
from edgewise.protocol.codec import encode
from edgewise.protocol.content import object_path
from edgewise.protocol.installed import Installed
from edgewise.protocol.media import MEDIA, BundleIndex, MediaRequest
from edgewise.roles.media_relay import Filling
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content
from edgewise.testing.log import ListLog
from edgewise.testing.source import MemorySource

OLD = {"bin/run": b"old release", "data/same": b"same" * 1000}
NEW = {"bin/run": b"new release" * 500, "data/same": b"same" * 1000}
NOWHERE = MemorySource()
NOWHERE.away = True


class Site:
    """A node that runs the old release and then lost its network; the hub has a new one."""

    clock: ManualClock
    hub: Content
    node: NodeStore
    root: bytes
    old: str
    new: str
    sticks: Path

    def trust(self, name: str = "n1") -> NodeTrust:
        return NodeTrust(self.node.root / "trust", self.root, node=name, clock=self.clock)

    def export(self, name: str = "stick", *, valid: timedelta = timedelta(days=365)) -> Path:
        reply = self.hub.publisher.media(MediaRequest("lab", "", valid.total_seconds()))
        files = {f"tuf/{n}": data for n, data in reply.metadata.items() if "/" not in n}
        files["records/n1.json"] = encode(self.hub.record())
        files |= {object_path(d): data for d, data in self.hub.objects.packed.items()}
        return self.write(name, files)

    def write(self, name: str, files: dict[str, bytes]) -> Path:
        to = self.sticks / f"{name}.bundle"
        index = BundleIndex("lab", self.new, (), (), len(files), 0)
        with write_bundle(to, index) as writer:
            for path, data in sorted(files.items()):
                writer.add(path, len(data), BytesIO(data))
        return to

    async def verify(self, stick: Path, *, name: str = "n1") -> Verified:
        bundle = Bundle.open(stick)
        files = bundle.metadata()
        files.pop("timestamp.json", None)
        return await self.trust(name).take(files, bundle.record("n1"))

    async def install(self, stick: Path) -> Installed:
        """As ``edgewise bundle import`` does."""
        verified = await self.verify(stick)
        assert verified.channel is not None
        release = verified.channel.stable
        await self.fetch(release, stick)
        return self.node.activate(release)

    async def fetch(self, release: str, stick: Path) -> Installed:
        return await fetch(
            release,
            NodeRecord("n1", 1, "lab"),
            Terms(PLATFORM, reserve=0),
            trust=self.trust(),
            store=self.node,
            source=Bundle.open(stick),
        )

    def runs(self) -> str:
        active = NodeStore(self.node.root).active()
        return active.release if active else ""


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    site = Site()
    site.sticks = tmp_path
    site.clock = ManualClock()
    site.hub = await Content.open(site.clock)
    site.root = site.hub.publisher.root
    site.node = NodeStore(tmp_path / "node")
    site.old = await site.hub.release({"hello": OLD})
    await site.hub.announce(1, site.old)
    await site.trust().verify({}, site.hub.record(), site.hub.source)
    await fetch(
        site.old, NodeRecord("n1", 1, "lab"), Terms(PLATFORM, reserve=0),
        trust=site.trust(), store=site.node, source=site.hub.source,
    )  # fmt: skip
    site.node.activate(site.old)
    site.new = await site.hub.release({"hello": NEW})
    await site.hub.announce(2, site.new)
    return site


async def test_a_node_without_a_network_installs_what_came_on_a_stick(site: Site) -> None:
    installed = await site.install(site.export())
    assert installed.release == site.new
    assert site.runs() == site.new


async def test_a_stick_says_nothing_of_deltas_that_it_does_not_have(site: Site) -> None:
    channel = Channel("lab", 3, stable=site.new, deltas="d" * 64)
    await site.hub.publisher.publish_channels([channel])
    await site.trust().verify({}, site.hub.record(), site.hub.source)
    await site.verify(site.export())
    assert site.trust().deltas() == ""


async def test_a_stick_that_travelled_for_months_is_taken_where_a_timestamp_is_not(
    site: Site,
) -> None:
    stick = site.export()
    site.clock.advance(timedelta(days=200))
    await site.install(stick)
    with pytest.raises(TryLater, match="expired"):
        await site.trust().verify({}, None, site.hub.source)
    assert site.runs() == site.new


async def test_an_expired_stick_is_refused(site: Site) -> None:
    stick = site.export(valid=timedelta(days=30))
    site.clock.advance(timedelta(days=31))
    with pytest.raises(TryLater, match="was good until"):
        await site.install(stick)
    assert site.runs() == site.old


async def test_a_node_with_its_clock_at_1970_takes_a_good_stick_and_no_expired_one(
    site: Site,
) -> None:
    short = site.export("short", valid=timedelta(hours=1))
    site.clock.advance(timedelta(days=2))
    await site.hub.publisher.refresh()
    good = site.export("good")
    site.clock.set_wall(datetime(1970, 1, 1, tzinfo=UTC))
    await site.install(good)
    with pytest.raises(EdgewiseError):  # the good one brought the time along
        await site.verify(short)


async def test_an_older_stick_than_what_the_node_has_seen_is_refused(site: Site) -> None:
    stick = site.export()
    third = await site.hub.release({"hello": {"bin/run": b"third"}})
    await site.hub.announce(3, third)
    newer = site.export("newer")
    await site.install(newer)
    with pytest.raises(Untrusted, match="too old"):
        await site.install(stick)
    await site.install(newer)  # the same again is harmless
    assert site.runs() == third


async def test_a_stick_from_before_the_last_contact_is_refused(site: Site) -> None:
    stick = site.export()
    await site.hub.announce(3, site.new)
    await site.trust().verify({}, site.hub.record(), site.hub.source)
    with pytest.raises(Untrusted, match="too old"):
        await site.verify(stick)


async def test_a_hub_signs_no_order_that_leads_back_or_into_quarantine(site: Site) -> None:
    with pytest.raises(Conflict, match="only lead forward"):
        site.hub.publisher.media(MediaRequest("lab", site.old))
    channel = Channel("lab", 3, stable=site.old, quarantined=(site.new,))
    await site.hub.publisher.publish_channels([channel])
    with pytest.raises(Conflict, match="quarantine"):
        site.hub.publisher.media(MediaRequest("lab", site.new))
    with pytest.raises(NotFound):
        site.hub.publisher.media(MediaRequest("other"))
    for seconds in (0.0, -1.0, float("nan"), float("inf"), 4000 * 86400.0):
        with pytest.raises(BadUsage):
            site.hub.publisher.media(MediaRequest("lab", "", seconds))


async def test_the_hub_has_the_last_word_again_when_it_is_back(site: Site) -> None:
    await site.install(site.export())
    await site.hub.announce(3, site.old)
    verified = await site.trust().verify({}, site.hub.record(), site.hub.source)
    assert verified.channel is not None
    assert (verified.channel.stable, verified.offline) == (site.old, False)


async def test_a_stick_of_another_organisation_is_refused(site: Site) -> None:
    site.hub = await Content.open(site.clock)
    site.new = await site.hub.release({"hello": NEW})
    await site.hub.announce(9, site.new)
    with pytest.raises(Untrusted):
        await site.install(site.export())
    assert site.runs() == site.old


async def test_a_stick_for_another_fleet_is_refused(site: Site) -> None:
    other = await site.hub.release({"hello": NEW}, fleet="shops")
    await site.hub.announce(1, other, fleet="shops")
    reply = site.hub.publisher.media(MediaRequest("shops"))
    stick = site.write("s", {f"tuf/{n}": d for n, d in reply.metadata.items() if "/" not in n})
    with pytest.raises(Untrusted, match="for fleet shops"):
        await site.verify(stick)


async def test_another_nodes_record_is_refused(site: Site) -> None:
    files = contents(site.export())
    files["records/n1.json"] = encode(site.hub.record("n2"))
    with pytest.raises(Untrusted, match="record for n2"):
        await site.verify(site.write("swapped", files))


async def test_a_key_that_was_taken_away_signs_no_stick(site: Site) -> None:
    """The thief of an old online key exports; the node has heard of the new key."""
    stolen = site.export()
    await site.hub.publisher.rotate("online")
    await site.trust().verify({}, site.hub.record(), site.hub.source)
    with pytest.raises(Untrusted, match="unknown key"):
        await site.verify(stolen)


async def test_roots_on_the_stick_lead_a_node_that_missed_their_rotation(site: Site) -> None:
    await site.hub.publisher.rotate("root")
    await site.hub.publisher.rotate("online")
    await site.install(site.export())
    assert site.runs() == site.new


async def test_a_node_that_was_never_told_what_it_is_takes_nothing(site: Site) -> None:
    files = contents(site.export())
    del files["records/n1.json"]
    shutil.rmtree(site.node.root / "trust")
    with pytest.raises(NeedsPerson, match="never said what n1 is"):
        await site.verify(site.write("bare", files))


async def test_a_stick_that_comes_over_the_network_is_no_news(site: Site) -> None:
    """Else whoever copied one could hide newer releases behind its long life."""
    files = Bundle.open(site.export()).metadata()
    site.clock.advance(timedelta(days=20))
    with pytest.raises(TryLater, match="expired"):
        await site.trust().verify(files, site.hub.record(), site.hub.source)


def contents(stick: Path) -> dict[str, bytes]:
    bundle = Bundle.open(stick)
    return {name: bundle.small(name, 1 << 30) for name in bundle.names() - {INDEX}}


def forge(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], None]:
    def apply(files: dict[str, bytes]) -> None:
        found = next(path for path in sorted(files) if path.endswith(name))
        files[found] = change(files[found])

    return apply


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize(
    "change",
    [
        forge(MEDIA, flip),
        forge(MEDIA, lambda data: data.replace(b"media/1", b"bundle/1")),
        forge(MEDIA, lambda data: b"{}"),
        forge(MEDIA, lambda data: b"\xff" * 5000),
        forge("builds.json", flip),
        forge("targets.json", flip),
        forge("1.root.json", flip),
        lambda files: files.pop("tuf/media.json"),
        lambda files: [files.pop(n) for n in list(files) if "builds" in n],
    ],
)
async def test_a_forged_order_is_refused(
    site: Site, change: Callable[[dict[str, bytes]], object]
) -> None:
    files = contents(site.export())
    change(files)
    stick = site.write("forged", files)
    try:
        await site.install(stick)
    except EdgewiseError:
        assert site.runs() == site.old
    else:  # a root that the node does not need changes nothing
        assert site.runs() == site.new


@pytest.mark.parametrize("kind", ["swapped", "bomb", "cut", "missing"])
async def test_wrong_content_on_a_stick_installs_nothing(site: Site, kind: str) -> None:
    files = contents(site.export())
    first = next(
        path for path in sorted(files)
        if path.startswith("objects/") and packing.pack(NEW["bin/run"]) == files[path]
    )  # fmt: skip
    if kind == "missing":
        del files[first]
    else:
        files[first] = {
            "swapped": packing.pack(b"evil release"),
            "bomb": packing.pack(bytes(64 << 20)),
            "cut": files[first][:-5],
        }[kind]
    with pytest.raises((Untrusted, TryLater)):
        await site.install(site.write("wrong", files))
    assert site.runs() == site.old


async def test_a_full_disk_refuses_a_stick_before_its_content_is_read(site: Site) -> None:
    stick = site.export()
    await site.verify(stick)
    site.node.free_bytes = lambda: 10  # type: ignore[method-assign]
    with pytest.raises(NeedsPerson):
        await site.fetch(site.new, stick)
    assert site.node.staged(site.new) is None


# On a relay


async def test_a_relay_serves_a_cut_off_site_from_a_stick(site: Site) -> None:
    stick, state = site.export(), site.sticks / "relay"
    database = open_relay_database(state_of(state) / "relay.db")
    memory = SqliteRelayMemory(database)
    filling = Filling(state / "content", memory, site.root, site.clock)
    assert (await filling.fill(Bundle.open(stick), dry_run=True)).objects > 0
    assert not list(CacheFiles(state / "content").kept())
    cached = await filling.fill(Bundle.open(stick))
    assert (cached.fleet, cached.release, cached.fresh) == ("lab", site.new, True)
    known = await memory.known()
    assert known.channels["lab"].sequence == 2
    assert set(known.records) == {"n1"}
    # The relay as it starts afterwards, without a hub.
    files = FileMetadata(state / "content/tuf")
    space = Space(CacheFiles(state / "content"), SpaceTerms(1 << 30), site.clock, ListLog())
    shelf = FileShelf(space, NOWHERE, ListLog())
    cache = Cache(shelf, files, NOWHERE, root=site.root, clock=site.clock)
    verified = await site.trust().verify(await cache.bundle("lab"), known.records["n1"], NOWHERE)
    assert verified.channel is not None
    assert verified.channel.stable == site.new
    for sha256, _ in Bundle.open(stick).objects():
        await cache.ensure(object_path(sha256))
    assert (await filling.fill(Bundle.open(stick))).objects == 0
    database.close()


async def test_a_relay_takes_no_older_and_no_foreign_stick(site: Site) -> None:
    old = site.export("old")
    third = await site.hub.release({"hello": {"bin/run": b"third"}})
    await site.hub.announce(3, third)
    newer, state = site.export("newer"), site.sticks / "relay"
    database = open_relay_database(state_of(state) / "relay.db")
    filling = Filling(state / "content", SqliteRelayMemory(database), site.root, site.clock)
    await filling.fill(Bundle.open(newer))
    with pytest.raises(Untrusted, match="goes back"):
        await filling.fill(Bundle.open(old))
    site.hub = await Content.open(site.clock)
    site.new = await site.hub.release({"hello": NEW})
    await site.hub.announce(9, site.new)
    with pytest.raises(Untrusted):
        await filling.fill(Bundle.open(site.export("foreign")))
    site.clock.advance(timedelta(days=400))
    with pytest.raises(TryLater, match="was good until"):
        await filling.fill(Bundle.open(newer))
    database.close()


def state_of(folder: Path) -> Path:
    (folder / "content").mkdir(parents=True)
    return folder


# The file itself


def header(name: bytes, size: int, kind: bytes = b"0", *, damage: bool = False) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = b"%011o\0" % size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    total = sum(block[:148]) + 8 * 0x20 + sum(block[156:]) + damage
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def member(name: bytes, data: bytes = b"x", kind: bytes = b"0") -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % 512)


END = bytes(1024)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "without an end of archive"),
        (b"\x1f\x8b" + bytes(600), "no tar file"),
        (member(b"tuf/timestamp.json") + b"\x1f\x8b" * 300, "no tar header"),
        (member(b"../../etc/passwd") + END, "no name of a file"),
        (member(b"/etc/passwd") + END, "no name of a file"),
        (member(b"objects/../../x.zst") + END, "no name of a file"),
        (member(b"tuf/a/b.json") + END, "no name of a file"),
        (member(b"tuf/1.root.json\nx") + END, "no name of a file"),
        (member(b"tuf/timestamp.json", kind=b"2") + END, "no regular file"),
        (member(b"tuf/timestamp.json", kind=b"1") + END, "no regular file"),
        (member(b"x", b"11 path=a\n", b"x") + END, "no regular file"),
        (member(b"x", b"long", b"L") + END, "no regular file"),
        (member(b"tuf/media.json") * 2 + END, "two files"),
        (header(b"tuf/media.json", 1 << 32) + END, "in the middle of"),
        (header(b"tuf/media.json", 5, damage=True) + END, "damaged"),
        (member(b"tuf/media.json"), "without an end of archive"),
        (member(b"tuf/media.json") + END, "no edgewise-bundle.json"),
    ],
)
def test_a_hostile_or_broken_file_is_refused_before_anything_is_read(
    tmp_path: Path, data: bytes, says: str
) -> None:
    file = tmp_path / "x.bundle"
    file.write_bytes(data)
    with pytest.raises((Untrusted, BadUsage), match=says):
        Bundle.open(file)
    assert list(tmp_path.iterdir()) == [file]


async def test_a_stick_that_was_pulled_too_early_is_told_apart(site: Site) -> None:
    whole = site.export().read_bytes()
    for end in range(0, len(whole) - 1024, 4096):
        cut = site.sticks / "cut"
        cut.write_bytes(whole[:end])
        with pytest.raises((Untrusted, BadUsage)):
            Bundle.open(cut)


def test_links_and_strangers_in_a_directory_are_refused(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    (stick / "tuf").mkdir(parents=True)
    (stick / "tuf/media.json").symlink_to("/etc/passwd")
    with pytest.raises(Untrusted, match="a link"):
        Bundle.open(stick)
    (stick / "tuf/media.json").unlink()
    (stick / "autorun.inf").write_text("x")
    with pytest.raises(Untrusted, match="no name of a file"):
        Bundle.open(stick)


async def test_the_same_content_gives_the_same_bundle_and_tar_reads_it(site: Site) -> None:
    import tarfile

    files = contents(site.export())
    one, two = site.write("one", files), site.write("two", files)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as tar:
        assert set(tar.getnames()) == files.keys() | {INDEX}
        read = tar.extractfile("tuf/media.json")
        assert read is not None
        assert read.read() == files["tuf/media.json"]


def test_a_full_disk_leaves_no_half_bundle(tmp_path: Path) -> None:
    class Full(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(28, "No space left on device")

    to = tmp_path / "x.bundle"
    with (
        pytest.raises(NeedsPerson, match="full"),
        write_bundle(to, BundleIndex("lab", "", (), (), 0, 0)) as writer,
    ):
        writer.add("tuf/media.json", 1, Full())
    assert list(tmp_path.iterdir()) == []
