from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from edgewise.identity.names import Organisation, Station
from edgewise.model.errors import Forbidden
from edgewise.model.names import SpiffeId
from edgewise.net.relaying import RelayRoutes, WaitingNodes
from edgewise.net.routes import Bytes, Call, NoQuery, Peer
from edgewise.net.waiters import SECOND_BEAT, Waiters
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.rollout.on_relay import Relaying
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.relay import MemoryOfRelay, PublishedFiles, ScriptedHub
from edgewise.testing.relay_words import A, B, channel, news, record, runs

FLEET = {f"n{i}": record(f"n{i}", index=i) for i in range(2_000)}


class Relay:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.waiters = Waiters(self.clock, SeededChance(), timedelta(seconds=60))
        self.relaying = Relaying(
            MemoryOfRelay(),
            ScriptedHub(),
            PublishedFiles(),
            WaitingNodes(self.waiters),
            self.clock,
            SeededChance(),
            ListLog(),
        )
        unused: Any = None
        self.routes = RelayRoutes(
            Station(Organisation("acme"), "eu"),
            self.relaying,
            self.waiters,
            unused,
            unused,
            lambda: None,
            unused,
            self.clock,
        )

    def poll(
        self, name: str, request: SyncRequest, domain: str = "eu.acme"
    ) -> asyncio.Task[Bytes | None]:
        peer = Peer(SpiffeId(domain, f"/node/{name}"))
        call = Call(peer, request, {}, NoQuery(), {}, _no_stream)
        return asyncio.create_task(self.routes.sync(call))


async def _no_stream() -> AsyncIterator[bytes]:
    for nothing in ():
        yield nothing


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


async def test_two_thousand_held_polls_are_answered_when_all_move() -> None:
    relay = Relay()
    loop = asyncio.create_task(relay.waiters.run())
    await relay.relaying.learn(news(channel(1, stable=A), records=FLEET, cursor=1))
    request = SyncRequest(1, "shops", 1, runs(A))
    polls = [relay.poll(name, request) for name in FLEET]
    await settle()
    assert len(relay.waiters) == 2_000
    wave = tuple(range(2_000))
    await relay.relaying.learn(news(channel(2, stable=A, candidate=B, wave=wave), cursor=1))
    await relay.clock.run_for(SECOND_BEAT)
    answers = await asyncio.gather(*polls)
    assert len(relay.waiters) == 0
    loop.cancel()
    bodies = {answer.data for answer in answers if answer is not None}
    assert len(bodies) == 1
    reply = msgspec.json.decode(bodies.pop(), type=SyncReply)
    assert b'"sequence":2' in reply.metadata["channels/shops.json"]


async def test_a_hold_that_ends_without_news_is_an_empty_answer() -> None:
    relay = Relay()
    loop = asyncio.create_task(relay.waiters.run())
    await relay.relaying.learn(news(channel(1, stable=A), records=FLEET, cursor=1))
    poll = relay.poll("n1", SyncRequest(1, "shops", 1))
    await settle()
    await relay.clock.run_for(timedelta(seconds=61))
    assert await poll is None
    loop.cancel()


async def test_a_report_is_answered_at_once_and_leaves_the_held_poll_alone() -> None:
    relay = Relay()
    await relay.relaying.learn(news(channel(1, stable=A), records=FLEET, cursor=1))
    poll = relay.poll("n1", SyncRequest(1, "shops", 1))
    await settle()
    report = relay.poll("n1", SyncRequest(1, "shops", 1, runs(A), hold_s=0.0))
    assert await report is None
    assert len(relay.waiters) == 1
    assert not poll.done()
    poll.cancel()


async def test_a_node_of_another_region_or_organisation_is_refused() -> None:
    relay = Relay()
    with pytest.raises(Forbidden, match="another region"):
        await relay.poll("n1", SyncRequest(), "us.acme")
    with pytest.raises(Forbidden, match="not an identity of organisation"):
        await relay.poll("n1", SyncRequest(), "eu.evil")
