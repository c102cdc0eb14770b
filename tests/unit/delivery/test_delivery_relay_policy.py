"""What a relay decides without doing anything: what goes first, what is pinned, whom to ask."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some

from edgewise.delivery import pins
from edgewise.delivery.brake import Brake
from edgewise.delivery.recency import KeptFile, Recency
from edgewise.delivery.sources import LIES, Choice
from edgewise.model.names import Digest
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import encode
from edgewise.protocol.content import object_path
from edgewise.protocol.delta import DeltaList, DeltaRef, delta_path
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content

NOBODY: frozenset[str] = frozenset()


def test_what_was_used_longest_ago_goes_first_and_only_as_much_as_is_needed() -> None:
    kept = Recency(100, [KeptFile(name, 30, at) for at, name in enumerate("abc")])
    kept.use("a", 10.0)
    assert kept.victims(35, held=NOBODY, pinned=NOBODY, busy=NOBODY) == ("b",)
    assert kept.victims(45, held=NOBODY, pinned=NOBODY, busy=NOBODY) == ("b", "c")


def test_what_channels_lead_to_goes_last_and_what_is_held_or_served_never() -> None:
    kept = Recency(120, [KeptFile(name, 30, at) for at, name in enumerate("abcd")])
    groups = {"held": {"a"}, "pinned": {"a", "b"}, "busy": {"d"}}
    assert kept.victims(30, **groups) == ("c",)
    assert kept.victims(60, **groups) == ("c", "b")
    assert kept.victims(1000, **groups) == ("c", "b")


def test_the_disk_is_told_of_a_use_once_an_hour_at_most() -> None:
    kept = Recency(100, [KeptFile("a", 1, 0.0)])
    told = [kept.use("a", float(second)) for second in range(0, 4 * 3600, 60)]
    assert told.count(True) == 3


@given(
    some.lists(
        some.tuples(some.sampled_from("abcdefgh"), some.integers(1, 50), some.booleans()),
        max_size=60,
    )
)
def test_whatever_comes_and_goes_the_sum_is_right_and_the_limit_holds(
    steps: list[tuple[str, int, bool]],
) -> None:
    kept, sizes = Recency(100, []), dict[str, int]()
    for now, (name, size, use) in enumerate(steps):
        if use:
            kept.use(name, float(now))
            continue
        grows = size - sizes.get(name, 0)
        for gone in kept.victims(grows, held=NOBODY, pinned=NOBODY, busy={name}):
            kept.drop(gone)
            del sizes[gone]
        kept.put(name, size, float(now))
        sizes[name] = size
        assert kept.total == sum(sizes.values()) <= 100


def test_the_property_above_does_reach_a_full_cache() -> None:
    kept = Recency(100, [])
    for number in range(10):
        for gone in kept.victims(30, held=NOBODY, pinned=NOBODY, busy=NOBODY):
            kept.drop(gone)
        kept.put(str(number), 30, float(number))
    assert len(kept) == 3
    assert "9" in kept
    assert "0" not in kept


async def test_a_relay_knows_everything_that_its_channels_lead_to() -> None:
    content = await Content.open(ManualClock())
    release = await content.release({"till": {"bin/run": b"1", "etc/a": b"2"}})
    listed = DeltaList((DeltaRef("d" * 64, 10, 20, 30, "e" * 64),))
    data = encode(listed)
    await content.objects.put(Digest.of(data).sha256, data)
    channel = Channel("lab", 1, stable=release, deltas=Digest.of(data).sha256)

    def kept(digest: str, at_most: int) -> bytes | None:
        import zstandard

        packed = content.objects.packed.get(digest)
        return zstandard.decompress(packed) if packed is not None else None

    found = pins.reach(*pins.roots([channel]), kept)
    assert found.lacking == frozenset()
    assert delta_path("d" * 64) in found.paths
    assert object_path(Digest.of(b"2").sha256) in found.paths
    assert {object_path(digest) for digest in content.objects.packed} <= found.paths
    lacking = pins.reach(*pins.roots([channel]), lambda digest, at_most: None)
    assert lacking.lacking == {release, channel.deltas}


def test_a_document_that_a_relay_does_not_understand_is_pinned_by_its_name_alone() -> None:
    found = pins.reach(["a" * 64], [], lambda digest, at_most: b"{}")
    assert found.paths == {object_path("a" * 64)}


def test_a_source_that_fails_is_asked_last_for_longer_each_time() -> None:
    choice = Choice(["cdn", "hub"])
    assert choice.order(0.0) == [0, 1]
    choice.failed(0, "no answer", 0.0)
    assert choice.order(1.0) == [1, 0]
    assert choice.order(2.1) == [0, 1]
    choice.failed(0, "no answer", 2.1)
    assert choice.order(5.0) == [1, 0]
    choice.gave(0, "objects/x", 5)
    assert choice.standings[0].failures == 0


def test_a_source_that_is_announced_later_is_asked_before_the_hub() -> None:
    choice = Choice(["peer", "hub"])
    choice.add("cdn")
    choice.add("another")
    assert choice.order(0.0) == [0, 2, 3, 1]
    choice.failed(2, "no answer", 0.0)
    assert choice.order(1.0) == [0, 3, 1, 2]


def test_whoever_gave_bytes_that_did_not_verify_rests_and_nobody_else() -> None:
    choice = Choice(["peer", "cdn", "hub"])
    choice.gave(0, "objects/x", 1)
    choice.gave(1, "objects/y", 1)
    assert choice.blame("objects/y", "wrong digest", 0.0) == ("cdn",)
    assert choice.order(1.0) == [0, 2, 1]
    assert choice.order(LIES.total_seconds() + 1) == [0, 1, 2]


@pytest.mark.parametrize("piece", [1_000, 64_000, 1_000_000])
def test_a_brake_keeps_to_its_rate_whatever_the_pieces(piece: int) -> None:
    brake, now, sent = Brake(100_000), 0.0, 0
    while now < 60:
        now += brake.take(piece, now) + 0.001
        sent += piece
    assert 0.9 * 6_000_000 < sent <= 6_000_000 + 100_000 + 2 * piece


def test_a_brake_saves_up_no_more_than_a_second() -> None:
    brake = Brake(1000)
    assert brake.take(1000, 0.0) == 0.0
    assert brake.take(1000, timedelta(days=1).total_seconds()) == 0.0
    assert brake.take(1000, timedelta(days=1).total_seconds()) == 1.0
