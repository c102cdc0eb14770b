"""The hub makes deltas beside everything else, and goes on where it was cut off."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from random import Random

import pytest

from edgewise.delivery import deltas
from edgewise.delivery.deltas import DeltaJob, DeltaSettings
from edgewise.model.errors import NeedsPerson
from edgewise.model.names import Digest
from edgewise.protocol import limits
from edgewise.protocol.api import BuildsUpload
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import Artifact, TreeRef
from edgewise.protocol.delta import DeltaList
from edgewise.protocol.travel import TreeChange
from edgewise.roles import hub_deltas
from edgewise.roles.hub_deltas import DeltaPlaces, HubDeltas
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM, Content
from edgewise.testing.deltas import MemoryDeltaMaker, MemoryDeltas
from edgewise.testing.log import ListLog


def program(version: int) -> dict[str, bytes]:
    """A large file that differs from version to version, and one that does not."""
    return {"bin/run": Random(version).randbytes(40_000), "share/same": Random(0).randbytes(30_000)}


class Hub:
    """What the deltas of a hub work with, all of it in memory."""

    def __init__(self, content: Content, clock: ManualClock) -> None:
        self.content, self.clock = content, clock
        self.maker, self.store, self.log = MemoryDeltaMaker([]), MemoryDeltas(), ListLog()
        self.trees: dict[int, TreeRef] = {}
        self.releases: dict[int, str] = {}
        self.start()

    def start(self) -> None:
        """A hub process on what is kept."""
        places = DeltaPlaces(self.content.publisher, self.content.objects, self.store, self.maker)
        self.deltas = HubDeltas(places, DeltaSettings(), self.clock, self.log)
        self.content.publisher.listing = self.deltas.listing

    async def publish(self, version: int) -> TreeRef:
        """`edgewise artifact publish hello 1.VERSION`, and the release that runs it."""
        tree = self.trees[version] = await self.content.tree(program(version))
        document = encode(Artifact("hello", f"1.{version}", {PLATFORM: tree}))
        await self.content.publisher.accept_builds(BuildsUpload(b"", (document,)))
        self.releases[version] = await self.content.release({"hello": program(version)})
        self.maker.trees.add(tree.sha256)
        self.deltas.nudge()
        return tree

    async def settled(self) -> None:
        """Run until nothing is left to do."""
        running = asyncio.create_task(self.deltas.run())
        await self.deltas.idle.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def announce(self, sequence: int, stable: int, candidate: int | None = None) -> Channel:
        """The fleet's channel as it is published."""
        coming = self.releases[candidate] if candidate is not None else ""
        channel = Channel("lab", sequence, self.releases[stable], coming)
        await self.content.publisher.publish_channels([channel])
        published = self.content.publisher.channel("lab")
        assert published is not None
        return published

    async def listed(self, channel: Channel) -> set[tuple[str, str]]:
        """(tree, base) of the deltas that a channel names."""
        if not channel.deltas:
            return set()
        data = await self.content.publisher.document(channel.deltas, at_most=limits.DELTA_LIST)
        return {(one.tree, one.base) for one in decode(data, DeltaList, what="list").deltas}

    def tree(self, version: int) -> str:
        return self.trees[version].sha256


@pytest.fixture
async def hub() -> Hub:
    clock = ManualClock()
    return Hub(await Content.open(clock), clock)


async def test_deltas_of_a_published_version_are_made_and_named_by_the_channel(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.settled()
    assert set(hub.maker.made) == {("", hub.tree(2)), (hub.tree(1), hub.tree(2))}
    channel = await hub.announce(1, 2)
    assert await hub.listed(channel) == {(hub.tree(2), ""), (hub.tree(2), hub.tree(1))}
    assert channel.deltas in await hub.content.publisher.reachable()


async def test_a_channel_without_deltas_names_no_list(hub: Hub) -> None:
    await hub.publish(1)
    channel = await hub.announce(1, 1)
    assert channel.deltas == ""


async def test_the_release_and_its_parts_travel_with_the_list(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.settled()
    channel = await hub.announce(1, 1, 2)
    data = await hub.content.publisher.document(channel.deltas, at_most=limits.DELTA_LIST)
    texts = decode(data, DeltaList, what="list").documents
    digests = {Digest.of(text.encode()).sha256 for text in texts}
    assert {hub.releases[1], hub.releases[2]} <= digests
    assert len(texts) == 4


async def test_a_channel_that_is_published_again_after_a_crash_is_no_conflict(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    first = await hub.announce(1, 1, 2)
    await hub.settled()
    assert await hub.announce(1, 1, 2) == first, "the same sequence has the same bytes"
    second = await hub.announce(2, 1, 2)
    assert (hub.tree(2), hub.tree(1)) in await hub.listed(second)


async def test_deltas_that_are_ready_late_are_told_once_with_the_next_sequence(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.announce(1, 1, 2)
    told: list[str] = []

    async def say_again(fleet: str) -> None:
        told.append(fleet)
        await hub.announce(1 + len(told), 1, 2)

    hub.deltas.say_again = say_again
    await hub.settled()
    running = asyncio.create_task(hub.deltas.run())
    await hub.clock.run_for(timedelta(hours=1))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert told == ["lab"]


async def test_a_hub_that_dies_over_a_delta_makes_it_after_its_return(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    hub.maker.gate = asyncio.Event()
    running = asyncio.create_task(hub.deltas.run())
    await hub.maker.started.wait()
    assert "Making" in {one.state for one in (await hub.deltas.status()).deltas}
    assert {kept.state for kept in await hub.store.all()} == {"Trying"}
    killed = hub.deltas
    hub.start()  # the other process is gone; its task is left as it is
    await hub.deltas.load()
    hub.maker.gate = None
    await hub.settled()
    assert {kept.state for kept in await hub.store.all()} == {"Made"}
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert killed is not hub.deltas


async def test_a_hub_that_stops_over_a_delta_counts_no_failure_and_leaves_nothing(
    hub: Hub,
) -> None:
    await hub.publish(1)
    await hub.publish(2)
    hub.maker.gate = asyncio.Event()
    running = asyncio.create_task(hub.deltas.run())
    await hub.maker.started.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [(kept.state, kept.tries) for kept in await hub.store.all()] == [("Trying", 0)]
    assert (hub.maker.running, hub.maker.files) == (0, {})


async def test_a_job_that_fails_is_said_once_and_not_tried_for_ever(hub: Hub) -> None:
    await hub.publish(1)
    await hub.publish(2)
    hub.maker.failing = NeedsPerson("the disk is full", hint="free space")
    running = asyncio.create_task(hub.deltas.run())
    for _ in range(300):
        await hub.clock.run_for(timedelta(minutes=10))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    said = [fields for what, fields in hub.log.lines if what == "delta failed"]
    assert len(said) == 1
    assert said[0]["hint"] == "free space"
    assert {(one.state, one.tries) for one in await hub.store.all()} == {("Failed", deltas.TRIES)}
    lines = (await hub.deltas.status()).deltas
    assert {(one.state, one.why) for one in lines} == {("Failed", "the disk is full")}


async def test_a_full_disk_that_is_emptied_gets_its_deltas_after_all(hub: Hub) -> None:
    await hub.publish(1)
    await hub.publish(2)
    hub.maker.failing = NeedsPerson("the disk is full")
    assert not await hub.deltas.make(DeltaJob(hub.tree(2), hub.tree(1)))
    hub.maker.failing = None
    await hub.clock.run_for(deltas.RETRY_AFTER)
    await hub.settled()
    assert {kept.state for kept in await hub.store.all()} == {"Made"}


async def test_a_delta_that_saves_too_little_is_not_kept_and_not_made_again(hub: Hub) -> None:
    hub.maker.size = 39_000
    await hub.publish(1)
    await hub.publish(2)
    await hub.settled()
    assert hub.maker.files.keys() == {ref.sha256 for ref in await refs(hub)}
    assert (hub.tree(2), hub.tree(1)) not in {(one.tree, one.base) for one in await refs(hub)}
    made = len(hub.maker.made)
    hub.start()
    await hub.deltas.load()
    await hub.settled()
    assert len(hub.maker.made) == made


async def refs(hub: Hub) -> list[deltas.DeltaRef]:
    return [kept.ref for kept in await hub.store.all() if kept.ref is not None]


async def test_a_file_that_is_lost_or_damaged_is_not_named_and_made_again(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.settled()
    gone, damaged = await refs(hub)
    hub.maker.remove(gone.sha256)
    hub.maker.files[damaged.sha256] = b"x" + hub.maker.files[damaged.sha256][1:]
    channel = await hub.announce(1, 2)
    assert channel.deltas == "", "noticed before it is named"
    await hub.settled()
    assert set(await refs(hub)) == {gone, damaged}
    assert len(await hub.listed(await hub.announce(2, 2))) == 2


async def test_damage_behind_the_head_is_found_when_the_hub_starts(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.settled()
    one, _ = await refs(hub)
    hub.maker.files[one.sha256] = hub.maker.files[one.sha256][:-1] + b"x"
    hub.start()
    await hub.deltas.load()
    made = len(hub.maker.made)
    await hub.deltas.check(whole=True)
    await hub.settled()
    assert len(hub.maker.made) == made + 1


async def test_an_operator_gets_no_delta_named_for_a_tree_that_no_builder_signed(
    hub: Hub,
) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.settled()
    stranger = await hub.content.tree(program(666))
    hub.maker.trees.add(stranger.sha256)
    loose = Artifact("hello", "6.6.6", {PLATFORM: stranger})
    await hub.content.objects.put(Digest.of(encode(loose)).sha256, encode(loose))
    hub.deltas.nudge()
    await hub.settled()
    assert not any(stranger.sha256 in pair for pair in hub.maker.made)
    ref = await hub.maker.make(
        hub.tree(1), stranger.sha256, at_most=9999, progress=lambda a, b: None
    )
    kept = (await hub.store.all())[0]
    await hub.store.save(deltas.KeptDelta(stranger.sha256, hub.tree(1), "Made", kept.at, ref=ref))
    hub.start()
    await hub.deltas.load()
    named = await hub.listed(await hub.announce(1, 2))
    assert {to for to, _ in named} == {hub.tree(2)}, "also when it is in the hub's own store"


async def test_what_nothing_wants_goes_after_a_week_and_never_what_a_list_names(hub: Hub) -> None:
    for version in (1, 2, 3):
        await hub.publish(version)
        await hub.settled()
    await hub.announce(1, 2)
    orphan = Digest.of(b"left by a crash").sha256
    hub.maker.files[orphan] = b"x"
    await hub.clock.run_for(deltas.KEPT_FOR)
    await hub.deltas.collect()
    left = {(kept.tree, kept.base) for kept in await hub.store.all()}
    assert (hub.tree(2), hub.tree(1)) in left, "it leads to what is stable"
    assert (hub.tree(1), "") not in left, "nothing goes to version 1 any more"
    assert hub.maker.files.keys() == {ref.sha256 for ref in await refs(hub)}


async def test_a_plan_is_weighed_with_packed_sizes_and_what_is_ready(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    change = TreeChange((hub.tree(1),), (hub.tree(2),))
    (before,) = await hub.deltas.weigh([change])
    assert before.assumed_whole
    assert before.travels == before.whole < before.full
    await hub.settled()
    (after,) = await hub.deltas.weigh([change])
    assert after.travels == hub.maker.size
    assert not after.assumed_whole


def test_a_channel_is_said_again_at_most_once_a_minute() -> None:
    assert timedelta(seconds=30) <= hub_deltas.TELL_AGAIN


async def test_trouble_with_deltas_stops_neither_the_hub_nor_a_rollout(hub: Hub) -> None:
    for version in (1, 2):
        await hub.publish(version)
    await hub.settled()
    first = await hub.announce(1, 2)
    hub.content.objects.packed.pop(first.deltas)
    hub.deltas.nudge()
    running = asyncio.create_task(hub.deltas.run())
    await hub.log.said("deltas wait")
    assert not running.done()
    hub.maker.failing = NeedsPerson("the disk is gone")

    def broken(sha256: str) -> None:
        raise NeedsPerson("the disk cannot be written")

    hub.maker.remove = broken  # type: ignore[method-assign]
    hub.maker.files.clear()
    second = await hub.announce(2, 2)
    assert second.sequence == 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_another_limit_makes_the_hub_judge_anew(hub: Hub) -> None:
    hub.maker.size = 39_000
    await hub.publish(1)
    await hub.publish(2)
    await hub.settled()
    assert {kept.state for kept in await hub.store.all()} == {"NotWorth", "Made"}
    places = DeltaPlaces(hub.content.publisher, hub.content.objects, hub.store, hub.maker)
    hub.deltas = HubDeltas(places, DeltaSettings(percent=99), hub.clock, hub.log)
    await hub.deltas.load()
    await hub.settled()
    assert {kept.state for kept in await hub.store.all()} == {"Made"}
