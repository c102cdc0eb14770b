"""A power cut at every write of an update, whatever of it had reached the disk by then."""

import gzip
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import pytest
from power_cut_node import Laid, Told
from power_cut_replay import Seen, Update, files_of, recorded, recorded_delta, told
from power_cuts import Change, Owner, Size, Sync, Time, Write, Xattr, can_record, same, write_out
from system_root import looked_at, make_root, may_make_roots

from edgewise.backends.files.builds import BuildFolder
from edgewise.delivery import delta
from edgewise.delivery.delta import contents, head_length, open_head, parse_tree
from edgewise.model.errors import NeedsPerson
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.content import SealedSecret, Tree
from edgewise.protocol.delta import DeltaRef, delta_path
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.delta_world import DeltaWorld, changed, noise

OLDEST = {"bin/run": b"oldest", "data/same": b"same"}
OLD = {"bin/run": b"old", "data/same": b"same", "data/gone": b"gone"}
NEW = {
    "bin/run": b"new",
    "bin/same": b"same",  # here already, with another mode
    "data/same": b"same",
    "data/large": os.urandom(400_000),  # spills into a partial file
    "data/deep/er": b"deeper",
}


async def whole_objects(folder: Path) -> Update:
    """Everything comes whole; the fetch collects a third release."""
    content = await Content.open(ManualClock())
    releases = [await content.release({"hello": files}) for files in (OLDEST, OLD, NEW)]
    root = folder / "root"
    for sequence, release in enumerate(releases, 1):
        await content.announce(sequence, release)
        last = told(content, release)
        if release != releases[-1]:
            await last.update(root)
    contents = dict(zip(releases, map(files_of, (OLDEST, OLD, NEW)), strict=True))
    return recorded(folder, root, last, contents, "hello")


def text(seed: int) -> bytes:
    return b"".join(
        b"line %d of a log\n" % (n * n + seed) for n in range(13_000)
    )  # more than is held in memory


def code(seed: int, jump: int) -> bytes:
    """Machine code that was linked anew: an address here and there is another."""
    made = bytearray(b"\x7fELF\2\1\1" + bytes(9) + b"\3\0\x3e\0" + noise(seed, 90_000))
    for at in range(200, len(made), 64):
        made[at] = made[at] + jump & 255
    return bytes(made)


ONE = {
    "bin/run": b"#!/bin/sh\n",
    "bin/code": code(1, 0),
    "big": noise(2, 120_000),
    "log.gz": gzip.compress(text(0), 9, mtime=0),
    "moved/away": b"the same content",
    **{f"doc/{n}": b"page %d " % n * 200 + noise(n, 200) for n in range(4)},
}
TWO = {
    "bin/run": b"#!/bin/sh\n",
    "bin/code": code(1, 3),  # bsdiff
    "big": changed(ONE["big"], 40_000, noise(3, 20_000)),  # spans parts: a scratch file
    "log.gz": gzip.compress(changed(text(0), 50_000, b"CHANGED"), 9, mtime=0),  # expanded
    "bin/moved": b"the same content",  # a copy with another mode
    "new": noise(4, 50_000),  # without a base
    **{f"doc/{n}": ONE[f"doc/{n}"] + b"more" for n in range(4)},  # many in a part
}


async def made_world(root: Path) -> tuple[DeltaWorld, DeltaRef]:
    """A node with version one, and a delta to version two that has parts of every kind."""
    clock = ManualClock()
    world = DeltaWorld(await Content.open(clock), clock, root)
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "PART_OUTPUT", 32 << 10)
        return world, await world.delta("one", "two")


async def a_delta(folder: Path) -> Update:
    """Copies with differences, prefixes, contents without a base and a gzip file made again."""
    world, _ = await made_world(folder / "root")
    return replace(await recorded_delta(folder, world), ways=DELTA)


async def a_delta_taken_up_again(folder: Path) -> Update:
    """The link breaks twice in the middle of a part; the fetch starts again from what is on the
    disk, none of which was synced: the first half may be missing and the second there."""
    world, ref = await made_world(folder / "root")
    data = world.content.files[delta_path(ref.sha256)]
    head = open_head(data[: head_length(data)], ref.sha256)
    largest = max(head._lines, key=lambda line: line.length)
    into = sum(line.length for line in head._lines[: head._lines.index(largest)])
    middle = into + largest.length // 2
    cuts = ((delta_path(ref.sha256), (ref.lead, middle, 3000, 0)),)
    update = await recorded_delta(folder, world, cuts=cuts)
    update.told.cuts = ()  # type: ignore[union-attr]
    return replace(update, ways=DELTA)


async def the_same_release_again(folder: Path) -> Update:
    """Another secret was sealed to the node: its release is replaced by an exchange."""
    content = await Content.open(ManualClock())
    source = Digest.of(b"in git").sha256
    releases = [await content.release({"hello": OLD})]
    secret = SealedSecret("key", source, "/run/key", ("key",))
    release, documents = await content.documents({"hello": NEW}, more=(secret,))
    await content.publisher.publish_release(release, documents)
    sealed = []
    for data in (b"sealed once", b"sealed again"):
        sealed.append(Digest.of(data).sha256)
        await content.objects.put(sealed[-1], data)
    root = folder / "root"
    await content.announce(1, releases[0])
    await told(content, releases[0]).update(root)
    await content.announce(2, release)
    await replace(told(content, release), sealed={source: sealed[0]}).update(root)
    last = replace(told(content, release), sealed={source: sealed[1]})
    contents = {releases[0]: files_of(OLD), release: files_of(NEW)}
    return replace(recorded(folder, root, last, contents, "hello"), sealed=tuple(sealed))


async def a_system_tree(folder: Path) -> Update:
    """Owners, xattrs, capabilities, hard links, devices, pipes and holes."""
    tops = [make_root(folder / "one"), make_root(folder / "two")]
    (tops[1] / "etc/shadow").write_bytes(b"root:x")
    os.chown(tops[1] / "bin/run", 0, 7)  # the same content for another group
    os.setxattr(tops[1] / "bin/same-as-ping", "user.note", b"now with a note")
    os.link(tops[1] / "bin/su", tops[1] / "bin/su-too")
    os.mknod(tops[1] / "dev/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (tops[1] / "dev/pipe").unlink()
    laid, known, root = [], {}, folder / "root"
    for number, top in enumerate(tops):
        laid.append(Laid(f"{number:064x}", *built(folder / f"built-{number}", top)))
        known[laid[-1].release] = without_holes(top)
    await laid[0].update(root)
    update = recorded(folder, root, laid[1], known, "os")
    return replace(update, look=without_holes)


def built(folder: Path, top: Path) -> tuple[Tree, dict[str, bytes]]:
    """A directory's tree, and its contents by digest."""
    made = BuildFolder(folder)
    ref = made.add_system(top)
    tree = parse_tree((made.path / "trees" / ref.sha256).read_bytes())
    return tree, {
        sha256: (made.path / "objects" / sha256).read_bytes() for sha256 in contents(tree)
    }


def without_holes(top: Path) -> Seen:
    """All that a system tree carries but its holes: the disk of these tests has none."""
    found = looked_at(top, links=False)
    assert os.stat(top / "bin/ping").st_ino == os.stat(top / "bin/a-first-name").st_ino
    return {path: [*seen[:6], *seen[7:]] if seen[6:] else seen for path, seen in found.items()}


DELTA = frozenset({"document", "delta"})
"""A power cut is no reason to give a delta up."""
STORIES: dict[str, Callable[[Path], Awaitable[Update]]] = {
    "whole objects": whole_objects,
    "a delta": a_delta,
    "a delta that is taken up again": a_delta_taken_up_again,
    "the same release again": the_same_release_again,
    "a system tree": a_system_tree,
}


class Recordings:
    """Each story is recorded once, when the first test wants it."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._made: dict[str, Update] = {}

    async def of(self, name: str) -> Update:
        if why := can_record():
            pytest.skip(why)
        if name == "a system tree" and not may_make_roots():
            pytest.skip("owners, devices and capabilities need root")
        if name not in self._made:
            self._made[name] = await STORIES[name](self._folders.mktemp("power"))
        return self._made[name]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return Recordings(tmp_path_factory)


@pytest.fixture
def disks() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of syncs mean nothing here. It has
    every kind of xattr that a system tree may bring."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("name", STORIES)
async def test_a_power_cut_leaves_the_old_release_or_the_new_one_whole(
    recordings: Recordings, disks: Path, name: str
) -> None:
    update = await recordings.of(name)
    count, order = len(update.story.changes), [*update.contents]
    in_order = await update.check([(n, None) for n in range(0, count + 1, count // 12)], disks)
    runs = [found for found, _ in in_order]
    assert runs == sorted(runs, key=order.index), "never back again"
    await update.check([(n, n) for n in range(1, count, count // 24)], disks)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", STORIES)
async def test_a_power_cut_at_every_write_with_every_kind_of_loss(
    recordings: Recordings, disks: Path, name: str
) -> None:
    update = await recordings.of(name)
    count, order = len(update.story.changes), [*update.contents]
    runs = [found for found, _ in await update.check([(n, None) for n in range(count + 1)], disks)]
    assert runs[0] != runs[-1] or name == "the same release again"
    assert runs == sorted(runs, key=order.index)
    for seed in range(4):
        every = [(n, 1000 * seed + n) for n in range(count + 1)]
        await update.check(every, disks / str(seed))


@pytest.mark.parametrize("name", STORIES)
async def test_the_record_has_the_syncs_and_the_losses_matter(
    recordings: Recordings, name: str
) -> None:
    story = (await recordings.of(name)).story
    count = len(story.changes)
    syncs = [change for change in story.changes if isinstance(change, Sync)]
    assert any(sync.inode is None for sync in syncs), "syncfs"
    assert len(syncs) > 3
    assert sum(isinstance(change, Write) for change in story.changes) >= 5
    assert any(
        same(story.after(cut, lambda change: 0.0), story.after(cut)) for cut in (count // 2, count)
    ), "what comes after the last sync may be lost"
    whole = story.after(count, lambda change: 0.0)[0].names
    assert whole, "what was synced is there"
    states = {str(same(story.after(n), story.after(count))) for n in range(0, count, 5)}
    assert len(states) > 10
    assert not any(isinstance(change, Size) and change.size < 0 for change in story.changes)


async def test_the_stories_reach_what_they_are_about(recordings: Recordings) -> None:
    """Parts of every kind, pieces in scratch files, an exchange, attributes of every kind."""
    world_delta = await recordings.of("a delta")
    assert isinstance(world_delta.told, Told)
    (path,) = (path for path in world_delta.told.files if path.endswith(".ewd"))
    data = world_delta.told.files[path]
    head = open_head(data[: head_length(data)], Digest.of(data[: head_length(data)]).sha256)
    kinds = {line.kind for line in head._lines}
    assert {delta.PREFIX, delta.BSDIFF} <= kinds
    assert kinds & {delta.SOLID, delta.SOLID_X86}
    named = names_in(world_delta)
    assert all(any(name.endswith(f".{use}") for name in named) for use in ("new", "full", "old"))

    again = await recordings.of("a delta that is taken up again")
    assert sum(len(name) == 64 for name in names_in(again)) > sum(len(name) == 64 for name in named)

    exchange = await recordings.of("the same release again")
    assert any(
        isinstance(change, tuple) and [one.inode is None for one in change] == [False, False]
        for change in exchange.story.changes
    ), "renameat2 with RENAME_EXCHANGE"
    if may_make_roots():
        system = await recordings.of("a system tree")
        for kind in (Owner, Xattr):
            assert any(isinstance(change, kind) for change in system.story.changes)
        assert any(stat.S_ISCHR(inode.mode) for inode in system.story.new.values())


def names_in(update: Update) -> list[str]:
    changes = (change for change in update.story.changes if isinstance(change, tuple))
    return [one.name for change in changes for one in change if one.inode is not None]


@pytest.mark.parametrize("name", STORIES)
async def test_a_store_that_does_not_sync_would_be_caught(
    recordings: Recordings, disks: Path, name: str
) -> None:
    """The same record without its syncs: some power cut then leaves a mix."""
    unsynced = (await recordings.of(name)).without_syncs()
    count = len(unsynced.story.changes)
    cuts = [(count - seed % 2, seed) for seed in range(40)]
    with pytest.raises((AssertionError, NeedsPerson, OSError)):
        await unsynced.check(cuts, disks)


async def test_a_part_whose_first_half_is_torn_is_no_reason_to_refuse_the_delta(
    recordings: Recordings, disks: Path
) -> None:
    update = await recordings.of("a delta that is taken up again")
    changes = update.story.changes
    (again,) = (n for n, c in enumerate(changes) if isinstance(c, Write) and len(c.data) == 3000)
    second = changes[again]
    assert isinstance(second, Write)
    first = next(c for c in changes if isinstance(c, Write) and c.inode == second.inode)
    root = disks / "torn"
    write_out(update.story.after(again + 1, lambda change: float(change != first)), root)
    (torn,) = (p for p in (root / "staging" / "partial").iterdir() if "." not in p.name)
    assert not any(torn.read_bytes()[: second.at])
    installed = await update.told.update(root)
    assert installed.traffic.used.keys() <= DELTA
    assert installed.traffic.requests == 2, "the rest of it, then all of it"


async def test_what_was_fetched_before_a_power_cut_is_mostly_used(
    recordings: Recordings, disks: Path
) -> None:
    """An agent that still wants the release keeps what came: the later the cut, the less."""
    update = await recordings.of("a delta that is taken up again")
    count = len(update.story.changes)
    cuts = [(n | 1, None) for n in range(0, count, count // 10)]
    fetched = [bytes_ for found, bytes_ in await update.check(cuts, disks) if bytes_]
    assert fetched[-1] < fetched[0] / 2


SEALING = [name for name in STORIES if name != "the same release again"]
"""That one has every file already."""


def is_seal(change: Change) -> TypeGuard[Time]:
    """Not the mark of a file that is being checked, which is odd."""
    return isinstance(change, Time) and change.mtime % 2 == 0


def first_sync(changes: tuple[Change, ...]) -> int:
    return next(at for at, c in enumerate(changes) if isinstance(c, Sync) and c.inode is None)


@pytest.mark.parametrize("name", SEALING)
async def test_nothing_is_sealed_before_it_is_on_the_disk(
    recordings: Recordings, name: str
) -> None:
    update = await recordings.of(name)
    changes = update.story.changes
    last = {c.inode: at for at, c in enumerate(changes) if isinstance(c, Write)}
    seals = [(c.inode, at) for at, c in enumerate(changes) if is_seal(c)]
    new = [(inode, at) for inode, at in seals if inode in update.story.new]
    assert len(new) >= 3
    assert all(last.get(inode, 0) < first_sync(changes) < at for inode, at in new)


@pytest.mark.parametrize("name", ["whole objects", "a delta"])
async def test_a_seal_that_is_set_before_the_sync_would_be_caught(
    recordings: Recordings, disks: Path, name: str
) -> None:
    """The same record with each file sealed as soon as it was written: a power cut then leaves
    seals on contents that were lost, and the next update takes them as they are."""
    update = await recordings.of(name)
    changes = update.story.changes
    last = {c.inode: at for at, c in enumerate(changes) if isinstance(c, Write)}
    seals = {last[c.inode]: c for c in changes if is_seal(c) and c.inode in last}
    early: list[Change] = []
    for at, change in enumerate(changes):
        if not isinstance(change, Time):
            early += [change, seals[at]] if at in seals else [change]
    wrong = replace(update, story=replace(update.story, changes=tuple(early)))
    synced = first_sync(tuple(early)) | 1  # odd: what came is kept
    cuts = [(at, at + seed) for seed in range(0, 4000, 40) for at in (synced - 20, synced - 2)]
    with pytest.raises(AssertionError):
        await wrong.check(cuts, disks)
