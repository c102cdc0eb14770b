"""What can go wrong with content at a relay: sources that lie or break, a full disk, slow
readers, eviction. Real files on a real disk; the hub is in memory and does as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from edgewise.backends.files import flights
from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.delivery import packing
from edgewise.delivery.ports import NotHere, Served
from edgewise.model.errors import NeedsPerson, NotFound, TryLater, Untrusted
from edgewise.protocol.content import object_path
from edgewise.testing.clock import ManualClock
from edgewise.testing.delta_files import delta_file
from edgewise.testing.log import ListLog
from edgewise.testing.source import MemorySource

PART = 40_000


class Region:
    """A relay's shelf in a folder, and a hub. ``restart`` keeps only the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.hub = MemorySource()
        self.log = ListLog()
        self.start()

    def start(self, limit: int = 1 << 30, reserve: int = 0) -> None:
        self.files = CacheFiles(self.folder)
        self.space = Space(self.files, SpaceTerms(limit, reserve), self.clock, self.log)
        self.shelf = FileShelf(self.space, self.hub, self.log)

    async def restart(self, limit: int = 1 << 30, reserve: int = 0) -> None:
        await self.shelf.close()
        self.start(limit, reserve)

    def publish(self, data: bytes) -> str:
        path = object_path(hashlib.sha256(data).hexdigest())
        self.hub.files[path] = packing.pack(data)
        return path

    def publish_delta(self, count: int, size: int = PART) -> str:
        path, data = delta_file([os.urandom(size) for _ in range(count)])
        self.hub.files[path] = data
        return path

    async def get(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        served = await self.shelf.open(path, start, end)
        return await read(served, start, end)


async def read(served: Served, start: int = 0, end: int | None = None) -> bytes:
    last = served.size if end is None else min(end, served.size)
    return b"".join([piece async for piece in served.read(start, last)])


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[Region]:
    region = Region(tmp_path)
    yield region
    await region.shelf.close()


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of 200 KB count as large, which is quicker than making large ones."""
    monkeypatch.setattr(flights, "WHOLE", 100_000)


def said(region: Region, what: str) -> int:
    return [line for line, _ in region.log.lines].count(what)


# One copy over the hub's line


@pytest.mark.usefixtures("large")
async def test_fifty_nodes_get_a_large_object_while_it_comes_and_it_comes_once(
    region: Region,
) -> None:
    path = region.publish(os.urandom(500_000))
    whole = region.hub.files[path]
    got = await asyncio.gather(*(region.get(path) for _ in range(50)))
    assert set(got) == {whole}
    assert region.hub.served == len(whole)
    assert region.hub.requests == [(path, 0)]


@pytest.mark.usefixtures("large")
async def test_the_first_bytes_are_handed_on_before_the_last_have_come(region: Region) -> None:
    path = region.publish(os.urandom(500_000))
    served = await region.shelf.open(path)
    assert region.hub.served < served.size
    assert await read(served, 0, 10) == region.hub.files[path][:10]
    assert region.hub.served < served.size


async def test_fifty_nodes_that_ask_for_any_ranges_of_a_delta_cost_one_copy(
    region: Region,
) -> None:
    path = region.publish_delta(30)
    whole = region.hub.files[path]
    spans = [(n * 23_456 % len(whole), n * 23_456 % len(whole) + 300_000) for n in range(50)]
    got = await asyncio.gather(*(region.get(path, *span) for span in spans))
    assert got == [whole[start:end] for start, end in spans]
    assert await region.get(path) == whole
    assert region.hub.served <= len(whole) + 65_536


async def test_a_node_that_needs_one_part_of_a_pack_does_not_make_the_relay_fetch_all(
    region: Region,
) -> None:
    path = region.publish_delta(100)
    whole = region.hub.files[path]
    assert await region.get(path, 2_000_000, 2_000_100) == whole[2_000_000:2_000_100]
    assert region.hub.served < 70_000 + 2 * PART
    assert region.shelf.stored_bytes < 70_000 + 3 * PART


# Sources that lie


def flipped(at: int) -> object:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def test_a_part_that_was_altered_is_asked_for_again_and_never_handed_on(
    region: Region,
) -> None:
    path = region.publish_delta(5)
    whole = region.hub.files[path]
    await region.get(path, 0, 10)
    region.hub.lie(path, flipped(150_000))  # type: ignore[arg-type]
    assert await region.get(path) == whole
    assert region.hub.blamed == [path]
    assert said(region, "content refused") == 1


async def test_a_hub_that_keeps_lying_about_a_part_gets_nothing_kept(region: Region) -> None:
    path = region.publish_delta(5)
    await region.get(path, 0, 10)
    region.hub.lie(path, flipped(150_000), times=9)  # type: ignore[arg-type]
    with pytest.raises(Untrusted, match="is not what it says"):
        await region.get(path)
    served = await region.shelf.open(path, 0, PART)
    with pytest.raises(NotHere):
        await region.shelf.open(path, 140_000, 160_000, here=True)
    assert await read(served, 0, PART) == region.hub.files[path][:PART]


async def test_a_head_that_was_altered_is_refused_before_it_is_parsed(region: Region) -> None:
    path = region.publish_delta(3)
    region.hub.lie(path, flipped(30), times=2)  # type: ignore[arg-type]
    with pytest.raises(Untrusted, match="not what its name says"):
        await region.get(path)
    assert await region.get(path) == region.hub.files[path]


@pytest.mark.usefixtures("large")
async def test_an_altered_large_object_never_looks_complete_to_anybody(region: Region) -> None:
    path = region.publish(os.urandom(500_000))
    region.hub.lie(path, flipped(499_000))  # type: ignore[arg-type]
    served = await region.shelf.open(path)
    got: list[int] = []

    async def collect() -> None:
        async for piece in served.read(0, served.size):
            got.append(len(piece))

    with pytest.raises(Untrusted):
        await collect()
    assert 0 < sum(got) < served.size
    assert not (region.folder / path).exists()
    assert await region.get(path) == region.hub.files[path]


async def test_an_object_that_is_another_one_is_not_kept_and_the_next_try_heals(
    region: Region,
) -> None:
    path = region.publish(b"truth")
    region.hub.lie(path, lambda _: packing.pack(b"lie"), times=2)
    with pytest.raises(Untrusted):
        await region.get(path)
    assert not (region.folder / path).exists()
    assert packing.unpack(await region.get(path), path[8:10] + path[11:-4], at_most=5) == b"truth"


# Lines that break


@pytest.mark.usefixtures("large")
async def test_upstream_is_cut_mid_file_and_twenty_who_wait_get_it_all_from_one_resumed_download(
    region: Region,
) -> None:
    path = region.publish(os.urandom(500_000))
    whole = region.hub.files[path]
    region.hub.cut(path, 100_000, 150_000, 30_000)
    got = await asyncio.gather(*(region.get(path) for _ in range(20)))
    assert set(got) == {whole}
    assert region.hub.requests == [(path, 0), (path, 100_000), (path, 250_000), (path, 280_000)]
    assert region.hub.served == len(whole)


@pytest.mark.parametrize("size", [50_000, 500_000])
@pytest.mark.usefixtures("large")
async def test_the_hub_goes_away_while_an_object_is_half_there_and_a_restart_goes_on(
    region: Region, size: int
) -> None:
    path = region.publish(os.urandom(size))
    whole = region.hub.files[path]
    region.hub.cut(path, size // 2, 0)
    with pytest.raises(TryLater):
        await region.get(path)
    await region.restart()
    assert await region.get(path) == whole
    assert region.hub.served == len(whole)


async def test_the_hub_goes_away_while_a_part_is_half_there_and_a_restart_goes_on(
    region: Region,
) -> None:
    path = region.publish_delta(6, 100_000)
    whole = region.hub.files[path]
    await region.get(path, 0, 10)
    region.hub.cut(path, 250_000, *[0] * 9)
    with pytest.raises(TryLater):
        await region.get(path)
    region.hub._cuts.clear()
    before = region.hub.served
    await region.restart()
    region.hub.requests.clear()
    assert await region.get(path) == whole
    assert region.hub.served <= len(whole) + 65_536
    assert region.hub.served > before


async def test_what_is_whole_is_served_while_the_hub_is_away(region: Region) -> None:
    objects = region.publish(b"app" * 1000)
    delta = region.publish_delta(3)
    wholes = [await region.get(objects), await region.get(delta)]
    region.hub.away = True
    await region.restart()
    assert [await region.get(objects), await region.get(delta)] == wholes
    with pytest.raises(TryLater):
        await region.get(object_path("ab" * 32))


async def test_a_part_that_the_disk_changed_is_noticed_at_the_next_start(region: Region) -> None:
    path = region.publish_delta(5)
    whole = await region.get(path)
    with (region.folder / path).open("r+b") as file:
        file.seek(150_000)
        file.write(b"rot")
    await region.restart()
    assert await region.get(path) == whole


# A full disk


async def test_a_full_disk_stops_the_keeping_and_not_the_serving(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flights, "WHOLE", 100_000)
    paths = [region.publish(os.urandom(n)) for n in (50_000, 500_000)] + [region.publish_delta(5)]
    monkeypatch.setattr(region.files, "free", lambda: 100)
    for path in paths:
        whole = region.hub.files[path]
        assert set(await asyncio.gather(*(region.get(path) for _ in range(3)))) == {whole}
        assert await region.get(path, 1000, 2000) == whole[1000:2000]
    assert region.shelf.stored_bytes == 0
    assert said(region, "no room in the cache") == 1
    with pytest.raises(NeedsPerson):
        await region.shelf.ensure(paths[0])


@pytest.mark.usefixtures("large")
async def test_a_disk_that_somebody_else_fills_meanwhile_costs_a_repeat(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = region.publish(os.urandom(500_000))

    write = region.files.write

    def full(fd: int, data: bytes, at: int) -> None:
        if at > 200_000:
            raise NeedsPerson("the disk is full")
        write(fd, data, at)

    monkeypatch.setattr(region.files, "write", full)
    with pytest.raises(TryLater):
        await region.get(path)
    monkeypatch.setattr(region.files, "free", lambda: 0)
    assert await region.get(path) == region.hub.files[path]


async def test_room_is_made_for_what_is_new_on_a_disk_that_is_nearly_full(
    region: Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = region.publish(os.urandom(50_000)), region.publish(os.urandom(40_000))
    await region.get(old)
    monkeypatch.setattr(
        region.files, "free", lambda: 30_000 if (region.folder / old).exists() else 80_000
    )
    await region.get(new)
    assert not (region.folder / old).exists()
    assert (region.folder / new).exists()


# Slow readers, eviction


async def test_a_node_that_reads_very_slowly_does_not_hold_the_others(region: Region) -> None:
    path = region.publish_delta(40, 100_000)
    whole = region.hub.files[path]
    served = await region.shelf.open(path)
    slow = served.read(0, served.size)
    first = await anext(slow)
    assert await region.get(path) == whole
    rest = b"".join([piece async for piece in slow])
    assert first + rest == whole


@pytest.mark.usefixtures("large")
async def test_eviction_never_removes_what_is_being_served(region: Region) -> None:
    await region.restart(limit=1_000_000)
    path = region.publish(os.urandom(600_000))
    whole = await region.get(path)
    served = await region.shelf.open(path)
    reading = served.read(0, served.size)
    first = await anext(reading)
    for _ in range(5):
        await region.get(region.publish(os.urandom(300_000)))
    assert (region.folder / path).exists()
    assert first + b"".join([piece async for piece in reading]) == whole
    for _ in range(5):
        await region.get(region.publish(os.urandom(300_000)))
    assert not (region.folder / path).exists()
    assert region.shelf.stored_bytes <= 1_000_000


async def test_what_was_served_lately_outlives_a_restart_and_what_was_not_goes(
    region: Region,
) -> None:
    paths = [region.publish(os.urandom(10_000)) for _ in range(3)]
    for path in paths:
        await region.get(path)
    region.clock.advance(timedelta(hours=2))
    await region.get(paths[0])
    await region.restart(limit=35_000)
    await region.get(region.publish(os.urandom(10_000)))
    assert (region.folder / paths[0]).exists()
    assert [(region.folder / path).exists() for path in paths].count(True) == 2


async def test_only_names_of_content_are_served(region: Region) -> None:
    for path in ("objects/../relay.db", "deltas/ab/x.ewd", "incoming/x", "", "objects/ab/.zst"):
        with pytest.raises(NotFound):
            await region.shelf.open(path)


async def test_with_only_if_cached_nothing_is_fetched(region: Region) -> None:
    path, delta = region.publish(b"x" * 1000), region.publish_delta(3)
    for one in (path, delta):
        with pytest.raises(NotHere):
            await region.shelf.open(one, here=True)
    assert region.hub.requests == []
    await region.get(path)
    assert await read(await region.shelf.open(path, here=True)) == region.hub.files[path]
