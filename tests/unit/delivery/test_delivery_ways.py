"""The choice of ways, on random offers: its laws, and that the interesting cases occur."""

import hashlib
from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.delivery.ways import (
    RANGE,
    Choice,
    Offer,
    OfferedPart,
    Prices,
    Situation,
    candidates,
    choose,
)

BOLD = Prices(request=1000, whole=0.5)


def name(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


OLD, MIDDLE, NEW = range(8), range(8, 16), range(16, 36)
World = tuple[dict[str, int], list[Offer], Situation, Prices]


def random_offer(chance: Random, file: str, base: str, needs: range, yields: range) -> Offer:
    start, parts = chance.randint(50, 5000), []
    for _ in range(chance.randint(0, 8)):
        length = chance.choice([50, 3000, 60_000])
        brings = tuple(map(name, chance.sample(yields, chance.randint(1, 5))))
        bases = tuple(map(name, chance.sample(needs, chance.randint(0, 3)))) if base else ()
        parts.append(OfferedPart(start, length, brings, bases))
        start += length
    return Offer(file, base, tuple(parts))


def world_of(seed: int) -> World:
    chance = Random(seed)
    offers = [
        random_offer(chance, "direct", "t0", OLD, NEW),
        random_offer(chance, "first", "t0", OLD, MIDDLE),
        random_offer(chance, "second", "t1", MIDDLE, NEW),
        random_offer(chance, "pack", "", OLD, NEW),
    ]
    offers = chance.sample(offers, chance.randint(0, 4))
    here = set(OLD) if chance.random() < 0.7 else set(chance.sample(OLD, 5))
    here |= set(chance.sample(range(36), chance.randint(0, 12)))
    wanted = chance.sample(NEW, chance.randint(0, 20))
    have = frozenset(map(name, here))
    return (
        {name(n): chance.choice([1, 900, 200_000]) for n in wanted if n not in here},
        offers,
        Situation(have.__contains__),
        BOLD,
    )


worlds = st.integers(0, 2**32).map(world_of)
"""Drawn as one number: generation is quick, and a failing world is named by it."""


def play(choice: Choice, offered: list[Offer], about: Situation) -> tuple[Counter[str], list[str]]:
    """What arrives whole, counting each object once, and bases that were not there in time."""
    by_file = {offer.file: offer for offer in offered}
    missing: list[str] = []
    arrived: Counter[str] = Counter()
    for first in (True, False):
        came: Counter[tuple[str, str]] = Counter()
        for step in (r for r in choice.ranges if r.first == first):
            for index in step.parts:
                part = by_file[step.file].parts[index]
                assert step.start <= part.start
                assert part.start + part.length <= step.end
                missing += [b for b in part.needs if not about.here(b) and b not in arrived]
                came.update((step.file, sha256) for sha256 in part.yields)
        for (file, sha256), count in came.items():
            if count == sum(sha256 in part.yields for part in by_file[file].parts):
                arrived[sha256] += 1
    arrived.update(choice.whole)
    return arrived, missing


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_everything_wanted_comes_and_its_bases_before_it(world: World) -> None:
    wanted, offered, about, prices = world
    choice = choose(wanted, offered, about, prices)
    arrived, missing = play(choice, offered, about)
    assert not missing
    assert wanted.keys() <= arrived.keys()
    assert choice.by.keys() == wanted.keys()
    assert set(choice.whole) == {s for s, way in choice.by.items() if way == "whole"}
    asked = [(step.file, index) for step in choice.ranges for index in step.parts]
    assert len(asked) == len(set(asked))
    for step in choice.ranges:
        assert step.end - step.start <= max(RANGE, 60_000)
        yields = {
            s
            for offer in offered
            if offer.file == step.file
            for part in step.parts
            for s in offer.parts[part].yields
        }
        assert yields & (wanted.keys() | choice.passing)


@given(worlds)
@settings(max_examples=200, deadline=None)
def test_it_never_costs_more_than_everything_whole(world: World) -> None:
    wanted, offered, about, prices = world

    def price(choice: Choice) -> float:
        total = 0.0
        for step in choice.ranges:
            total += prices.request + (step.end - step.start)
        for sha256 in choice.whole:
            packed = int(wanted[sha256] * prices.whole) + 16
            total += prices.request + packed
        return total

    assert price(choose(wanted, offered, about, prices)) <= price(choose(wanted, [], about, prices))
    assert choose(wanted, offered, about, prices) == choose(wanted, offered, about, prices)


@given(worlds, st.data())
@settings(max_examples=200, deadline=None)
def test_refusing_what_failed_ends_with_everything_whole(world: World, data: st.DataObject) -> None:
    wanted, offered, about, prices = world
    refused: set[str] = set()
    for _ in range(len(offered) + 1):
        choice = choose(wanted, offered, replace(about, refused=frozenset(refused)), prices)
        used = {step.file for step in choice.ranges}
        assert not used & refused
        if not used:
            break
        refused.add(data.draw(st.sampled_from(sorted(used))))
    assert not choice.ranges
    assert set(choice.whole) == set(wanted)


def test_the_random_worlds_reach_every_way() -> None:
    """The sibling of the properties above: they are not true because nothing happens."""
    seen: Counter[str] = Counter()
    for seed in range(1500):
        wanted, offered, about, prices = world_of(seed)
        choice = choose(wanted, offered, about, prices)
        seen.update(set(choice.by.values()))
        seen["passing"] += bool(choice.passing)
        seen["joined"] += any(len(step.parts) > 1 for step in choice.ranges)
        seen["first"] += any(step.first for step in choice.ranges)
        seen["through"] += any(
            step.end - step.start > sum(offer.parts[p].length for p in step.parts)
            for step in choice.ranges
            for offer in offered
            if offer.file == step.file
        )
    for case in ("delta", "chain", "pack", "whole", "passing", "joined", "first", "through"):
        assert seen[case] > 3, (case, seen)


def part(start: int, length: int, yields: str, needs: str = "") -> OfferedPart:
    return OfferedPart(start, length, tuple(yields), tuple(needs))


def test_parts_side_by_side_are_one_request() -> None:
    offer = Offer("d", "t", (part(100, 50, "a", "x"), part(150, 50, "b", "x"), part(200, 9, "c")))
    wanted = dict.fromkeys("abc", 10_000)
    choice = choose(wanted, [offer], Situation("x".__contains__), BOLD)
    (only,) = choice.ranges
    assert (only.start, only.end, only.parts, only.way) == (100, 209, (0, 1, 2), "delta")
    assert choice.requests == 1
    assert choice.fields() == {"requests": 1, "delta_objects": 3, "delta_bytes": 109}


def test_of_a_pack_only_the_parts_come_that_are_lacking() -> None:
    far = part(900_000, 80_000, "c")
    offer = Offer("p", "", (part(100, 400_000, "a"), part(400_100, 499_900, "b"), far))
    choice = choose({"c": 300_000}, [offer], Situation("ab".__contains__), BOLD)
    assert [(r.start, r.end) for r in choice.ranges] == [(900_000, 980_000)]


def test_a_node_that_lost_a_base_uses_the_other_parts() -> None:
    offer = Offer("d", "t", (part(100, 500, "a", "x"), part(600, 500, "b", "y")))
    choice = choose(dict.fromkeys("ab", 90_000), [offer], Situation("x".__contains__), BOLD)
    assert choice.by == {"a": "delta", "b": "whole"}


def test_a_large_object_needs_all_of_its_parts_or_comes_whole() -> None:
    parts = tuple(part(100 + 500 * n, 500, "a", "x" if n < 3 else "y") for n in range(4))
    offer = Offer("d", "t", parts)
    both = choose({"a": 9_000_000}, [offer], Situation("xy".__contains__), BOLD)
    assert both.ranges[0].parts == (0, 1, 2, 3)
    one = choose({"a": 9_000_000}, [offer], Situation("x".__contains__), BOLD)
    assert one.ranges == ()
    assert one.whole == ("a",)


def test_two_deltas_lead_over_a_version_that_the_node_never_had() -> None:
    first = Offer("d1", "t0", (part(100, 500, "m", "x"), part(600, 500, "n", "x")))
    second = Offer("d2", "t1", (part(100, 700, "a", "m"),))
    choice = choose({"a": 5_000_000}, [second, first], Situation("x".__contains__), BOLD)
    assert [(r.file, r.parts, r.first) for r in choice.ranges] == [
        ("d1", (0,), True),
        ("d2", (0,), False),
    ]
    assert choice.by == {"a": "chain"}
    assert choice.passing == {"m"}


def test_a_small_file_is_not_worth_a_large_part() -> None:
    offer = Offer("p", "", (part(100, 2_000_000, "ab"),))
    choice = choose({"a": 3000}, [offer], Situation("b".__contains__), BOLD)
    assert choice.whole == ("a",)


def test_the_nearest_way_is_opened_first() -> None:
    refs = [("p", "", "new"), ("c2", "mid", "new"), ("c1", "old", "mid"), ("d", "old", "new")]
    assert candidates("new", ["old"], refs) == [("d",), ("c1", "c2"), ("p",)]
    assert candidates("new", ["mid", "old"], refs) == [("c2",), ("d",), ("p",)]
    assert candidates("new", [], refs) == [("p",)]
    assert candidates("other", ["old"], refs) == []
