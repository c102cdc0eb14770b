"""What happens to a region when hub, relay or disk fail. Time is virtual."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

import msgspec
import pytest

from edgewise.model.errors import Forbidden, NeedsPerson, Untrusted
from edgewise.protocol.channel import Signed
from edgewise.protocol.report import Observation
from edgewise.protocol.sync import (
    NodeReport,
    RelayAcknowledged,
    RelayNews,
    RelayReport,
    SyncReply,
    SyncRequest,
)
from edgewise.rollout.fanin import KeptReceipt
from edgewise.rollout.on_relay import Relaying
from edgewise.rollout.relay_ports import RelayMemory
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.relay import (
    MemoryOfRelay,
    PublishedFiles,
    ScriptedHub,
    WokenNodes,
    receipt_sequence,
)
from edgewise.testing.relay_words import A, B, channel, news, receipt, record, runs

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)


class Region:
    """A relay that can be killed and started again on the same disk."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.hub = ScriptedHub()
        self.memory = MemoryOfRelay()
        self.published = PublishedFiles()
        self.woken = WokenNodes()
        self.log = ListLog()

    @asynccontextmanager
    async def relay(self, memory: RelayMemory | None = None) -> AsyncIterator[Relaying]:
        relay = Relaying(
            memory or self.memory,
            self.hub,
            self.published,
            self.woken,
            self.clock,
            SeededChance(),
            self.log,
        )
        await relay.open()
        tasks = [asyncio.create_task(relay.follow()), asyncio.create_task(relay.report())]
        try:
            yield relay
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends), ends

    def receipts_at_hub(self, node: str) -> list[int]:
        return [
            receipt_sequence(signed)
            for report in self.hub.reports
            if report.node == node
            for signed in report.receipts
        ]


def says(
    observation: Observation | None = None, *receipts: Signed, channel: int = 0, record: int = 0
) -> SyncRequest:
    return SyncRequest(channel, "shops", record, observation, receipts)


def decoded(reply: bytes | None) -> SyncReply:
    assert reply is not None
    return msgspec.json.decode(reply, type=SyncReply)


FLEET = {"n1": record("n1", index=0), "n2": record("n2", index=1)}


async def test_hub_away_for_an_hour_nodes_keep_getting_what_the_relay_has() -> None:
    region = Region()
    async with region.relay() as relay:
        region.hub.news.put_nowait(news(channel(3, stable=A), records=FLEET, cursor=2))
        await region.clock.run_for(SECOND)
        region.hub.away = True
        region.hub.news.put_nowait(RelayNews())
        await region.clock.run_for(HOUR)
        assert not relay.contact.reachable
        assert "does not answer" in relay.contact.problem
        reply = decoded(await relay.reply("n1", says()))
        assert "channels/shops.json" in reply.metadata
        assert reply.record == FLEET["n1"]


async def test_hub_away_for_an_hour_reports_arrive_after() -> None:
    region = Region()
    region.hub.away = True
    async with region.relay() as relay:
        for minute in range(60):
            number = minute + 1
            assert await relay.hear("n1", says(runs(A), receipt("n1", number))) == number
            await region.clock.run_for(timedelta(minutes=1))
        assert region.hub.reports == []
        region.hub.away = False
        await region.clock.run_for(timedelta(minutes=1))
        assert region.receipts_at_hub("n1") == list(range(1, 61))
        assert relay.receipts_waiting == 0
        assert relay.contact.reachable


async def test_a_hub_that_is_away_is_not_asked_more_than_it_must_be() -> None:
    region = Region()
    region.hub.away = True
    async with region.relay() as relay:
        await relay.hear("n1", says(runs(A)))
        await region.clock.run_for(HOUR)
    # Two loops, each at most every 10 s, with full jitter from a tenth of that on.
    assert 360 < region.hub.tries < 2_000


async def test_a_relay_that_restarts_while_the_hub_is_away_serves_and_forgets_nothing() -> None:
    region = Region()
    async with region.relay() as relay:
        region.hub.news.put_nowait(news(channel(3, stable=A), records=FLEET, cursor=2))
        await region.clock.run_for(SECOND)
        region.hub.away = True
        await relay.hear("n1", says(runs(A), receipt("n1", 1)))
    async with region.relay() as relay:
        assert decoded(await relay.reply("n2", says())).record == FLEET["n2"]
        await relay.hear("n1", says(None, receipt("n1", 2)))
        region.hub.away = False
        await region.clock.run_for(timedelta(minutes=1))
    assert region.receipts_at_hub("n1") == [1, 2]
    assert [r.observation for r in region.hub.reports if r.observation] == [runs(A)]
    assert region.memory.receipts == {}
    assert region.memory.observed == {}


class DiesAfterWriting(MemoryOfRelay):
    """Writes, and is killed before anybody hears of it."""

    async def keep(self, heard: Sequence[NodeReport], receipts: Sequence[KeptReceipt]) -> None:
        await super().keep(heard, receipts)
        await asyncio.Event().wait()


async def test_killed_between_disk_and_acknowledgement_a_receipt_still_arrives() -> None:
    region = Region()
    region.memory = disk = DiesAfterWriting()
    async with region.relay() as relay:
        poll = asyncio.create_task(relay.hear("n1", says(runs(A), receipt("n1", 1))))
        await region.clock.run_for(SECOND)
        assert not poll.done()
        poll.cancel()
    survivor = MemoryOfRelay()
    survivor.__dict__.update(disk.__dict__)
    region.memory = survivor
    async with region.relay() as relay:
        # The node never saw an acknowledgement, so it hands the receipt in again.
        assert await relay.hear("n1", says(None, receipt("n1", 1))) == 1
        await region.clock.run_for(timedelta(seconds=5))
    assert 1 <= len(region.receipts_at_hub("n1")) <= 2
    assert survivor.receipts == {}


class LosesTheAnswer(ScriptedHub):
    """The first batch arrives, its answer does not."""

    async def report(self, report: RelayReport) -> RelayAcknowledged:
        answer = await super().report(report)
        if len(self.batches) == 1:
            self.away = True
            self._reach()
        return answer


async def test_an_answer_lost_on_the_way_back_costs_a_repeat_and_nothing_else() -> None:
    region = Region()
    region.hub = LosesTheAnswer()
    async with region.relay() as relay:
        await relay.hear("n1", says(runs(A), receipt("n1", 1)))
        await region.clock.run_for(SECOND)
        assert relay.receipts_waiting == 1
        region.hub.away = False
        await region.clock.run_for(timedelta(minutes=1))
    assert region.receipts_at_hub("n1") == [1, 1]
    assert region.memory.receipts == {}


async def test_a_receipt_that_the_hub_refuses_is_not_sent_for_ever() -> None:
    region = Region()
    region.hub.refuses = {"n1": (1,)}
    async with region.relay() as relay:
        await relay.hear("n1", says(runs(A), receipt("n1", 1)))
        await region.clock.run_for(HOUR)
        assert relay.receipts_waiting == 0
    assert region.receipts_at_hub("n1") == [1]
    assert any(what == "the hub refused a receipt" for what, _ in region.log.lines)


class FullDisk(MemoryOfRelay):
    async def keep(self, heard: Sequence[NodeReport], receipts: Sequence[KeptReceipt]) -> None:
        raise NeedsPerson("the relay's disk is full")


async def test_on_a_full_disk_nothing_is_acknowledged() -> None:
    region = Region()
    async with region.relay(FullDisk()) as relay:
        with pytest.raises(NeedsPerson, match="disk is full"):
            await relay.hear("n1", says(runs(A), receipt("n1", 1)))
        assert relay.receipts_waiting == 0


async def test_news_that_cannot_be_read_leave_the_region_as_it_was() -> None:
    region = Region()
    async with region.relay() as relay:
        region.hub.news.put_nowait(news(channel(3, stable=A), records=FLEET, cursor=2))
        await region.clock.run_for(SECOND)
        with pytest.raises(Untrusted):
            await relay.learn(RelayNews({"channels/shops.json": b"{"}))
        assert relay.known.channels["shops"].sequence == 3


async def test_a_quarantined_node_is_refused_at_once() -> None:
    region = Region()
    async with region.relay() as relay:
        region.hub.news.put_nowait(RelayNews(records=FLEET, gone=("n2",), cursor=2))
        await region.clock.run_for(SECOND)
        relay.admit("n1")
        with pytest.raises(Forbidden, match="n2 was forgotten or quarantined"):
            relay.admit("n2")
    assert any("n2" in names for names in region.woken.woken)


async def test_many_nodes_share_few_transactions_and_few_batches() -> None:
    region = Region()
    writes = 0

    class Counting(MemoryOfRelay):
        async def keep(self, heard: Sequence[NodeReport], receipts: Sequence[KeptReceipt]) -> None:
            nonlocal writes
            writes += 1
            await asyncio.sleep(0)
            await super().keep(heard, receipts)

    async with region.relay(Counting()) as relay:
        await asyncio.gather(
            *(relay.hear(f"n{i}", says(runs(A), receipt(f"n{i}", 1))) for i in range(2_000))
        )
        await region.clock.run_for(timedelta(seconds=10))
    assert writes <= 3
    assert sum(len(r.receipts) for r in region.hub.reports) == 2_000
    assert len(region.hub.batches) <= 6
    assert max(region.hub.batches) == 500


async def test_a_wave_wakes_only_the_nodes_that_move() -> None:
    region = Region()
    async with region.relay() as relay:
        region.hub.news.put_nowait(news(channel(1, stable=A), records=FLEET, cursor=2))
        for node in FLEET:
            await relay.hear(node, says(runs(A)))
        await region.clock.run_for(SECOND)
        region.hub.news.put_nowait(news(channel(2, stable=A, candidate=B, wave=(1,)), cursor=2))
        await region.clock.run_for(SECOND)
    assert region.woken.woken[-1] == {"n2"}


async def test_a_hub_that_answers_at_once_with_nothing_new_is_not_asked_without_rest() -> None:
    region = Region()
    region.hub.news.put_nowait(RelayNews())
    for _ in range(50):
        region.hub.news.put_nowait(RelayNews())
    async with region.relay():
        await region.clock.run_for(timedelta(seconds=10))
    assert len(region.hub.polls) <= 12


async def test_news_with_a_forged_file_are_not_passed_on_to_anybody() -> None:
    region = Region()
    region.published.forged = "2.channels.json"
    async with region.relay() as relay:
        region.hub.news.put_nowait(news(channel(1, stable=A), records=FLEET, cursor=2))
        await region.clock.run_for(SECOND)
        woken = len(region.woken.woken)
        region.hub.news.put_nowait(news(channel(2, stable=B), cursor=3))
        await region.clock.run_for(timedelta(minutes=1))
        assert relay.known.channels["shops"].sequence == 1
        assert len(region.woken.woken) == woken
    assert any("not signed" in str(fields.get("because")) for _, fields in region.log.lines)


async def test_nodes_that_a_wave_wakes_together_share_one_encoded_answer() -> None:
    region = Region()
    async with region.relay() as relay:
        region.hub.news.put_nowait(news(channel(1, stable=A), records=FLEET, cursor=2))
        await region.clock.run_for(SECOND)
        first = await relay.reply("n1", says(record=1))
        assert first is await relay.reply("n2", says(record=1))
        assert decoded(first).metadata["channels/shops.json"]


async def test_a_node_without_a_record_yet_gets_its_receipts_acknowledged() -> None:
    region = Region()
    async with region.relay() as relay:
        request = says(None, receipt("new", 4))
        taken = await relay.hear("new", request)
        assert decoded(await relay.reply("new", request, taken)).acknowledged == 4
        assert await relay.reply("new", says()) is None


async def test_what_every_node_may_ask_for_is_pinned_in_the_cache() -> None:
    region = Region()
    now = channel(1, stable=A, candidate=B)
    async with region.relay():
        region.hub.news.put_nowait(news(now, records=FLEET, cursor=2))
        await region.clock.run_for(SECOND)
    assert region.published.pinned == (now,)
