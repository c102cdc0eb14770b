"""A node fetches by deltas and packs: what comes, by how many bytes and requests."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgewise.delivery.ways import Prices
from edgewise.model.errors import NeedsPerson, TryLater
from edgewise.protocol import limits
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content
from edgewise.testing.delta_world import ONE, THREE, TWO, DeltaWorld, changed, noise, release_of
from edgewise.testing.source import path_of


@pytest.fixture
async def world(tmp_path: Path) -> DeltaWorld:
    clock = ManualClock()
    return DeltaWorld(await Content.open(clock), clock, tmp_path / "node")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PART_OUTPUT", 32 << 10)


async def test_an_update_comes_by_its_delta_in_a_few_requests(world: DeltaWorld) -> None:
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    ref = await world.delta("one", "two")
    installed = await world.install("two")
    assert set(installed.traffic.used) == {"delta", "document"}
    assert installed.traffic.used["delta"] == ref.size
    assert installed.bytes_fetched < 12_000 < installed.bytes_full
    assert installed.traffic.planned == installed.traffic.used
    assert world.objects() == 3  # release, list, part: the manifest came as a patch
    assert installed.traffic.requests == 5


async def test_a_small_delta_comes_with_its_head_in_one_request(world: DeltaWorld) -> None:
    world.terms = replace(world.terms, prices=Prices())
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    ref = await world.delta("one", "two")
    await world.install("two")
    assert world.asked(ref) == [0]


async def test_documents_in_the_list_need_no_request(world: DeltaWorld) -> None:
    await world.version("one", ONE)
    release = await world.content.objects.get(world.releases["one"], at_most=1 << 20)
    parts = [
        data.decode()
        for sha256 in list(world.content.objects.packed)
        if b'"process"' in (data := await world.content.objects.get(sha256, at_most=1 << 24))
        and data != release
    ]
    await world.delta("", "one")
    world.documents = tuple(parts)
    await world.install("one")
    assert world.objects() == 2  # the release and the list


async def test_a_first_install_comes_as_a_pack(world: DeltaWorld, small_parts: None) -> None:
    files = ONE | {f"lib/{n}": noise(n, 3000) for n in range(200)}
    world.terms = replace(world.terms, prices=Prices())
    await world.version("one", files)
    ref = await world.delta("", "one")
    installed = await world.install("one")
    assert installed.traffic.used["pack"] == ref.size
    assert "whole" not in installed.traffic.used
    assert installed.traffic.requests < 10


async def test_a_chain_of_two_deltas_is_gone_where_no_direct_one_leads(
    world: DeltaWorld, small_parts: None
) -> None:
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    await world.version("three", THREE)
    await world.delta("one", "two")
    await world.delta("two", "three")
    installed = await world.install("three")
    assert installed.traffic.used["chain"] > 0
    assert "whole" not in installed.traffic.used
    assert "pack" not in installed.traffic.used
    assert world.store.collect() > 100_000  # the middle version's contents go again
    world.check("three")


async def test_a_node_that_was_away_for_27_years_takes_the_pack(world: DeltaWorld) -> None:
    await world.version("one", {"bin/run": b"1998", "big": noise(7, 50_000)})
    await world.install("one")
    await world.version("two", TWO)
    await world.version("three", THREE)
    await world.delta("two", "three")
    await world.delta("", "three")
    installed = await world.install("three")
    assert installed.traffic.used["pack"] > 0
    assert "whole" not in installed.traffic.used


async def test_of_a_pack_a_node_takes_only_what_it_lacks(
    world: DeltaWorld, small_parts: None
) -> None:
    lib = {f"lib/{n}": noise(n, 30_000) for n in range(12)}
    await world.version("one", {"bin/run": b"x", **lib})
    await world.install("one")
    await world.version("two", {"bin/run": b"y", **lib, "lib/13": noise(13, 30_000)})
    ref = await world.delta("", "two")
    installed = await world.install("two")
    assert installed.traffic.used.get("pack", 0) < ref.size / 4
    assert installed.bytes_fetched < 45_000


async def test_two_apps_of_one_release_share_what_they_have(world: DeltaWorld) -> None:
    await world.version("one", ONE)
    await world.install("one")
    await world.version("two", TWO)
    ref = await world.delta("one", "two")
    trees = {"app": world.trees["two"], "again": world.trees["two"]}
    world.releases["two"] = await release_of(world.content, trees)
    installed = await world.install("two")
    assert installed.traffic.used["delta"] == ref.size


async def test_a_gzip_file_is_compressed_again_and_checked(world: DeltaWorld) -> None:
    import gzip

    text = b"".join(b"line %d of a log\n" % (n * n) for n in range(9000))
    pack = lambda data: gzip.compress(data, 9, mtime=0)  # noqa: E731
    one = {"bin/run": b"x", "initrd.gz": pack(text)}
    two = one | {"initrd.gz": pack(changed(text, 70_000, b"CHANGED"))}
    await world.version("one", one)
    await world.install("one")
    await world.version("two", two)
    await world.delta("one", "two")
    installed = await world.install("two")
    assert installed.bytes_fetched < len(two["initrd.gz"]) / 3
    assert not list((world.root / "staging" / "partial").iterdir())


async def test_the_plan_is_told_before_the_contents_come(world: DeltaWorld) -> None:
    said: list[dict[str, int]] = []
    await world.version("one", ONE)
    world.terms = replace(world.terms, explain=lambda fields: said.append(dict(fields)))
    await world.install("one")
    assert said == [{"requests": 33, "whole_objects": 33, "whole_bytes": said[0]["whole_bytes"]}]


async def test_a_metered_link_takes_deltas_only(world: DeltaWorld) -> None:
    await world.version("one", ONE)
    await world.install("one")
    world.terms = replace(world.terms, metered=True, metered_policy="DeltasOnly")
    await world.version("two", TWO)
    with pytest.raises(TryLater, match="without a delta"):
        await world.install("two")
    assert world.objects() < 6  # documents only
    await world.delta("one", "two")
    await world.install("two")
    world.terms = replace(world.terms, metered_policy="Never")
    await world.version("three", THREE)
    with pytest.raises(TryLater, match="policy is Never"):
        await world.install("three")
    world.terms = replace(world.terms, metered=False)
    await world.install("three")


async def test_too_small_a_disk_is_said_before_the_first_content(world: DeltaWorld) -> None:
    await world.version("one", ONE)
    await world.delta("", "one")
    world.terms = replace(world.terms, reserve=1 << 50)
    with pytest.raises(NeedsPerson, match="in reserve"):
        await world.install("one")
    assert path_of(world.trees["one"].sha256) not in dict(world.content.source.requests)
