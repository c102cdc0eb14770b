"""A node that fetches and activates one release; what it does to the disk is traced.

Usage: power_cut_node.py FILE ROOT. FILE is a pickled ``Told`` or ``Laid``.
"""

import asyncio
import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.backends.files import recompress
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.delivery.ways import Prices
from edgewise.model.errors import TryLater
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.protocol.content import Attributes, Tree
from edgewise.protocol.installed import Installed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM
from edgewise.testing.objects import MemoryObjects
from edgewise.testing.source import MemorySource


@dataclass
class Told:
    """All that a hub says, and the release to go to."""

    files: dict[str, bytes]
    packed: dict[str, bytes]
    root: bytes
    record: Signed
    release: str
    prices: Prices = Prices()  # noqa: RUF009 - frozen
    sealed: dict[str, str] = field(default_factory=dict)
    """See ``NodeRecord.sealed``."""
    cuts: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """(path, bytes after which its reads break off): the fetch breaks off and starts anew."""

    async def update(self, root: Path, *, collect: bool = True) -> Installed:
        """Check what the hub says, fetch, activate, collect."""
        objects = MemoryObjects()
        objects.packed = self.packed
        source = MemorySource(self.files, objects)
        for path, after in self.cuts:
            source.cut(path, *after)
        trust = NodeTrust(root / "trust", self.root, node="n1", clock=ManualClock())
        await trust.verify({}, self.record, source)
        record = NodeRecord("n1", 1, "lab", sealed=self.sealed)
        terms = Terms(PLATFORM, reserve=0, at_once=2, prices=self.prices, recompression=recompress)

        async def once() -> Installed:
            store = NodeStore(root)
            return await fetch(self.release, record, terms, trust=trust, store=store, source=source)

        try:
            installed = await once()
        except TryLater:
            source.mend()
            installed = await once()
        store = NodeStore(root)
        store.activate(self.release)
        if collect:
            store.collect()
        return installed


@dataclass
class Laid:
    """A tree of an operating system, laid out by the store alone: apps get plain ones."""

    release: str
    tree: Tree
    contents: dict[str, bytes]

    async def update(self, root: Path, *, collect: bool = True) -> Installed:
        """Keep, lay out, activate, collect, as a fetch does."""
        store = NodeStore(root)
        installed = Installed(self.release, "n1", PLATFORM)
        with store.fetching():
            for entry in self.tree.entries:
                if entry.kind == "file":
                    self._keep(store, entry.sha256, entry.attributes)
            if store.staged(self.release) is None:
                store.begin(self.release)
                store.lay_out(self.release, "apps/os", self.tree)
                store.finish(installed, {})
        store.activate(self.release)
        if collect:
            store.collect()
        return installed

    def _keep(self, store: NodeStore, sha256: str, attributes: Attributes) -> None:
        if attributes.key in store.kept(sha256) and store.verify(
            sha256, attributes.key, attributes.xattrs
        ):
            return
        others = [key for key in store.kept(sha256) if store.verify(sha256, key)]
        if others:
            store.copy(sha256, others[0], attributes)
        else:
            store.keep_file(sha256, attributes, iter([self.contents.get(sha256, b"")]))


if __name__ == "__main__":
    sys.modules["power_cut_node"] = sys.modules["__main__"]  # where the pickle finds its class
    asyncio.run(pickle.loads(Path(sys.argv[1]).read_bytes()).update(Path(sys.argv[2])))
