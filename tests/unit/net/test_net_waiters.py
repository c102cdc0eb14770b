"""Whom a change wakes, and when a hold ends; all on a manual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.net.waiters import SECOND_BEAT, VANGUARD, Standing, Targets, Waiters
from edgewise.protocol.channel import Bitmap, Channel
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock

HOLD = timedelta(seconds=60)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def waiters(clock: ManualClock) -> AsyncIterator[Waiters]:
    waiters = Waiters(clock, SeededChance(), HOLD)
    loop = asyncio.create_task(waiters.run())
    yield waiters
    loop.cancel()


def held(waiters: Waiters, count: int, running: str = "old") -> list[asyncio.Task[str]]:
    return [
        asyncio.create_task(waiters.hold(Standing(f"n{i}", "shops", i, running)))
        for i in range(count)
    ]


def wave(sequence: int, *indexes: int, **fields: object) -> Channel:
    return Channel("shops", sequence, "old", "new", Bitmap.of(indexes).data, **fields)  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_rollout_step_wakes_only_the_nodes_of_the_step(waiters: Waiters) -> None:
    tasks = held(waiters, 5)
    await settle()
    assert waiters.moved(wave(1, 0), wave(2, 0, 3, 4)) == 2
    await settle()
    assert [t.done() for t in tasks] == [False, False, False, True, True]
    assert len(waiters) == 3


async def test_quarantine_wakes_those_that_must_leave_the_candidate(waiters: Waiters) -> None:
    held(waiters, 4)
    await settle()
    assert waiters.moved(wave(1, 0, 1), wave(2, 0, 1, quarantined=("new",))) == 2


async def test_a_change_of_another_fleet_wakes_nobody(waiters: Waiters) -> None:
    held(waiters, 3)
    await settle()
    assert waiters.moved(None, Channel("kiosks", 1, "x")) == 0


async def test_a_crowd_is_woken_in_two_beats_and_whole(
    waiters: Waiters, clock: ManualClock
) -> None:
    tasks = held(waiters, 500)
    await settle()
    assert waiters.moved(wave(1), wave(2, *range(500))) == 500
    await settle()
    assert sum(t.done() for t in tasks) == VANGUARD
    await clock.run_for(SECOND_BEAT)
    assert {t.result() for t in tasks} == {"woken"}
    assert len(waiters) == 0


async def test_the_vanguard_is_not_always_the_same(clock: ManualClock) -> None:
    seen = set()
    for seed in range(8):
        waiters = Waiters(clock, SeededChance(seed), HOLD)
        tasks = held(waiters, 100)
        await settle()
        waiters.moved(wave(1), wave(2, *range(100)))
        await settle()
        seen.add(frozenset(i for i, t in enumerate(tasks) if t.done()))
        waiters.wake_all()
    assert len(seen) > 4


async def test_a_node_of_the_crowd_that_came_back_meanwhile_is_not_answered_twice(
    waiters: Waiters, clock: ManualClock
) -> None:
    held(waiters, 100)
    await settle()
    waiters.moved(wave(1), wave(2, *range(100)))
    await settle()
    late = next(f"n{i}" for i in range(100) if waiters.wake(f"n{i}"))
    again = asyncio.create_task(waiters.hold(Standing(late, "shops", int(late[1:]), "new")))
    await settle()
    await clock.run_for(SECOND_BEAT)
    assert not again.done()
    assert len(waiters) == 1


async def test_a_hub_that_stops_answers_those_who_wait_for_the_second_beat(
    waiters: Waiters,
) -> None:
    tasks = held(waiters, 100)
    await settle()
    waiters.moved(wave(1), wave(2, *range(100)))
    waiters.wake_all()
    await settle()
    assert {t.result() for t in tasks} == {"woken"}


async def test_holds_end_spread_over_the_last_fifth(waiters: Waiters, clock: ManualClock) -> None:
    tasks = held(waiters, 200)
    await settle()
    await clock.run_for(timedelta(seconds=47))
    assert not any(t.done() for t in tasks)
    await clock.run_for(timedelta(seconds=7))
    assert 60 < sum(t.done() for t in tasks) < 140
    await clock.run_for(timedelta(seconds=7))
    assert {t.result() for t in tasks} == {"ended"}
    assert len(waiters) == 0


async def test_a_second_poll_of_a_node_ends_the_first(waiters: Waiters) -> None:
    [first] = held(waiters, 1)
    await settle()
    [second] = held(waiters, 1)
    await settle()
    assert first.result() == "ended"
    assert waiters.wake("n0")
    await settle()
    assert second.result() == "woken"
    assert not waiters.wake("n0")


async def test_a_node_that_hangs_up_leaves_nothing_behind(waiters: Waiters) -> None:
    tasks = held(waiters, 3)
    await settle()
    tasks[1].cancel()
    await settle()
    assert len(waiters) == 2
    assert waiters.wake_all() == 2


RELEASES = st.sampled_from(["", "a", "b", "c"])
CHANNELS = st.builds(
    Channel,
    st.just("shops"),
    st.just(1),
    RELEASES,
    RELEASES,
    st.binary(max_size=2),
    st.binary(max_size=2),
    st.lists(RELEASES, max_size=2).map(tuple),
)


@given(CHANNELS, st.integers(0, 20), RELEASES)
def test_targets_agree_with_the_channel_for_every_node(
    channel: Channel, index: int, running: str
) -> None:
    assert Targets(channel).of(index, running) == channel.target(index, running)


def test_the_interesting_targets_are_all_reached() -> None:
    channel = Channel("shops", 1, "a", "b", b"\x01", b"\x02", ("c",))
    reached = [Targets(channel).of(i, r) for i, r in ((0, "a"), (1, "x"), (1, "c"), (2, "x"))]
    assert reached == ["b", "x", "a", "a"]
