"""What a node's poll is answered with, and whom the hub refuses to talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from edgewise.identity.ports import Enrolled
from edgewise.model.errors import Forbidden, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.api.records import Records, Wanted
from edgewise.net.api.relays import RelaySide
from edgewise.net.api.sync import Fleetside, NodeSync
from edgewise.net.routes import Call, NoQuery, Peer
from edgewise.net.waiters import Waiters
from edgewise.protocol.channel import Bitmap, Channel, NodeRecord, Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.report import Observation, Receipt
from edgewise.protocol.sync import NodeReport, RelayReport, RelaySync, SyncReply, SyncRequest
from edgewise.rollout.ports import NodeSeen
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.hub import MemoryHub

AT = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A hub's sync side with two regions, two nodes and one relay."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryHub()
        self.enrolled = {
            name: Enrolled(name, role, region, b"key of " + name.encode(), {}, AT)  # type: ignore[arg-type]
            for name, role, region in (
                ("kiosk", "node", "eu"),
                ("till", "node", "us"),
                ("frankfurt", "relay", "eu"),
            )
        }
        self.channel = Channel("shops", 1, "old")
        self.suspicions: list[str] = []
        self.bundles = 0
        self.seen: dict[str, NodeSeen] = {}
        self.saved: dict[str, NodeSeen] = {}
        self.receipts: list[Receipt] = []
        self.records = Records(self.store, self.sign)
        self.waiters = Waiters(self.clock, SeededChance(), timedelta(seconds=60))
        self.relay_waiters = Waiters(self.clock, SeededChance(), timedelta(seconds=60))
        side = Fleetside(
            "acme",
            self.enrolled,  # type: ignore[arg-type]
            self.records,
            self,
            self,
            lambda key, signed: signed.signature == key,
            lambda subject, what: self.suspicions.append(what),
        )
        self.nodes = NodeSync(side, self.waiters, self.clock)
        self.relays = RelaySide(side, self.relay_waiters, self.clock)

    async def sign(self, payload: bytes) -> Signed:
        return Signed("node-record/1", payload, "k", b"s")

    def current(self, fleet: str) -> Channel | None:
        return self.channel if fleet == "shops" else None

    def fleets(self) -> tuple[str, ...]:
        return ("shops",)

    def bundle(self, fleet: str) -> dict[str, bytes]:
        self.bundles += 1
        return {"timestamp.json": b"t%d" % self.channel.sequence}

    def observe(self, contacts: Any, *, via: str = "") -> None:
        for node, (heard, said) in contacts.items():
            old = self.seen.get(node)
            self.seen[node] = NodeSeen(node, heard, said or (old and old.observation), via)

    async def flush(self) -> None:
        self.saved = dict(self.seen)

    def last_seen(self, node: str) -> NodeSeen | None:
        return self.seen.get(node)

    async def receive(self, receipts: Sequence[Receipt]) -> None:
        self.receipts += receipts

    def move(self, channel: Channel) -> int:
        before, self.channel = self.channel, channel
        return self.nodes.moved(before, channel)

    async def sync(self, name: str, request: SyncRequest, region: str = "eu") -> SyncReply | None:
        peer = Peer(SpiffeId(f"{region}.acme", f"/node/{name}"))
        answer = await self.nodes.sync(Call(peer, request, {}, NoQuery(), {}, _no_stream))
        return None if answer is None else msgspec.json.decode(answer.data, type=SyncReply)


async def _no_stream() -> AsyncIterator[bytes]:
    yield b""


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    loops = [asyncio.create_task(part) for part in (world.waiters.run(), world.relay_waiters.run())]
    await world.records.put({"kiosk": Wanted("eu", "shops", 0), "till": Wanted("us", "shops", 1)})
    yield world
    for loop in loops:
        loop.cancel()


def receipt(node: str, sequence: int, key_of: str = "") -> Signed:
    payload = encode(Receipt(node, sequence, "Succeeded", "new", "new", "r1", AT))
    return Signed("receipt/1", payload, "k", b"key of " + (key_of or node).encode())


UP_TO_DATE = SyncRequest(channel=1, fleet="shops", record=1)


async def test_a_new_node_gets_its_record_and_channel_at_once(world: World) -> None:
    reply = await world.sync("kiosk", SyncRequest())
    assert reply is not None
    assert reply.record is not None
    assert msgspec.json.decode(reply.record.payload, type=NodeRecord).fleet == "shops"
    assert reply.metadata == {"timestamp.json": b"t1"}


async def test_a_node_that_knows_everything_waits_and_gets_204(world: World) -> None:
    poll = asyncio.create_task(world.sync("kiosk", UP_TO_DATE))
    await world.clock.run_for(timedelta(seconds=45))
    assert not poll.done()
    await world.clock.run_for(timedelta(seconds=16))
    assert poll.result() is None


async def test_a_step_that_concerns_a_node_answers_its_poll(world: World) -> None:
    poll = asyncio.create_task(world.sync("kiosk", UP_TO_DATE))
    await asyncio.sleep(0)
    assert world.move(Channel("shops", 2, "old", "new", Bitmap.of([0]).data)) == 1
    reply = await poll
    assert reply is not None
    assert reply.metadata == {"timestamp.json": b"t2"}


async def test_a_step_for_others_is_learnt_at_the_end_of_the_hold(world: World) -> None:
    world.move(Channel("shops", 2, "old", "new", Bitmap.of([1]).data))
    poll = asyncio.create_task(world.sync("kiosk", UP_TO_DATE))
    await world.clock.run_for(timedelta(seconds=40))
    assert not poll.done()
    await world.clock.run_for(timedelta(seconds=21))
    reply = poll.result()
    assert reply is not None
    assert reply.metadata == {"timestamp.json": b"t2"}


async def test_the_bytes_of_a_wake_up_are_made_once_for_the_fleet(world: World) -> None:
    await world.records.put({f"n{i}": Wanted("eu", "shops", i + 2) for i in range(20)})
    for i in range(20):
        world.enrolled[f"n{i}"] = Enrolled(f"n{i}", "node", "eu", b"k", {}, AT)
    polls = [asyncio.create_task(world.sync(f"n{i}", UP_TO_DATE)) for i in range(20)]
    await asyncio.sleep(0)
    assert world.move(Channel("shops", 2, "new")) == 20
    await asyncio.gather(*polls)
    assert world.bundles == 1


async def test_a_new_record_wakes_its_node(world: World) -> None:
    poll = asyncio.create_task(world.sync("kiosk", UP_TO_DATE))
    await asyncio.sleep(0)
    for name in await world.records.put({"kiosk": Wanted("eu", "", 0, {"held": "yes"})}):
        world.waiters.wake(name)
    reply = await poll
    assert reply is not None
    assert reply.record is not None


async def test_receipts_are_stored_before_they_are_acknowledged(world: World) -> None:
    request = SyncRequest(1, "shops", 1, None, (receipt("kiosk", 4), receipt("kiosk", 5)))
    reply = await world.sync("kiosk", request)
    assert reply is not None
    assert reply.acknowledged == 5
    assert [r.sequence for r in world.receipts] == [4, 5]


@pytest.mark.parametrize(
    "forged", [receipt("kiosk", 4, key_of="till"), receipt("till", 4, key_of="kiosk")]
)
async def test_a_forged_receipt_is_refused_and_audited(world: World, forged: Signed) -> None:
    with pytest.raises(Untrusted):
        await world.sync("kiosk", SyncRequest(receipts=(forged,)))
    assert world.suspicions
    assert world.receipts == []


async def test_a_stranger_a_quarantined_node_and_a_wrong_region_are_refused(world: World) -> None:
    with pytest.raises(Forbidden, match="not enrolled"):
        await world.sync("ghost", SyncRequest())
    with pytest.raises(Forbidden, match="not of region us"):
        await world.sync("till", SyncRequest(), region="eu")
    world.enrolled["kiosk"] = Enrolled(
        "kiosk", "node", "eu", b"", {}, AT, quarantined="two users of one key"
    )
    with pytest.raises(Forbidden, match="two users"):
        await world.sync("kiosk", SyncRequest())


async def test_a_node_that_is_forgotten_while_it_waits_is_told(world: World) -> None:
    poll = asyncio.create_task(world.sync("kiosk", UP_TO_DATE))
    await asyncio.sleep(0)
    del world.enrolled["kiosk"]
    world.waiters.wake("kiosk")
    with pytest.raises(Forbidden, match="not enrolled"):
        await poll


async def test_a_heartbeat_without_a_change_keeps_what_the_node_said_last(world: World) -> None:
    poll = asyncio.create_task(
        world.sync("kiosk", SyncRequest(1, "shops", 1, Observation(running="old")))
    )
    await world.clock.run_for(timedelta(seconds=61))
    assert poll.result() is None
    again = asyncio.create_task(world.sync("kiosk", UP_TO_DATE))
    await asyncio.sleep(0)
    seen = world.seen["kiosk"]
    assert seen.observation == Observation(running="old")
    assert seen.heard > AT + timedelta(seconds=45)
    again.cancel()


async def test_what_a_node_says_is_saved_before_its_poll_is_held(world: World) -> None:
    said = Observation(running="old", target="new", phase="Ready", window="apply")
    poll = asyncio.create_task(world.sync("kiosk", SyncRequest(1, "shops", 1, said)))
    await asyncio.sleep(0)
    assert world.saved["kiosk"].observation == said
    assert not poll.done()
    poll.cancel()


async def test_what_a_relay_brings_is_saved_before_it_is_answered(world: World) -> None:
    said = Observation(running="old", target="new", phase="Ready", window="apply")
    await world.relays.report(relay_call(RelayReport((NodeReport("kiosk", AT, said),))))
    assert world.saved["kiosk"].observation == said


def relay_call(body: Any) -> Call[Any]:
    peer = Peer(SpiffeId("eu.acme", "/relay/frankfurt"))
    return Call(peer, body, {}, NoQuery(), {}, _no_stream)


async def test_a_relay_gets_the_records_of_its_own_region_only(world: World) -> None:
    news = await world.relays.sync(relay_call(RelaySync()))
    assert news is not None
    assert set(news.records) == {"kiosk"}
    assert news.channels == {"shops": 1}
    again = asyncio.create_task(
        world.relays.sync(relay_call(RelaySync(news.channels, news.cursor)))
    )
    await asyncio.sleep(0)
    assert not again.done()
    await world.records.forget("kiosk")
    world.relays.wake()
    gone = await again
    assert gone is not None
    assert gone.gone == ("kiosk",)


async def test_a_relay_cannot_forge_a_success_nor_speak_for_another_region(world: World) -> None:
    reports = (
        NodeReport("kiosk", AT, Observation(running="new"), (receipt("kiosk", 1, "frankfurt"),)),
        NodeReport("till", AT, Observation(running="new"), (receipt("till", 1),)),
    )
    answer = await world.relays.report(relay_call(RelayReport(reports)))
    assert answer.receipts == {}
    assert answer.refused == {"kiosk": (1,), "till": (1,)}
    assert "till" not in world.seen
    assert world.suspicions
    assert world.receipts == []


async def test_a_receipt_that_the_node_signed_passes_through_a_relay(world: World) -> None:
    report = NodeReport("kiosk", AT, None, (receipt("kiosk", 3),))
    answer = await world.relays.report(relay_call(RelayReport((report,))))
    assert answer.receipts == {"kiosk": 3}
    assert world.seen["kiosk"].via == "frankfurt"
