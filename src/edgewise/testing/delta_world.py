"""Deltas and packs, really made, for trees of ``testing.content``."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from edgewise.backends.files import recompress
from edgewise.backends.files.delta_maker import MakeTerms, Side, make_delta
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery.delta import contents, parse_tree
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.delivery.ways import Prices
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel, NodeRecord
from edgewise.protocol.codec import encode
from edgewise.protocol.content import PartRef, ProcessApp, Release, TreeRef
from edgewise.protocol.delta import DeltaList, DeltaRef, delta_path
from edgewise.protocol.installed import Installed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content


async def publish_delta(content: Content, base: str, tree: str) -> DeltaRef:
    """Make the delta between two published trees (base empty: a pack), and serve it."""
    with tempfile.TemporaryDirectory() as folder:

        async def side(sha256: str) -> Side:
            found = parse_tree(await content.objects.get(sha256, at_most=limits.TREE))
            for one in contents(found):
                path = Path(folder) / one
                path.write_bytes(await content.objects.get(one, at_most=limits.OBJECT))
            return Side(found, sha256, lambda one: Path(folder) / one)

        old = await side(base) if base else None
        out = Path(folder) / "out.ewd"
        made = make_delta(old, await side(tree), out, MakeTerms(jobs=1))
        content.files[delta_path(made.ref.sha256)] = out.read_bytes()
    return made.ref


def list_of(refs: Iterable[DeltaRef], documents: tuple[str, ...] = ()) -> bytes:
    """A list of deltas, encoded."""
    return encode(DeltaList(tuple(sorted(refs, key=lambda ref: (ref.tree, ref.base))), documents))


async def release_of(content: Content, trees: dict[str, TreeRef]) -> str:
    """Publish a release with an app for each tree."""
    documents, refs = {}, []
    for name, ref in sorted(trees.items()):
        app = encode(ProcessApp(name, {PLATFORM: ref}, ("bin/run",)))
        documents[Digest.of(app).sha256] = app
        refs.append(PartRef("app", name, (), {"": Digest.of(app).sha256}))
    release = encode(Release("lab", tuple(refs)))
    documents[Digest.of(release).sha256] = release
    await content.publisher.publish_release(Digest.of(release).sha256, documents)
    return Digest.of(release).sha256


CHEAP: Final = Prices(request=200)
"""So that files of a test's size are asked for in ranges."""


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


ONE = {
    "bin/run": b"#!/bin/sh\n",
    "big": noise(1, 100_000),
    "same": noise(2, 50_000),
    **{f"doc/{n}": b"page %d " % n * 300 + noise(n, 200) for n in range(30)},
}
TWO = ONE | {
    "big": changed(ONE["big"], 40_000, b"changed here"),
    **{f"doc/{n}": ONE[f"doc/{n}"] + b"more" for n in range(30)},
    "new": b"fresh " * 1000,
}
THREE = TWO | {"big": changed(TWO["big"], 90_000, b"and there"), "doc/3": b"page three"}


class DeltaWorld:
    """A hub that publishes trees of one app, and a node."""

    def __init__(self, content: Content, clock: ManualClock, root: Path) -> None:
        self.content = content
        self.clock = clock
        self.root = root
        self.terms = Terms(PLATFORM, reserve=0, prices=CHEAP, recompression=recompress)
        self.trees: dict[str, TreeRef] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.refs: list[DeltaRef] = []
        self.releases: dict[str, str] = {}
        self.documents: tuple[str, ...] = ()
        self.list: bytes | None = None
        """In place of a list of ``refs`` and ``documents``."""
        self._sequence = 0

    async def version(self, name: str, files: dict[str, bytes]) -> None:
        self.files[name] = files
        self.trees[name] = await self.content.tree(files)
        self.releases[name] = await release_of(self.content, {"app": self.trees[name]})

    async def delta(self, base: str, tree: str) -> DeltaRef:
        from_tree = self.trees[base].sha256 if base else ""
        ref = await publish_delta(self.content, from_tree, self.trees[tree].sha256)
        self.refs.append(ref)
        return ref

    async def announce(self, name: str) -> None:
        self._sequence += 1
        self.content.publisher.listing = self._listing
        await self.content.announce(self._sequence, self.releases[name])
        await self.trust.verify({}, self.content.record(), self.content.source)

    async def _listing(self, channel: Channel) -> bytes:
        if self.list is not None:
            return self.list
        return list_of(self.refs, self.documents)

    @property
    def trust(self) -> NodeTrust:
        return NodeTrust(
            self.root / "trust", self.content.publisher.root, node="n1", clock=self.clock
        )

    @property
    def store(self) -> NodeStore:
        return NodeStore(self.root)

    async def install(self, name: str) -> Installed:
        """Announce, fetch, check every file, activate; counts begin anew."""
        await self.announce(name)
        self.content.source.requests.clear()
        self.content.source.served = 0
        installed = await fetch(
            self.releases[name],
            NodeRecord("n1", 1, "lab"),
            self.terms,
            trust=self.trust,
            store=self.store,
            source=self.content.source,
        )
        self.check(name)
        self.store.activate(self.releases[name])
        return installed

    def check(self, name: str) -> None:
        top = self.store.release_directory(self.releases[name]) / "apps" / "app"
        found = {
            str(path.relative_to(top)): path.read_bytes()
            for path in top.rglob("*")
            if path.is_file()
        }
        assert found == self.files[name]

    def asked(self, ref: DeltaRef) -> list[int]:
        return [start for p, start in self.content.source.requests if p == delta_path(ref.sha256)]

    def objects(self) -> int:
        return sum(path.startswith("objects/") for path, _ in self.content.source.requests)
