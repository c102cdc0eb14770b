"""Wrong, cut and mixed deltas, damaged bases and full disks: a node always ends with what was
signed, falls one step at a time, and asks for no file twice in vain."""

import asyncio
import errno
import gzip
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edgewise.backends.files.new_files as new_files_module
import edgewise.backends.files.node_store as node_store_module
from edgewise.backends.files import recompress
from edgewise.delivery.delta import head_length, open_head
from edgewise.delivery.downloads import SMALL
from edgewise.delivery.ways import Prices
from edgewise.model.errors import NeedsPerson, TryLater
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.delta import DeltaRef, delta_path
from edgewise.protocol.installed import Installed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.delta_world import ONE, TWO, DeltaWorld, changed, noise
from edgewise.testing.source import path_of

TWO = TWO | {"big": changed(TWO["big"], 10_000, noise(77, 60_000)), "b": noise(78, 50_000)}
THREE = TWO | {"big": changed(TWO["big"], 80_000, noise(79, 15_000)), "b": noise(80, 50_000)}


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeltaWorld:
    """A node that has version one; a delta leads from it to version two, and a pack."""
    monkeypatch.setattr(limits, "PART_OUTPUT", 32 << 10)
    clock = ManualClock()
    world = DeltaWorld(await Content.open(clock), clock, tmp_path / "node")
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    await world.delta("one", "two")
    await world.delta("", "two")
    return world


def parts_of(world: DeltaWorld, ref: DeltaRef) -> list[tuple[int, int]]:
    """Start and end of the parts that hold contents."""
    data = world.content.files[delta_path(ref.sha256)]
    head = open_head(data[: head_length(data)], ref.sha256)
    at = ref.lead
    found = []
    for line in head._lines:
        found.append((at, at + line.length))
        at += line.length
    return found


def asked_twice(world: DeltaWorld) -> list[tuple[str, int]]:
    counts = Counter(world.content.source.requests)
    return [one for one, times in counts.items() if times > 1 and one[0].startswith("deltas/")]


def other_ways(installed: Installed) -> int:
    used = installed.traffic.used
    return used.get("pack", 0) + used.get("whole", 0)


def harm(world: DeltaWorld, ref: DeltaRef, at: int) -> None:
    data = bytearray(world.content.files[delta_path(ref.sha256)])
    data[at] ^= 0x40
    world.content.files[delta_path(ref.sha256)] = bytes(data)


async def test_a_corrupt_part_costs_one_step_and_never_a_wrong_file(world: DeltaWorld) -> None:
    start, end = parts_of(world, world.refs[0])[0]
    harm(world, world.refs[0], (start + end) // 2)
    installed = await world.install("two")
    assert other_ways(installed) > 0
    assert asked_twice(world) == []


async def test_every_byte_of_a_delta_may_be_wrong(world: DeltaWorld, tmp_path: Path) -> None:
    good = world.content.files[delta_path(world.refs[0].sha256)]
    home = world.root
    for at in range(0, len(good), max(1, len(good) // 25)):
        world.content.files[delta_path(world.refs[0].sha256)] = good
        harm(world, world.refs[0], at)
        world.root = tmp_path / str(at)
        shutil.copytree(home, world.root, symlinks=True)
        installed = await world.install("two")
        assert installed.traffic.requests < 60
        assert asked_twice(world) == []


async def test_a_head_that_does_not_match_is_not_parsed(world: DeltaWorld) -> None:
    harm(world, world.refs[0], 20)
    installed = await world.install("two")
    assert world.asked(world.refs[0]) == [0]
    assert installed.traffic.used["pack"] > 0


async def test_a_truncated_delta_is_given_up(world: DeltaWorld) -> None:
    ref = world.refs[0]
    start, end = parts_of(world, ref)[-1]
    path = delta_path(ref.sha256)
    world.content.files[path] = world.content.files[path][: (start + end) // 2]
    installed = await world.install("two")
    assert "delta" in installed.traffic.used
    assert len(world.asked(ref)) <= 3
    assert asked_twice(world) == []


async def test_a_part_from_another_delta_is_refused(world: DeltaWorld) -> None:
    await world.version("three", THREE)
    other = await world.delta("two", "three")
    mine, theirs = world.refs[0], world.content.files[delta_path(other.sha256)]
    (start, end), (from_, to) = parts_of(world, mine)[0], parts_of(world, other)[0]
    data = world.content.files[delta_path(mine.sha256)]
    mixed = data[:start] + theirs[from_:to].ljust(end - start, b"\0")[: end - start] + data[end:]
    world.content.files[delta_path(mine.sha256)] = mixed
    installed = await world.install("two")
    assert other_ways(installed) > 0


async def test_a_cdn_that_serves_stale_or_mixed_files_costs_only_bytes(world: DeltaWorld) -> None:
    direct, pack = (delta_path(ref.sha256) for ref in world.refs)
    files = world.content.files
    files[direct], files[pack] = files[pack], files[direct]
    installed = await world.install("two")
    assert installed.traffic.used["whole"] > 0
    assert asked_twice(world) == []


async def test_deltas_that_are_listed_but_not_there_cost_a_request_each(world: DeltaWorld) -> None:
    for ref in world.refs:
        del world.content.files[delta_path(ref.sha256)]
    installed = await world.install("two")
    assert "delta" not in installed.traffic.used
    assert [len(world.asked(ref)) for ref in world.refs] == [1, 1]


async def test_a_list_that_cannot_be_read_or_had_costs_only_bytes(world: DeltaWorld) -> None:
    world.list = b'{"deltas": 7}'
    installed = await world.install("two")
    assert other_ways(installed) > 0
    world.list = b'{"deltas": []}'
    await world.version("three", THREE)
    world.content.source.lie(path_of(Digest.of(world.list).sha256), lambda data: b"", times=9)
    await world.install("three")


async def test_a_delta_whose_result_is_wrong_is_refused(world: DeltaWorld) -> None:
    """Every digest of the file is right, but it was made from other contents."""
    lying = dict(ONE) | {"big": changed(ONE["big"], 5_000, b"another hub's")}
    real = world.content.objects.packed.copy()
    big = Digest.of(ONE["big"]).sha256
    from edgewise.delivery import packing

    world.content.objects.packed[big] = packing.pack(lying["big"])
    original = world.content.objects.get

    async def get(sha256: str, *, at_most: int) -> bytes:
        return lying["big"] if sha256 == big else await original(sha256, at_most=at_most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.content.objects, "get", get)
        world.refs = []
        wrong = await world.delta("one", "two")
    world.content.objects.packed.clear()
    world.content.objects.packed.update(real)
    await world.delta("", "two")
    installed = await world.install("two")
    assert other_ways(installed) > 0
    assert world.asked(wrong)
    assert asked_twice(world) == []


async def test_a_damaged_old_file_is_dropped_and_the_rest_of_the_delta_used(
    world: DeltaWorld,
) -> None:
    sha256 = Digest.of(ONE["doc/3"]).sha256
    (kept,) = (world.root / "store" / "objects" / sha256[:2]).glob(f"{sha256[2:]}-*")
    kept.write_bytes(changed(ONE["doc/3"], 50, b"bit rot"))
    installed = await world.install("two")
    assert installed.traffic.used["delta"] > 0
    assert asked_twice(world) == []
    assert not kept.exists()


async def test_after_a_kill_in_the_middle_of_a_part_only_the_rest_comes(
    world: DeltaWorld,
) -> None:
    ref = world.refs[0]
    world.refs = [ref]
    world.terms = replace(world.terms, prices=Prices(request=0, whole=1.0))
    parts = parts_of(world, ref)
    starts, end = [start for start, _ in parts], parts[-1][1]
    # The link breaks in the middle of the largest part, again and again without a byte.
    start, stop = max(parts, key=lambda part: part[1] - part[0])
    cut = (start + stop) // 2
    path = delta_path(ref.sha256)
    world.content.source.cut(path, ref.lead, cut - starts[0], 0, 0)
    with pytest.raises(TryLater):
        await world.install("two")
    world.content.source.mend()
    installed = await world.install("two")  # a new process: only the disk is remembered
    again = [start for p, start in world.content.source.requests if p == path]
    assert again[0] == cut
    assert installed.traffic.used["delta"] == end - cut


async def test_a_kill_loses_no_more_of_a_part_than_it_may(
    world: DeltaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PART_OUTPUT", 2 << 20)
    await world.version("one", {"bin/run": b"x", "a": noise(5, 10)})
    world.refs = []
    await world.install("one")
    await world.version("two", {"bin/run": b"x", "a": noise(6, 10), "b": noise(7, 1_500_000)})
    ref = await world.delta("", "two")
    await world.announce("two")
    world.content.source.requests.clear()
    task = asyncio.create_task(world.install("two"))
    while world.content.source.served < 900_000:  # noqa: ASYNC110 - it counts, it tells nobody
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held = world.store.has_partial(next(iter((world.root / "staging" / "partial").iterdir())).name)
    assert held > 900_000 - SMALL - 100_000
    await world.install("two")
    assert world.content.source.served < ref.size - held + 20_000


async def test_a_newer_release_that_comes_meanwhile_uses_what_is_here(world: DeltaWorld) -> None:
    await world.version("three", THREE)
    await world.delta("one", "three")
    path = delta_path(world.refs[0].sha256)
    world.terms = replace(world.terms, prices=Prices(request=200, whole=1.0))
    world.content.source.cut(path, world.refs[0].lead, 1_000, 0, 0)
    with pytest.raises(TryLater):
        await world.install("two")
    world.content.source.mend()
    installed = await world.install("three")
    assert set(installed.traffic.used) <= {"document", "delta"}
    assert world.store.collect() >= 0
    assert not list((world.root / "staging" / "partial").iterdir())


async def test_a_scratch_file_that_a_power_cut_tore_is_not_believed(world: DeltaWorld) -> None:
    ref = world.refs[0]
    world.refs = [ref]
    world.terms = replace(world.terms, prices=Prices(request=200, whole=1.0))
    parts = parts_of(world, ref)
    path = delta_path(ref.sha256)
    world.content.source.cut(path, ref.lead, parts[2][0] - parts[0][0] + 5, 0, 0)
    with pytest.raises(TryLater):
        await world.install("two")
    world.content.source.mend()
    torn = list((world.root / "staging" / "partial").glob("*.new"))
    for file in torn:
        data = bytearray(file.read_bytes())
        data[10:2000] = bytes(1990)
        file.write_bytes(data)
    assert torn
    await world.install("two")


async def test_a_full_disk_while_parts_are_applied_leaves_the_old_release(
    world: DeltaWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, survive: int) -> None:
            self.left = survive
            self.reached = False

        def __getattr__(self, name: str) -> object:
            real = getattr(os, name)
            if name not in ("rename", "open", "write"):
                return real

            def counted(*given: Any, **named: object) -> object:
                if name == "open" and not given[1] & os.O_CREAT:
                    return real(*given, **named)
                self.left -= 1
                if self.left < 0:
                    self.reached = True
                    raise OSError(errno.ENOSPC, "full")
                return real(*given, **named)

            return counted

    told = 0
    for survive in range(0, 120, 7):
        with monkeypatch.context() as patch:
            shim = Full(survive)
            for module in (node_store_module, new_files_module):
                patch.setattr(module, "os", shim)
            try:
                await world.install("two")
            except NeedsPerson as error:
                told += "full" in str(error)
        active = world.store.active()
        assert active is not None
        assert active.release in (world.releases["one"], world.releases["two"])
        if not shim.reached:
            break
    assert told > 3
    await world.install("two")


async def test_another_gzip_costs_a_download_and_never_a_wrong_file(world: DeltaWorld) -> None:
    text = b"".join(b"line %d of a log\n" % (n * n) for n in range(9000))
    one = {"bin/run": b"x", "initrd.gz": gzip.compress(text, 9, mtime=0)}
    new = gzip.compress(changed(text, 70_000, b"CHANGED"), 9, mtime=0)
    await world.version("one", one)
    await world.install("one")
    await world.version("two", one | {"initrd.gz": new})
    world.refs = []
    await world.delta("one", "two")

    class Other:
        can_recompress = staticmethod(recompress.can_recompress)
        expanded = staticmethod(recompress.expanded)

        @staticmethod
        def recompress(expansion: object, source: object, sink: object) -> None:
            sink(b"another gzip")  # type: ignore[operator]

        @staticmethod
        def recompressed(expansion: object, data: bytes) -> bytes:
            return b"another gzip"

    world.terms = replace(world.terms, recompression=Other())
    installed = await world.install("two")
    assert installed.traffic.used["whole"] > 0
    assert not list((world.root / "staging" / "partial").iterdir())


async def test_a_machine_without_that_gzip_does_not_ask_for_such_parts(world: DeltaWorld) -> None:
    text = b"".join(b"line %d of a log\n" % (n * n) for n in range(9000))
    one = {"bin/run": b"x", "initrd.gz": gzip.compress(text, 9, mtime=0)}
    new = gzip.compress(changed(text, 70_000, b"CHANGED"), 9, mtime=0)
    await world.version("one", one)
    await world.install("one")
    await world.version("two", one | {"initrd.gz": new})
    world.refs = []
    ref = await world.delta("one", "two")
    world.terms = replace(world.terms, recompression=None)
    installed = await world.install("two")
    assert installed.traffic.used["whole"] > 0
    assert installed.traffic.used["delta"] <= ref.lead
