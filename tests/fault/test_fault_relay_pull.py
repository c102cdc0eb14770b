"""Many nodes behind one relay update at once, each by its own way: over the hub's line goes one
copy of every object and of every part, whatever they ask for and whatever breaks meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.backends.tuf.client import NodeTrust
from edgewise.backends.tuf.repository import FileMetadata
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.delivery.on_relay import Cache
from edgewise.model.errors import TryLater
from edgewise.protocol import limits
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.delta import DeltaRef, delta_path
from edgewise.protocol.installed import Installed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content
from edgewise.testing.delta_world import CHEAP, DeltaWorld, changed, noise
from edgewise.testing.log import ListLog
from edgewise.testing.source import MemorySource

OLDEST = {"bin/run": b"#!/bin/sh\n", "big": noise(1, 300_000), "gone": noise(2, 10_000)}
ONE = OLDEST | {"big": changed(OLDEST["big"], 9_000, noise(3, 5_000))}
TWO = {
    "bin/run": b"#!/bin/sh\n",
    "big": changed(ONE["big"], 150_000, noise(4, 90_000)),
    "new": noise(5, 120_000),
} | {f"doc/{n}": b"page %d " % n * 400 + noise(n, 500) for n in range(40)}
EACH = 5
"""Nodes of each kind."""


class Line(MemorySource):
    """The hub as the relay sees it: how often each byte of each file crossed the line."""

    def __init__(self, hub: Content) -> None:
        super().__init__(hub.files, hub.objects)
        self.crossed: dict[str, bytearray] = {}

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        at = start
        chunks = super().read(path, at_most=at_most, start=start, end=end)
        async with aclosing(chunks) as inner:  # type: ignore[type-var]
            async for chunk in inner:
                size = len(self.content(path) or b"")
                seen = self.crossed.setdefault(path, bytearray(size))
                for n in range(at, at + len(chunk)):
                    seen[n] += 1
                at += len(chunk)
                yield chunk

    def copies(self, folder: str) -> dict[str, set[int]]:
        """Path to how often its bytes came, of what came at all."""
        return {path: set(seen) for path, seen in self.crossed.items() if path.startswith(folder)}


class Region:
    """A relay with an empty disk, and nodes at several releases."""

    def __init__(self, world: DeltaWorld, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.line = Line(world.content)
        clock, log = world.clock, ListLog()
        files = CacheFiles(folder / "relay")
        self.shelf = FileShelf(Space(files, SpaceTerms(1 << 30), clock, log), self.line, log)
        metadata = FileMetadata(folder / "relay" / "tuf")
        self.root = world.content.publisher.root
        self.relay = Cache(self.shelf, metadata, self.line, root=self.root, clock=clock)
        self.nodes: list[DeltaWorld] = []

    async def nodes_at(self, version: str, count: int) -> None:
        for _ in range(count):
            node = DeltaWorld(
                self.world.content, self.world.clock, self.folder / f"n{len(self.nodes)}"
            )
            node.trees, node.files = self.world.trees, self.world.files
            node.releases = self.world.releases
            if version:
                node._sequence = self.world._sequence
                await node.install(version)
                self.world._sequence = node._sequence
            self.nodes.append(node)

    async def update(self) -> list[Installed]:
        """All of them at once, to version two; a node whose link breaks tries again."""
        await self.world.announce("two")

        async def one(node: DeltaWorld) -> Installed:
            trust = NodeTrust(node.root / "trust", self.root, node="n1", clock=node.clock)
            for _ in range(8):
                try:
                    await trust.verify({}, self.world.content.record(), self.relay)
                    installed = await fetch(
                        self.world.releases["two"],
                        NodeRecord("n1", 1, "lab"),
                        Terms(PLATFORM, reserve=0, prices=CHEAP),
                        trust=trust,
                        store=node.store,
                        source=self.relay,
                    )
                except TryLater:
                    continue
                node.check("two")
                return installed
            raise AssertionError("it never came")

        return await asyncio.gather(*(one(node) for node in self.nodes))


@pytest.fixture
async def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Region]:
    monkeypatch.setattr(limits, "PART_OUTPUT", 64 << 10)
    clock = ManualClock()
    world = DeltaWorld(await Content.open(clock), clock, tmp_path / "first")
    for name, files in (("oldest", OLDEST), ("one", ONE), ("two", TWO)):
        await world.version(name, files)
    made = Region(world, tmp_path)
    yield made
    await made.shelf.close()


async def with_deltas(region: Region) -> dict[str, DeltaRef]:
    world = region.world
    return {
        "direct": await world.delta("one", "two"),
        "first": await world.delta("oldest", "one"),
        "pack": await world.delta("", "two"),
    }


def once(copies: dict[str, set[int]]) -> None:
    for path, counts in copies.items():
        assert counts == {1}, f"{path}: {counts}"


async def test_nodes_that_take_everything_whole_cost_one_copy_of_each_object(
    region: Region,
) -> None:
    await region.nodes_at("one", EACH)
    await region.nodes_at("", EACH)
    installed = await region.update()
    assert all("whole" in one.traffic.used for one in installed)
    once(region.line.copies("objects/"))
    counts = Counter(path for path, _ in region.line.requests if path.startswith("objects/"))
    assert set(counts.values()) == {1}, "one request for each object"
    assert len(counts) >= len(TWO)


async def test_nodes_that_go_different_ways_cost_one_copy_of_every_byte_they_share(
    region: Region,
) -> None:
    """Some by the delta, some by a chain, some by the pack."""
    refs = await with_deltas(region)
    await region.nodes_at("one", EACH)
    await region.nodes_at("oldest", EACH)
    await region.nodes_at("", EACH)
    installed = await region.update()
    ways = [set(one.traffic.used) - {"document"} for one in installed]
    assert ways[0] == {"delta"}
    assert "chain" in ways[EACH]
    assert "pack" in ways[2 * EACH]
    once(region.line.copies("objects/"))
    for name, ref in refs.items():
        seen = region.line.crossed[delta_path(ref.sha256)]
        assert max(seen[ref.head :]) == 1, f"{name}: a part came twice"
        assert max(seen[: ref.head]) <= 2, f"{name}: the head is looked at first"
        assert len(seen) == ref.size
    asked = sum(one.traffic.requests for one in installed)
    assert len(region.line.requests) < asked / 4


async def test_parts_that_nobody_asks_for_do_not_cross_the_line(region: Region) -> None:
    """Of the pack, nodes that have most of it need a few parts."""
    world = region.world
    await world.version("half", {name: TWO[name] for name in ("bin/run", "big", "new")})
    pack = await world.delta("", "two")
    await region.nodes_at("half", EACH)
    await region.update()
    seen = region.line.crossed[delta_path(pack.sha256)]
    assert max(seen[pack.head :]) == 1
    assert sum(count > 0 for count in seen) < pack.size / 2


async def test_a_line_that_breaks_again_and_again_brings_no_object_twice(region: Region) -> None:
    """The relay takes up what came of an object; a part that broke off comes anew, once."""
    refs = await with_deltas(region)
    await region.nodes_at("one", EACH)
    await region.nodes_at("", EACH)
    for ref in refs.values():
        region.line.cut(delta_path(ref.sha256), ref.lead, 40_000, 90_000)
    await region.update()
    once(region.line.copies("objects/"))
    for ref in (refs["direct"], refs["pack"]):
        seen = region.line.crossed[delta_path(ref.sha256)]
        twice = sum(count > 1 for count in seen[ref.head :])
        assert max(seen[ref.head :]) <= 3
        assert twice <= 3 * 2 * limits.PART_OUTPUT
