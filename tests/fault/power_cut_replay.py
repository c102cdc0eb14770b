"""Records an update of a node, and starts the node again from what power cuts may leave of it."""

import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from power_cut_node import Laid, Told
from power_cuts import Story, read_in, record, same, some_lost, write_out

from edgewise.backends.files.node_store import NodeStore
from edgewise.protocol.installed import Installed
from edgewise.testing.content import Content
from edgewise.testing.delta_world import DeltaWorld

Seen = Mapping[str, object]


def files_of(files: Mapping[str, bytes]) -> Seen:
    """What ``look`` finds of such a plain tree."""
    return {
        name: (data, 0o755 if name.startswith("bin/") else 0o644) for name, data in files.items()
    }


def look(top: Path) -> Seen:
    """The files of a plain tree, with their modes."""
    return {
        str(path.relative_to(top)): (path.read_bytes(), path.stat().st_mode & 0o777)
        for path in top.rglob("*")
        if path.is_file()
    }


def told(content: Content, release: str) -> Told:
    """What the hub says now."""
    return Told(
        dict(content.files), dict(content.objects.packed), content.publisher.root,
        content.record(), release,
    )  # fmt: skip


@dataclass(frozen=True)
class Update:
    """One update, recorded."""

    story: Story
    told: Told | Laid
    contents: Mapping[str, Seen]
    """Release to what must be in it; the last two are the old and the new one."""
    app: str
    look: Callable[[Path], Seen] = look
    ways: frozenset[str] | None = None
    """By which ways a fetch after any power cut may bring its bytes; None: not looked at."""
    sealed: tuple[str, ...] = ()
    """What the release's secret may be sealed as: before, after."""

    def runs(self, root: Path) -> str:
        """The active release, after a look at every release that says it is complete."""
        store = NodeStore(root)
        active = store.active()
        assert active is not None
        complete = {one.release: one for one in store.installed()} | {active.release: active}
        if (previous := store.previous()) is not None:
            complete[previous.release] = previous
        for release, installed in complete.items():
            top = store.release_directory(release) / "apps" / self.app
            assert self.look(top) == self.contents[release]
            for document in _documents(installed):
                assert store.document(document) is not None, "a document of it is missing"
            for secret in installed.secrets:
                assert secret.sealed in self.sealed
        return active.release

    async def check(
        self, cuts: Iterable[tuple[int, int | None]], folder: Path
    ) -> list[tuple[str, int]]:
        """What runs after each (cut, seed of what is lost; None: nothing is), and the bytes
        that a fetch then took."""
        outcomes: list[tuple[str, int]] = []
        old, new = [*self.contents][-2:]
        folder.mkdir(exist_ok=True)
        for cut, seed in cuts:
            root = folder / f"{cut}-{seed}"
            lost = some_lost(seed) if seed is not None else lambda change: 1.0
            write_out(self.story.after(cut, lost), root)
            found = self.runs(root)
            assert found in (old, new), (cut, seed)
            # As an agent that still wants the release, and as one that does not know of it.
            NodeStore(root).collect(keep={new} if cut % 2 else ())
            assert self.runs(root) == found, (cut, seed)
            before = {one.release for one in NodeStore(root).installed()}
            installed = await self.told.update(root)
            assert self.runs(root) == new, (cut, seed)
            assert all(secret.sealed == self.sealed[-1] for secret in installed.secrets)
            fetched = 0 if new in before else installed.bytes_fetched
            if self.ways is not None:
                assert installed.traffic.used.keys() <= self.ways, (cut, seed, installed.traffic)
            outcomes.append((found, fetched))
        return outcomes

    def without_syncs(self) -> "Update":
        """The same update by a store that never syncs."""
        story = self.story
        changes = tuple(c for c in story.changes if type(c).__name__ != "Sync")
        return replace(self, story=replace(story, changes=changes))


def _documents(installed: Installed) -> Iterable[str]:
    """Only secrets are read from the store again while a release runs."""
    return (secret.sealed for secret in installed.secrets)


def recorded(
    folder: Path,
    root: Path,
    what: Told | Laid,
    contents: Mapping[str, Seen],
    app: str,
) -> Update:
    """Run an update of ``root`` under strace; ``root`` is whole, and synced."""
    (folder / "told").write_bytes(pickle.dumps(what))
    program = Path(__file__).parent / "power_cut_node.py"
    command = [sys.executable, str(program), str(folder / "told"), str(root)]
    story = record(command, root, folder / "trace")
    left = same(story.after(len(story.changes)), read_in(root))
    assert left == [], "the record is not what happened"
    return Update(story, what, contents, app)


async def recorded_delta(
    folder: Path, world: DeltaWorld, *, cuts: tuple[tuple[str, tuple[int, ...]], ...] = ()
) -> Update:
    """The update of a world's node from version ``one`` to version ``two``."""
    await world.announce("two")
    what = replace(told(world.content, world.releases["two"]), prices=world.terms.prices, cuts=cuts)
    contents = {world.releases[name]: files_of(world.files[name]) for name in ("one", "two")}
    return recorded(folder, world.root, what, contents, "app")
