"""Hostile servers and deltas through a node's whole fetch: it falls exactly one step for each
thing that is wrong, asks for nothing twice in vain, says what it refused, and ends with what was
signed."""

import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from edgewise.delivery import delta
from edgewise.delivery.delta import head_length, open_head
from edgewise.delivery.delta_table import varints
from edgewise.delivery.on_agent import fetch
from edgewise.delivery.trees import reference
from edgewise.model.errors import TryLater, Untrusted
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Tree, TreeRef
from edgewise.protocol.delta import DeltaList, DeltaRef, delta_path
from edgewise.protocol.installed import Installed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.delta_world import DeltaWorld, changed, noise, release_of

ONE = {"bin/run": b"#!/bin/sh\n", "big": noise(1, 100_000), "same": noise(2, 20_000)} | {
    f"doc/{n}": noise(n, 3_000) for n in range(12)
}
MIDDLE = ONE | {"big": changed(ONE["big"], 20_000, noise(5, 4_000)), "m": noise(6, 2_000)}
TWO = MIDDLE | {f"doc/{n}": changed(ONE[f"doc/{n}"], 50, noise(n + 50, 300)) for n in range(12)}
FILES = len(TWO) + 6
"""Requests of a fetch that brings all of it whole: contents, documents and metadata."""


class Region(DeltaWorld):
    """A node with version one; a direct delta, a chain of two and a pack lead to version two."""

    direct: DeltaRef
    first: DeltaRef
    second: DeltaRef
    pack: DeltaRef

    def get(self, ref: DeltaRef) -> bytes:
        return self.content.files[delta_path(ref.sha256)]

    def put(self, ref: DeltaRef, data: bytes) -> None:
        self.content.files[delta_path(ref.sha256)] = data

    def replace(self, ref: DeltaRef, other: DeltaRef, data: bytes) -> None:
        """Name ``other`` in the signed list in place of ``ref``."""
        self.put(other, data)
        self.refs = [other if one == ref else one for one in self.refs]

    async def update(self) -> Installed:
        """To version two, every file checked; nothing is left over, nothing is asked twice."""
        installed = await self.install("two")
        counts = Counter(self.content.source.requests)
        assert [one for one, n in counts.items() if n > 1 and one[0].startswith("deltas/")] == []
        assert len(self.content.source.requests) <= FILES + 3 * len(self.refs)
        assert not list((self.root / "staging" / "partial").iterdir())
        outside = {path.name for path in self.root.parent.iterdir()}
        assert outside == {self.root.name}, "something was written beside the store"
        return installed


@pytest.fixture
async def region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Region:
    monkeypatch.setattr(limits, "PART_OUTPUT", 32 << 10)
    clock = ManualClock()
    made = Region(await Content.open(clock), clock, tmp_path / "node")
    for name, files in (("one", ONE), ("middle", MIDDLE), ("two", TWO)):
        await made.version(name, files)
    await made.install("one")
    made.direct, made.first = await made.delta("one", "two"), await made.delta("one", "middle")
    made.second, made.pack = await made.delta("middle", "two"), await made.delta("", "two")
    return made


def refused(installed: Installed) -> dict[str, str]:
    return {one.what: one.why for one in installed.traffic.refused}


def parts_of(data: bytes, ref: DeltaRef) -> list[tuple[int, int]]:
    """Start and end of the parts that hold contents."""
    found, at = [], ref.lead
    for line in open_head(data[: head_length(data)], ref.sha256)._lines:
        found.append((at, at + line.length))
        at += line.length
    return found


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]


# One wrong thing, one step


async def test_with_nothing_wrong_the_direct_delta_brings_all(region: Region) -> None:
    installed = await region.update()
    assert installed.traffic.used.keys() == {"document", "delta"}
    assert installed.traffic.refused == ()


def cut_in_its_head(region: Region, ref: DeltaRef) -> None:
    region.put(ref, region.get(ref)[: ref.head - 3])


def cut_in_its_manifest(region: Region, ref: DeltaRef) -> None:
    region.put(ref, region.get(ref)[: ref.lead - 3])


def gone(region: Region, ref: DeltaRef) -> None:
    del region.content.files[delta_path(ref.sha256)]


def another_file(region: Region, ref: DeltaRef) -> None:
    other = region.first if ref != region.first else region.pack
    region.put(ref, region.get(other))


def a_wrong_head(region: Region, ref: DeltaRef) -> None:
    region.put(ref, flipped(region.get(ref), 15))


def nothing(region: Region, ref: DeltaRef) -> None:
    region.put(ref, b"")


def a_page_of_a_captive_portal(region: Region, ref: DeltaRef) -> None:
    region.put(ref, b"<html>Please log in</html>" * 1000)


BEFORE_ANYTHING = (
    cut_in_its_head, cut_in_its_manifest, gone, another_file, a_wrong_head, nothing,
    a_page_of_a_captive_portal,
)  # fmt: skip


@pytest.mark.parametrize("harm", BEFORE_ANYTHING)
async def test_a_direct_delta_that_cannot_be_opened_costs_the_step_to_the_chain(
    region: Region, harm: Callable[[Region, DeltaRef], None]
) -> None:
    harm(region, region.direct)
    installed = await region.update()
    assert installed.traffic.used["chain"] > 0
    assert not installed.traffic.used.keys() & {"pack", "whole"}
    assert refused(installed).keys() == {region.direct.sha256}
    assert len(region.asked(region.direct)) == 1
    (said,) = installed.traffic.refused
    assert said.bytes <= region.direct.lead


@pytest.mark.parametrize("harm", BEFORE_ANYTHING)
@pytest.mark.parametrize("link", ["first", "second"])
async def test_a_chain_with_a_link_that_cannot_be_opened_costs_the_step_to_the_pack(
    region: Region, harm: Callable[[Region, DeltaRef], None], link: str
) -> None:
    gone(region, region.direct)
    harm(region, getattr(region, link))
    installed = await region.update()
    assert installed.traffic.used["pack"] > 0
    assert refused(installed).keys() == {region.direct.sha256, getattr(region, link).sha256}
    leads = sum(ref.lead for ref in region.refs)
    assert installed.bytes_fetched < installed.bytes_full * 1.05 + leads


async def test_a_chain_whose_middle_is_gone_once_it_was_chosen_costs_a_step(
    region: Region,
) -> None:
    """Its head came; its parts do not."""
    gone(region, region.direct)
    path, read = delta_path(region.first.sha256), region.content.source.read

    async def fading(p: str, *, at_most: int, start: int = 0, end: int | None = None):
        if p == path and start >= region.first.lead:
            region.content.files.pop(p, None)
        async for chunk in read(p, at_most=at_most, start=start, end=end):
            yield chunk

    region.content.source.read = fading  # type: ignore[method-assign]
    installed = await region.update()
    assert installed.traffic.used["pack"] > 0
    assert refused(installed)[region.first.sha256].startswith("no deltas/")
    assert len(region.asked(region.first)) == 2


async def test_everything_wrong_ends_with_every_object_whole(region: Region) -> None:
    for ref in region.refs:
        a_wrong_head(region, ref)
    installed = await region.update()
    assert installed.traffic.used["whole"] > 0
    assert refused(installed).keys() == {ref.sha256 for ref in region.refs} - {
        region.second.sha256  # without the first link nobody asks for the second
    }
    assert all(len(region.asked(ref)) <= 1 for ref in region.refs)


@pytest.mark.parametrize("which", [0, 1, -1])
async def test_a_corrupt_part_keeps_what_came_before_it(region: Region, which: int) -> None:
    start, end = parts_of(region.get(region.direct), region.direct)[which]
    region.put(region.direct, flipped(region.get(region.direct), (start + end) // 2))
    installed = await region.update()
    assert installed.traffic.used["delta"] > 0
    ((file, why),) = refused(installed).items()
    assert (file, why[-25:]) == (region.direct.sha256, "is not what its head says")
    (said,) = installed.traffic.refused
    assert 0 < said.bytes <= region.direct.size
    assert installed.bytes_fetched < installed.bytes_full


async def test_a_part_of_another_delta_in_its_place_costs_a_step(region: Region) -> None:
    """Both are sound by themselves."""
    mine, theirs = region.get(region.direct), region.get(region.second)
    start, end = parts_of(mine, region.direct)[0]
    from_, to = parts_of(theirs, region.second)[0]
    part = theirs[from_:to].ljust(end - start, b"\0")[: end - start]
    region.put(region.direct, mine[:start] + part + mine[end:])
    installed = await region.update()
    ((file, why),) = refused(installed).items()
    assert (file, why[-25:]) == (region.direct.sha256, "is not what its head says")


# Signed, and wrong: the hub's key named it


def ref_of(data: bytes, ref: DeltaRef, *, base: str | None = None) -> DeltaRef:
    head = head_length(data)
    lead = head + (ref.lead - ref.head)
    return DeltaRef(
        Digest.of(data[:head]).sha256, head, lead, max(len(data), lead), ref.tree,
        ref.base if base is None else base,
    )  # fmt: skip


def around(table: bytes, rest: bytes = b"") -> bytes:
    packed = zstandard.ZstdCompressor(level=3).compress(table)
    return struct.pack("<4sI", b"EWD1", len(packed)) + packed + rest


async def test_a_delta_that_says_another_base_than_its_list_costs_a_step(region: Region) -> None:
    """It leads from the middle version, which this node never had."""
    data = region.get(region.second)
    wrong = ref_of(data, region.second, base=region.direct.base)
    region.refs = [wrong, region.pack]
    installed = await region.update()
    assert refused(installed) == {
        wrong.sha256: f"delta {wrong.sha256[:12]} is not what the list says"
    }
    assert installed.traffic.used["pack"] > 0


async def test_a_delta_made_from_other_contents_under_this_trees_name_costs_a_step(
    region: Region,
) -> None:
    """Every digest of the file is right; what it yields is not what the builder signed."""
    other = {"bin/run": ONE["bin/run"], "big": noise(70, 100_000), "same": ONE["same"]} | {
        f"doc/{n}": noise(n + 70, 3_000) for n in range(12)
    }
    await region.version("other", other)
    foreign = await region.delta("other", "two")
    data = bytearray(region.get(foreign))
    raw = zstandard.ZstdDecompressor().decompress(bytes(data[8 : foreign.head]))
    renamed = around(bytes.fromhex(region.direct.base) + raw[32:], bytes(data[foreign.head :]))
    wrong = ref_of(renamed, foreign, base=region.direct.base)
    region.refs = [region.pack]
    region.refs.append(wrong)
    region.put(wrong, renamed)
    installed = await region.update()
    assert wrong.sha256 in refused(installed)
    assert installed.traffic.used["pack"] > 0


HUGE: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a billion parts": lambda base, tree: base + tree + varints([10, 1 << 30]),
    "a manifest of a terabyte": lambda base, tree: (
        base + tree + varints([1 << 40, 1]) + b"\0" + bytes(32) + varints([5, 0, 0])
    ),
    "a trillion pieces": lambda base, tree: (
        base + tree + varints([10, 2]) + b"\0\3" + bytes(64) + varints([5, 5, 0, 1 << 40])
    ),
    "a table of many zeros": lambda base, tree: bytes(limits.DELTA_HEAD + 1),
    "no table": lambda base, tree: b"",
}


@pytest.mark.parametrize("name", HUGE)
async def test_a_signed_table_of_huge_sizes_costs_a_step_and_little_memory(
    region: Region, name: str
) -> None:
    base, tree = bytes.fromhex(region.direct.base), bytes.fromhex(region.direct.tree)
    data = around(HUGE[name](base, tree), bytes(100))
    wrong = DeltaRef(
        Digest.of(data[:-100]).sha256, len(data) - 100, len(data) - 50, len(data),
        region.direct.tree, region.direct.base,
    )  # fmt: skip
    region.replace(region.direct, wrong, data)
    with memory_below(48):
        installed = await region.update()
    assert refused(installed).keys() == {wrong.sha256}
    assert installed.traffic.used["chain"] > 0


async def test_a_list_that_says_huge_sizes_is_asked_for_no_more_than_it_needs(
    region: Region,
) -> None:
    """A lead of gigabytes would be held in memory: such a list is none. The largest lead that
    can be is asked for once, and what comes is no more than that."""
    for lead in (15 << 30, limits.DELTA_LEAD + 1):
        with pytest.raises(ValueError, match="sizes that cannot be"):
            DeltaRef("ab" * 32, 1 << 10, lead, limits.DELTA, region.direct.tree)
    wrong = DeltaRef(
        "ab" * 32, 1 << 10, limits.DELTA_LEAD, limits.DELTA, region.direct.tree, region.direct.base
    )
    region.put(wrong, bytes(1 << 20))
    region.refs = [wrong, region.first, region.second]
    with memory_below(48):
        installed = await region.update()
    assert region.asked(wrong) == [0]
    assert refused(installed).keys() == {wrong.sha256}
    assert installed.traffic.used["chain"] > 0
    honest = encode(DeltaList(tuple(region.refs)))
    region.refs = []
    region.list = honest.replace(b'"lead":%d' % limits.DELTA_LEAD, b'"lead":%d' % (15 << 30))
    assert region.list != honest
    await region.version("two", TWO | {"more": b"more"})
    installed = await region.update()
    (said,) = installed.traffic.refused
    assert said.what == Digest.of(region.list).sha256
    assert "sizes that cannot be" in said.why


@pytest.mark.parametrize("path", ["../out", "/etc/out", "a/../../out", "a//out", "./out", "a\0"])
async def test_a_manifest_of_a_delta_with_a_path_that_climbs_is_refused(
    region: Region, path: str
) -> None:
    """It comes in the delta and is not the tree that the builder signed."""
    _, honest = reference(Tree(()))
    hostile = honest.replace(
        b'"entries":[]',
        b'"entries":[{"kind":"file","path":%s,"sha256":"%s","size":1}]'
        % (encode(path), Digest.of(b"x").sha256.encode()),
    )
    assert hostile != honest
    await with_manifest(region, hostile)


@pytest.mark.parametrize("target", [b'"/etc"', b'"../../etc"'])
async def test_a_manifest_of_a_delta_with_a_link_out_of_it_is_refused(
    region: Region, target: bytes
) -> None:
    _, honest = reference(Tree(()))
    hostile = honest.replace(
        b'"entries":[]',
        b'"entries":[{"kind":"link","path":"a","target":%s},'
        b'{"kind":"file","path":"a/out","sha256":"%s","size":1}]'
        % (target, Digest.of(b"x").sha256.encode()),
    )
    await with_manifest(region, hostile)


async def with_manifest(region: Region, hostile: bytes) -> None:
    """The delta says that this is the new tree's manifest, and every digest of it holds."""
    packed = zstandard.ZstdCompressor().compress(hostile)
    table = (
        bytes.fromhex(region.direct.base)
        + bytes.fromhex(region.direct.tree)
        + varints([len(hostile), 1])
        + bytes([delta.MANIFEST])
        + bytes.fromhex(Digest.of(packed).sha256)
        + varints([len(packed), 0, 0])
    )
    head = around(table)
    data = head + packed
    wrong = DeltaRef(
        Digest.of(head).sha256, len(head), len(data), len(data),
        region.direct.tree, region.direct.base,
    )  # fmt: skip
    region.content.files[delta_path(wrong.sha256)] = data
    region.refs = [wrong, region.pack]
    installed = await region.update()
    assert wrong.sha256 in refused(installed)
    assert installed.traffic.used["pack"] > 0


@pytest.mark.parametrize("path", ["../out", "a/../../out", "/out"])
async def test_a_tree_that_climbs_is_refused_also_when_a_builder_signed_it(
    region: Region, path: str
) -> None:
    """By whichever way its manifest comes, and nothing is written beside the store."""
    content = region.content
    _, honest = reference(Tree(()))
    hostile = honest.replace(
        b'"entries":[]',
        b'"entries":[{"kind":"file","path":%s,"sha256":"%s","size":1}]'
        % (encode(path), Digest.of(b"x").sha256.encode()),
    )
    digest = Digest.of(hostile).sha256
    await content.objects.put(digest, hostile)
    await content.objects.put(Digest.of(b"x").sha256, b"x")
    region.releases["evil"] = await release_of(content, {"app": TreeRef(digest, 1, 1)})
    await region.announce("evil")
    content.source.requests.clear()
    with pytest.raises(Untrusted):
        await fetch(
            region.releases["evil"], NodeRecord("n1", 1, "lab"), region.terms,
            trust=region.trust, store=region.store, source=content.source,
        )  # fmt: skip
    assert len(content.source.requests) < 8
    active = region.store.active()
    assert active is not None
    assert active.release == region.releases["one"]
    assert {path.name for path in region.root.parent.iterdir()} == {region.root.name}
    await region.update()


# At random


LIES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "as it is": lambda data, chance: data,
    "a bit": lambda data, chance: flipped(data, chance.randrange(len(data))),
    "short": lambda data, chance: data[: chance.randrange(len(data))],
    "long": lambda data, chance: data + bytes(50_000),
    "shifted": lambda data, chance: data[chance.randrange(9) :],
    "zeros": lambda data, chance: bytes(len(data)),
    "empty": lambda data, chance: b"",
}


@pytest.mark.parametrize("seed", range(24))
async def test_a_server_that_lies_at_random_never_makes_a_node_loop_or_take_a_wrong_file(
    region: Region, seed: int
) -> None:
    """Another lie at each read of a delta, and at some reads the link breaks as well."""
    chance = random.Random(seed)
    told: Counter[str] = Counter()
    source = region.content.source

    def lie(data: bytes) -> bytes:
        how = chance.choice([*LIES, "as it is", "as it is"])
        told[how] += 1
        return LIES[how](data, chance)

    for ref in region.refs:
        source.lie(delta_path(ref.sha256), lie, times=99)
        if chance.random() < 0.3:
            source.cut(delta_path(ref.sha256), chance.randrange(3000))
    requests = 0
    for _ in range(3):
        try:
            await region.install("two")
        except TryLater:
            requests += len(source.requests)
            source.mend()
            continue
        break
    requests += len(source.requests)
    assert requests <= 2 * FILES + 8 * len(region.refs), told
    active = region.store.active()
    assert active is not None
    assert active.release == region.releases["two"]
    region.store.collect()
    assert not list((region.root / "staging" / "partial").iterdir())


class memory_below:
    """The interpreter's own allocations stay below so many MiB more than before."""

    def __init__(self, mib: int) -> None:
        self._mib = mib

    def __enter__(self) -> None:
        tracemalloc.start()

    def __exit__(self, *_: object) -> None:
        peak = tracemalloc.get_traced_memory()[1] / (1 << 20)
        tracemalloc.stop()
        assert peak < self._mib, f"{peak:.0f} MiB"
