"""POST /v1/sync: heartbeat, report and wake-up of a node in one.

An answer without a record and without receipts is the same for a whole fleet, so its bytes
are made once a second at most and shared by everybody who is woken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import msgspec

from edgewise.identity.ports import Enrolled
from edgewise.model.errors import Forbidden, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.api.bundles import Bundles
from edgewise.net.api.ports import Channels, Evidence, Roster, Verify
from edgewise.net.api.records import Records
from edgewise.net.routes import Bytes, Call, Peer, Route
from edgewise.net.waiters import Standing, Targets, Waiters
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.report import Observation, Receipt
from edgewise.protocol.sync import (
    SyncReply,
    SyncRequest,
)
from edgewise.runtime.clock import Clock

_encode = msgspec.json.Encoder().encode

CHANNELS_REMEMBERED = 32
"""Earlier channels of a fleet that are compared with, instead of answering at once."""

SHARED = 1000
"""Answers kept for those who ask the same within a second."""

Suspicion = Callable[[str, str], Any]
"""(subject, what): a line for the audit log."""


@dataclass(frozen=True, slots=True)
class Fleetside:
    """What the sync calls stand on."""

    organisation: str
    roster: Roster
    records: Records
    channels: Channels
    evidence: Evidence
    verify: Verify
    suspect: Suspicion
    bundles: Bundles | None = None
    """None: this hub tells nobody whom to trust (tests of other things)."""

    def bundles_after(self, sequence: int) -> Signed | None:
        """Trust bundles for somebody who has this one; None when there are no newer ones."""
        return self.bundles.newer_than(sequence) if self.bundles is not None else None


def admit(side: Fleetside, peer: SpiffeId, role: Literal["node", "relay"]) -> Enrolled:
    """The enrolment behind a certificate. Raises Forbidden with the reason."""
    enrolled = side.roster.get(peer.name)
    if enrolled is None or enrolled.role != role:
        raise Forbidden(
            f"{peer} is not enrolled here",
            hint="it was forgotten; join it again with a token (`edgewise node token`)",
        )
    if peer.trust_domain != f"{enrolled.region}.{side.organisation}":
        side.suspect(str(peer), f"certificate of another region than {enrolled.region}")
        raise Forbidden(f"{peer} is not of region {enrolled.region}", hint="join it again")
    if enrolled.quarantined:
        raise Forbidden(
            f"{enrolled.name} is quarantined: {enrolled.quarantined}",
            hint="lift it with `edgewise node release`, if that was a mistake",
        )
    return enrolled


def guard(side: Fleetside, peer: Peer) -> None:
    """Raise Forbidden for a node or relay that is forgotten or quarantined."""
    if peer.role == "node":
        admit(side, peer.required(), "node")
    elif peer.role == "relay":
        admit(side, peer.required(), "relay")


def read_receipt(enrolled: Enrolled, signed: Signed, verify: Verify) -> Receipt:
    """The receipt in ``signed``. Raises Untrusted unless this node's own key signed it."""
    if signed.purpose != "receipt/1":
        raise Untrusted(f"{enrolled.name} sent a {signed.purpose} where receipts belong")
    if not verify(enrolled.key, signed):
        raise Untrusted(f"a receipt of {enrolled.name} is not signed by its enrolment key")
    receipt = decode(signed.payload, Receipt, what="receipt", at_most=limits.RECORD)
    if receipt.node != enrolled.name:
        raise Untrusted(f"{enrolled.name} sent a receipt of {receipt.node}")
    return receipt


class NodeSync:
    """The nodes' long poll on a hub."""

    def __init__(self, side: Fleetside, waiters: Waiters, clock: Clock) -> None:
        self._side = side
        self._waiters = waiters
        self._clock = clock
        self._earlier: dict[str, dict[int, Targets]] = {}
        self._shared: dict[tuple[str, str], tuple[int, datetime, Bytes]] = {}

    def moved(self, before: Channel | None, after: Channel) -> int:
        """A fleet's channel was published: wake whom it concerns; returns how many."""
        if before is not None:
            earlier = self._earlier.setdefault(after.fleet, {})
            earlier[before.sequence] = Targets(before)
            while len(earlier) > CHANNELS_REMEMBERED:
                del earlier[min(earlier)]
        return self._waiters.moved(before, after)

    def routes(self) -> list[Route]:
        """POST /v1/sync."""
        return [
            Route(
                "POST",
                "/v1/sync",
                "A node's heartbeat, report and wake-up in one",
                self.sync,
                frozenset({"node"}),
                SyncRequest,
                SyncReply,
                errors=(Forbidden, Untrusted),
                at_most=limits.SYNC_REQUEST,
                held=True,
                also=(204,),
                description="Held until there is something for this node, at most `hold_s`.",
            )
        ]

    async def sync(self, call: Call[SyncRequest]) -> Bytes | None:
        """One poll of one node."""
        request = call.body
        enrolled = self._admit(call)
        name = enrolled.name
        self._heard(name, request.observation)
        if request.observation is not None:
            await self._side.evidence.flush()  # it will not be said again
        acknowledged = await self._take(enrolled, request.receipts)
        kept = self._side.records.get(name)
        standing = Standing(name)
        if kept is not None:
            seen = self._side.evidence.last_seen(name)
            running = seen.observation.running if seen and seen.observation else ""
            standing = Standing(name, kept[0].fleet, kept[0].index, running)
        if (
            acknowledged == 0
            and request.hold_s > 0
            and (kept is None or kept[0].sequence <= request.record)
            and not self._concerned(standing, request)
            and self._side.bundles_after(request.bundles) is None
        ):
            await self._waiters.hold(standing)
            enrolled = self._admit(call)  # it may have been forgotten meanwhile
        return self._answer(enrolled, request, acknowledged)

    def _admit(self, call: Call[SyncRequest]) -> Enrolled:
        return admit(self._side, call.peer.required(), "node")

    async def _take(self, enrolled: Enrolled, receipts: Sequence[Signed]) -> int:
        if not receipts:
            return 0
        try:
            read = [
                read_receipt(enrolled, signed, self._side.verify)
                for signed in receipts[: limits.RECEIPTS_KEPT]
            ]
        except Untrusted as error:
            self._side.suspect(enrolled.name, str(error))
            raise
        await self._side.evidence.receive(read)
        return max(receipt.sequence for receipt in read)

    def _heard(self, name: str, observation: Observation | None) -> None:
        self._side.evidence.observe({name: (self._clock.now(), observation)})

    def _concerned(self, standing: Standing, request: SyncRequest) -> bool:
        channel = self._side.channels.current(standing.fleet) if standing.fleet else None
        if channel is None or (
            request.fleet == channel.fleet and request.channel >= channel.sequence
        ):
            return False
        known = self._earlier.get(channel.fleet, {}).get(request.channel)
        if request.fleet != channel.fleet or known is None:
            return True
        return known.of(standing.index, standing.running) != channel.target(
            standing.index, standing.running
        )

    def _answer(self, enrolled: Enrolled, request: SyncRequest, acknowledged: int) -> Bytes | None:
        kept = self._side.records.get(enrolled.name)
        record = kept[1] if kept and kept[0].sequence > request.record else None
        fleet = kept[0].fleet if kept else ""
        channel = self._side.channels.current(fleet) if fleet else None
        behind = channel is not None and (
            request.fleet != fleet or request.channel < channel.sequence
        )
        bundles = self._side.bundles_after(request.bundles)
        if record is None and acknowledged == 0:
            news = channel if behind else None
            return self._shared_news(news, bundles) if news or bundles else None
        metadata = self._side.channels.bundle(fleet) if behind else {}
        hold_s, now = self._waiters.hold_s, self._clock.now()
        return Bytes(_encode(SyncReply(record, metadata, acknowledged, hold_s, now, bundles)))

    def _shared_news(self, channel: Channel | None, bundles: Signed | None) -> Bytes:
        now = self._clock.now().replace(microsecond=0)
        fleet, sequence = (channel.fleet, channel.sequence) if channel is not None else ("", 0)
        about = fleet, bundles.signature.hex() if bundles is not None else ""
        found = self._shared.get(about)
        if found is not None and found[:2] == (sequence, now):
            return found[2]
        metadata = self._side.channels.bundle(fleet) if channel is not None else {}
        reply = SyncReply(None, metadata, 0, self._waiters.hold_s, now, bundles)
        answer = Bytes(_encode(reply))
        if len(self._shared) >= SHARED:
            self._shared.clear()
        self._shared[about] = (sequence, now, answer)
        return answer
