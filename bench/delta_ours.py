"""Edgewise in ``bench/delta.py``. As a program: one side of the job, in a process of its own.

- ``publish SITE TREE``: scan a directory, keep its objects, manifest and release for nodes.
- ``make SITE OLD NEW REGZIP``: the delta between two published directories (OLD ``-``: a pack).
- ``install STATE SITE TREE``: bring a release to a node's store from a folder, as a whole.
- ``fetch STATE URL RELEASE LIST``: a node's worker: fetch, verify, lay out, sync, activate.

The node's code is the real one, but for two things that this bench has no hub for: a builder's
signature is taken as given, and the tree of an operating system is let in as an app's.
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from delta_measure import Cost, Moved, compare, run, serving, set_aside
from delta_rivals import Outcome, median_of, repeated

if TYPE_CHECKING:
    from edgewise.backends.files.delta_maker import Side
    from edgewise.delivery.ports import Source

PLATFORM = "linux/amd64"
SOURCES = str(Path(__file__).parent.parent / "src")


# What the bench does


@dataclass
class Ours:
    """One site, and nodes that update from it."""

    work: Path
    old: Path
    new: Path

    def __post_init__(self) -> None:
        self.site = self.work / "site"
        self.site.mkdir()

    def program(self, verb: str, *words: str | Path) -> Cost:
        """One side of the job, measured."""
        return run([sys.executable, __file__, verb, *words])

    def measured(self, times: int) -> tuple[Outcome, ...]:
        """Publish both, and update ``times`` nodes from one to the other: with gzip files that
        travel expanded, then without where that makes a difference."""
        self.program("publish", self.site, self.old)
        publish = self.program("publish", self.site, self.new)
        found = []
        for how in ("regzip", "plain"):
            (self.site / "deltas.json").unlink(missing_ok=True)
            made = self.program("make", self.site, self.old, self.new, how)
            found.append(self._updated(publish + made, times))
            if not int((self.site / "recompressed").read_text()):
                break
        return tuple(found)

    def _updated(self, made: Cost, times: int) -> Outcome:
        base = self.work / "node"
        if not base.exists():
            self.program("install", base, self.site, self.old.name)
        with serving(self.site) as server:

            def update(number: int) -> Cost:
                state = self.work / f"node{number}"
                subprocess.run(["cp", "-al", base, state], check=True)
                release = (self.site / f"{self.new.name}.release").read_text()
                listed = (self.site / "deltas.sha256").read_text()
                cost = self.program("fetch", state, server.url, release, listed)
                if not number:
                    compare(self.new, state / "releases" / release / "apps/system")
                set_aside(state)
                return cost

            costs, moved = repeated(times, server, update)
        return Outcome(
            bytes=max(one.bytes for one in moved),
            requests=max(one.requests for one in moved),
            producer=made,
            node=median_of(costs),
            runs=[one.bytes for one in moved],
        )

    def first_install(self) -> tuple[Moved, Cost, Cost]:
        """The new tree on an empty node, with a pack: what moved, producer, node."""
        made = self.program("make", self.site, "-", self.new, "plain")
        state = self.work / "first"
        with serving(self.site) as server:
            release = (self.site / f"{self.new.name}.release").read_text()
            listed = (self.site / "deltas.sha256").read_text()
            cost = self.program("fetch", state, server.url, release, listed)
            moved = server.moved
        compare(self.new, state / "releases" / release / "apps/system")
        set_aside(state)
        return moved, made, cost


# The producer


def publish(site: Path, directory: Path) -> None:
    """A release with that directory as its one app."""
    from edgewise.backends.files.objects import FileObjects
    from edgewise.backends.files.system_trees import read_system
    from edgewise.delivery.trees import reference
    from edgewise.model.names import Digest
    from edgewise.protocol.codec import encode
    from edgewise.protocol.content import PartRef, ProcessApp, Release

    tree = read_system(directory, _digest)
    ref, manifest = reference(tree)
    app = encode(ProcessApp("system", {PLATFORM: ref}, ("sbin/init",)))
    parts = (PartRef("app", "system", (), {"": Digest.of(app).sha256}),)
    release = encode(Release("bench", parts))

    objects = FileObjects(site)

    async def keep() -> None:
        files = {e.sha256: e.path for e in tree.entries if e.kind == "file"}
        for sha256 in sorted(await objects.missing(files)):
            await objects.put(sha256, (directory / files[sha256]).read_bytes())
        for document in (manifest, app, release):
            await objects.put(Digest.of(document).sha256, document)

    asyncio.run(keep())
    (site / f"{directory.name}.tree").write_text(ref.sha256)
    (site / f"{directory.name}.release").write_text(Digest.of(release).sha256)


def _digest(content: IO[bytes]) -> tuple[str, int]:
    found = hashlib.file_digest(content, "sha256")
    return found.hexdigest(), content.tell()


def make(site: Path, old: Path | None, new: Path, *, regzip: bool) -> None:
    """A delta (without ``old``: a pack), and its place in the site's list."""
    from edgewise.backends.files.delta_maker import MakeTerms, make_delta
    from edgewise.backends.files.objects import FileObjects
    from edgewise.model.names import Digest
    from edgewise.protocol.codec import decode, encode
    from edgewise.protocol.delta import DeltaList, delta_path

    out = site / "made.ewd"
    terms = MakeTerms(recompress=regzip)
    made = make_delta(_side(site, old) if old else None, _side(site, new), out, terms)
    final = site / delta_path(made.ref.sha256)
    final.parent.mkdir(parents=True, exist_ok=True)
    out.rename(final)
    (site / "recompressed").write_text(str(made.recompressed))
    known, deltas = site / "deltas.json", [made.ref]
    if known.exists():
        deltas += decode(known.read_bytes(), DeltaList, what="list", at_most=1 << 20).deltas
    deltas.sort(key=lambda ref: (ref.tree, ref.base))
    listed = encode(DeltaList(tuple(deltas)))
    known.write_bytes(listed)
    (site / "deltas.sha256").write_text(Digest.of(listed).sha256)
    asyncio.run(FileObjects(site).put(Digest.of(listed).sha256, listed))


def _side(site: Path, directory: Path) -> Side:
    """A published tree: its manifest is known, its contents lie in the directory."""
    from edgewise.backends.files.delta_maker import Side
    from edgewise.delivery import packing
    from edgewise.protocol import limits
    from edgewise.protocol.codec import decode
    from edgewise.protocol.content import Tree, object_path

    sha256 = (site / f"{directory.name}.tree").read_text()
    with (site / object_path(sha256)).open("rb") as packed:
        manifest = b"".join(packing.unpacked(packed, sha256, at_most=limits.TREE))
    tree = decode(manifest, Tree, what="tree", at_most=limits.TREE)
    files = {e.sha256: directory / e.path for e in tree.entries if e.kind == "file"}
    return Side(tree, sha256, files.__getitem__)


# The node


@dataclass
class Folder:
    """``delivery.ports.Source`` of a folder."""

    root: Path

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        with (self.root / path).open("rb") as file:
            file.seek(start)
            left = at_most if end is None else end - start
            while piece := file.read(min(left, 1 << 16)):
                left -= len(piece)
                yield piece


@dataclass
class Permits:
    """``delivery.ports.Trust`` that takes a builder's signature as given, and a channel's."""

    listed: str
    """Digest of the list of deltas that the channel names."""

    async def permission(self, release: str, source: Source) -> int:
        return 1 << 20

    def deltas(self) -> str:
        return self.listed


async def fetch(state: Path, release: str, source: Source, listed: str) -> None:
    """What the worker does with a release that the channel says."""
    from edgewise.backends.files import recompress
    from edgewise.backends.files.node_store import NodeStore
    from edgewise.delivery import on_agent
    from edgewise.protocol.channel import NodeRecord

    on_agent.refuse_privilege = lambda tree: None
    store = NodeStore(state)
    record = NodeRecord("node", 1, fleet="bench")
    terms = on_agent.Terms(PLATFORM, recompression=recompress)
    trust = Permits(listed)
    await on_agent.fetch(release, record, terms, trust=trust, store=store, source=source)
    store.activate(release)


async def over_http(state: Path, url: str, release: str, listed: str) -> None:
    """The same from a server."""
    from edgewise.net.client import Client, Endpoint, HttpSource

    async with Client(Endpoint((url,)), connections=8) as client:
        await fetch(state, release, HttpSource(client, "/"), listed)


def main(verb: str, *words: str) -> None:
    """See the module."""
    match verb, words:
        case "publish", (site, tree):
            publish(Path(site), Path(tree))
        case "make", (site, old, new, how):
            make(Path(site), None if old == "-" else Path(old), Path(new), regzip=how == "regzip")
        case "install", (state, site, tree):
            release = (Path(site) / f"{tree}.release").read_text()
            asyncio.run(fetch(Path(state), release, Folder(Path(site)), ""))
        case "fetch", (state, url, release, listed):
            from edgewise.host.heap import return_large_buffers

            return_large_buffers()  # as the worker does when it starts
            asyncio.run(over_http(Path(state), url, release, listed))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
