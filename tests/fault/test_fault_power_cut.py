"""A power cut at every write of an update, whatever of it had reached the disk by then."""

import asyncio
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from power_cut_node import Told, update
from power_cuts import Size, Story, Sync, Write, can_record, read_in, record, same, some_lost
from power_cuts import write_out as write_disk

from edgewise.backends.files.node_store import NodeStore
from edgewise.model.errors import NeedsPerson
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content

OLDEST = {"bin/run": b"oldest", "data/same": b"same"}
OLD = {"bin/run": b"old", "data/same": b"same", "data/gone": b"gone"}
NEW = {
    "bin/run": b"new",
    "bin/same": b"same",  # here already, with another mode
    "data/same": b"same",
    "data/large": os.urandom(400_000),  # spills into a partial file
    "data/deep/er": b"deeper",
}


class Update:
    """One update from OLD to NEW, recorded."""

    story: Story
    told: Told
    contents: dict[str, dict[str, bytes]]
    """Release to its files."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Update:
    if why := can_record():
        pytest.skip(why)
    return asyncio.run(made_in(tmp_path_factory.mktemp("power")))


async def made_in(folder: Path) -> Update:
    content = await Content.open(ManualClock())
    made = Update()
    releases = [await content.release({"hello": files}) for files in (OLDEST, OLD, NEW)]
    made.contents = dict(zip(releases, (OLDEST, OLD, NEW), strict=True))
    root = folder / "root"
    for sequence, release in enumerate(releases, 1):
        await content.announce(sequence, release)
        made.told = Told(
            dict(content.files), dict(content.objects.packed), content.publisher.root,
            content.record(), release,
        )  # fmt: skip
        if release != releases[-1]:
            await update(made.told, root)
    (folder / "told").write_bytes(pickle.dumps(made.told))
    program = Path(__file__).parent / "power_cut_node.py"
    command = [sys.executable, str(program), str(folder / "told"), str(root)]
    made.story = record(command, root, folder / "trace")
    assert same(made.story.after(len(made.story.changes)), read_in(root)) == []
    return made


@pytest.fixture
def disks() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of syncs mean nothing here."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        yield Path(folder)


def runs(made: Update, root: Path) -> str:
    """The active release, after a look at every release that says it is complete."""
    store = NodeStore(root)
    active = store.active()
    assert active is not None
    releases = {one.release for one in store.installed()} | {active.release}
    if (previous := store.previous()) is not None:
        releases.add(previous.release)
    for release in releases:
        top = store.release_directory(release) / "apps" / "hello"
        files = {str(p.relative_to(top)): p for p in top.rglob("*") if p.is_file()}
        assert {n: p.read_bytes() for n, p in files.items()} == made.contents[release]
        assert {n: p.stat().st_mode & 0o777 for n, p in files.items()} == {
            name: 0o755 if name.startswith("bin/") else 0o644 for name in files
        }
    return active.release


async def check(made: Update, cuts: Iterable[tuple[int, int | None]], folder: Path) -> list[str]:
    """What runs after each (cut, seed of what is lost; None: nothing is)."""
    outcomes = []
    *_, old, new = made.contents
    folder.mkdir(exist_ok=True)
    for cut, seed in cuts:
        root = folder / f"{cut}-{seed}"
        lost = some_lost(seed) if seed is not None else lambda change: 1.0
        write_disk(made.story.after(cut, lost), root)
        outcomes.append(runs(made, root))
        assert outcomes[-1] in (old, new), (cut, seed)
        NodeStore(root).collect()
        assert runs(made, root) == outcomes[-1], (cut, seed)
        await update(made.told, root)
        assert runs(made, root) == new, (cut, seed)
    return outcomes


async def test_a_power_cut_leaves_the_old_release_or_the_new_one_whole(
    recorded: Update, disks: Path
) -> None:
    count = len(recorded.story.changes)
    in_order = await check(recorded, [(n, None) for n in range(0, count + 1, 7)], disks)
    assert in_order == sorted(in_order, key=[*recorded.contents].index), "never back again"
    await check(recorded, [(n, n) for n in range(1, count, 4)], disks)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_power_cut_at_every_write_with_every_kind_of_loss(
    recorded: Update, disks: Path
) -> None:
    count = len(recorded.story.changes)
    in_order = await check(recorded, [(n, None) for n in range(count + 1)], disks)
    assert in_order[0] != in_order[-1]
    assert in_order == sorted(in_order, key=[*recorded.contents].index)
    for seed in range(4):
        await check(recorded, [(n, 1000 * seed + n) for n in range(count + 1)], disks / str(seed))


def test_the_record_has_the_syncs_and_the_losses_matter(recorded: Update) -> None:
    story = recorded.story
    count = len(story.changes)
    syncs = [change for change in story.changes if isinstance(change, Sync)]
    assert any(sync.inode is None for sync in syncs), "syncfs"
    assert len(syncs) > 5
    assert sum(isinstance(change, Write) for change in story.changes) > 10
    nothing = same(story.after(count, lambda change: 0.0), story.after(count))
    assert nothing, "what comes after the last sync may be lost"
    whole = story.after(count, lambda change: 0.0)[0].names
    assert whole, "what was synced is there"
    assert len({str(same(story.after(n), story.after(count))) for n in range(0, count, 5)}) > 20
    assert not any(isinstance(change, Size) and change.size < 0 for change in story.changes)


async def test_a_store_that_does_not_sync_would_be_caught(recorded: Update, disks: Path) -> None:
    """The same record without its syncs: some power cut then leaves a mix."""
    story = recorded.story
    unsynced = Story(
        story.before, tuple(c for c in story.changes if not isinstance(c, Sync)), story.new
    )
    made = Update()
    made.story, made.told, made.contents = unsynced, recorded.told, recorded.contents
    cuts = [(len(unsynced.changes), seed) for seed in range(40)]
    with pytest.raises((AssertionError, NeedsPerson, FileNotFoundError)):
        await check(made, cuts, disks)
