"""The relays' two calls: news of their region, and what their nodes said.

A relay is believed about who was heard and when; never about success: that takes a
receipt, and the hub checks the node's own signature on each.
"""

from __future__ import annotations

from datetime import UTC

import msgspec

from edgewise.identity.ports import Enrolled
from edgewise.model.errors import Forbidden, Untrusted
from edgewise.net.api.sync import Fleetside, admit, read_receipt
from edgewise.net.routes import Call, Route
from edgewise.net.waiters import Standing, Waiters
from edgewise.protocol import limits
from edgewise.protocol.channel import Signed
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import (
    NodeReport,
    RelayAcknowledged,
    RelayNews,
    RelayReport,
    RelaySync,
)
from edgewise.runtime.clock import Clock


class RelaySide:
    """What relays ask of the hub."""

    def __init__(self, side: Fleetside, waiters: Waiters, clock: Clock) -> None:
        self._side = side
        self._waiters = waiters
        self._clock = clock

    def wake(self) -> int:
        """Something changed that any relay may have to pass on."""
        return self._waiters.wake_all()

    def routes(self) -> list[Route]:
        """POST /v1/relay/sync and POST /v1/relay/report."""
        return [
            Route(
                "POST",
                "/v1/relay/sync",
                "A relay's long poll for channels and records",
                self.sync,
                frozenset({"relay"}),
                RelaySync,
                RelayNews,
                errors=(Forbidden, Untrusted),
                also=(204,),
            ),
            Route(
                "POST",
                "/v1/relay/report",
                "What a relay heard from its nodes",
                self.report,
                frozenset({"relay"}),
                RelayReport,
                RelayAcknowledged,
                errors=(Forbidden,),
                at_most=limits.RELAY_REPORT,
            ),
        ]

    async def sync(self, call: Call[RelaySync]) -> RelayNews | None:
        """A relay's long poll: held until a channel, or a record of its region, changes."""
        peer = call.peer.required()
        relay = admit(self._side, peer, "relay")
        self._side.evidence.observe({relay.name: (self._clock.now(), None)})
        if self._side.bundles is not None:
            said = call.body.bundles, call.body.issuer
            await self._side.bundles.heard(relay, call.body.jwt, said)
        news = self._news(relay, call.body)
        if news is None:
            await self._waiters.hold(Standing(relay.name))
            relay = admit(self._side, peer, "relay")
            news = self._news(relay, call.body)
        return news

    def _news(self, relay: Enrolled, request: RelaySync) -> RelayNews | None:
        channels: dict[str, int] = {}
        metadata: dict[str, bytes] = {}
        for fleet in self._side.channels.fleets():
            channel = self._side.channels.current(fleet)
            if channel is not None and request.channels.get(fleet, 0) < channel.sequence:
                channels[fleet] = channel.sequence
                metadata |= self._side.channels.bundle(fleet)
        records, gone, cursor = self._side.records.since(relay.region, request.records)
        bundles = self._side.bundles_after(request.bundles)
        if not channels and bundles is None and cursor == request.records:
            return None
        if not channels and bundles is None and not records and not gone:
            # Records of other regions moved the cursor: nothing that this relay waits for.
            return None
        hold_s = self._waiters.hold_s
        return RelayNews(metadata, channels, records, cursor, gone, hold_s, bundles)

    async def report(self, call: Call[RelayReport]) -> RelayAcknowledged:
        """Reports of a relay's nodes. What cannot be believed is refused by name and audited,
        so that the relay does not bring it again and again."""
        relay = admit(self._side, call.peer.required(), "relay")
        now = self._clock.now()
        kept: list[Receipt] = []
        stored: dict[str, int] = {}
        refused: dict[str, tuple[int, ...]] = {}
        for report in call.body.reports:
            enrolled = self._side.roster.get(report.node)
            if enrolled is None or enrolled.region != relay.region:
                refused[report.node] = tuple(map(_sequence, report.receipts))
                continue
            if enrolled.quarantined:
                continue  # its receipts wait at the relay until a person has decided
            # A relay's clock may be ahead; a time without a zone is meant as UTC.
            heard = report.heard if report.heard.tzinfo else report.heard.replace(tzinfo=UTC)
            heard = min(now, heard)
            said = {report.node: (heard, report.observation)}
            self._side.evidence.observe(said, via=relay.name)
            believed, doubted = self._sorted(relay, enrolled, report)
            kept.extend(believed)
            if believed:
                stored[report.node] = max(receipt.sequence for receipt in believed)
            if doubted:
                refused[report.node] = doubted
        # The relay drops what is answered for, observations as well as receipts.
        await self._side.evidence.flush()
        if kept:
            await self._side.evidence.receive(kept)
        return RelayAcknowledged(stored, {node: which for node, which in refused.items() if which})

    def _sorted(
        self, relay: Enrolled, enrolled: Enrolled, report: NodeReport
    ) -> tuple[list[Receipt], tuple[int, ...]]:
        """The receipts that this node signed, and the numbers of the others."""
        believed, doubted = [], []
        for signed in report.receipts:
            try:
                believed.append(read_receipt(enrolled, signed, self._side.verify))
            except Untrusted as error:
                self._side.suspect(relay.name, str(error))
                doubted.append(_sequence(signed))
        return believed, tuple(doubted)


class _Numbered(msgspec.Struct):
    sequence: int = 0


def _sequence(signed: Signed) -> int:
    """The number that an unbelieved receipt claims; 0 where it has none."""
    try:
        return msgspec.json.decode(signed.payload, type=_Numbered).sequence
    except (msgspec.DecodeError, RecursionError):
        return 0
