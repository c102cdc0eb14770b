"""A relay's surroundings: a memory that survives restarts, a hub that does as told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from edgewise.model.errors import TryLater, Untrusted
from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.content import channel_target
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import (
    NodeReport,
    RelayAcknowledged,
    RelayNews,
    RelayReport,
    RelaySync,
)
from edgewise.rollout.fanin import KeptReceipt, ReceiptName, Settled
from edgewise.rollout.fanout import Known, Learnt, restored
from edgewise.rollout.relay_ports import HubLine, Published, RelayMemory, Sleepers


class MemoryOfRelay:
    """Stands for the relay's disk: hand the same one to a restarted relay."""

    def __init__(self) -> None:
        self.observed: dict[str, NodeReport] = {}
        self.receipts: dict[ReceiptName, KeptReceipt] = {}
        self.channels: dict[str, Channel] = {}
        self.records: dict[str, Signed] = {}
        self.gone: frozenset[str] = frozenset()
        self.cursor = 0
        self.bundles: Signed | None = None

    async def keep(self, heard: Sequence[NodeReport], receipts: Sequence[KeptReceipt]) -> None:
        for report in heard:
            before = self.observed.get(report.node)
            if report.observation is not None and (before is None or before.heard <= report.heard):
                self.observed[report.node] = NodeReport(
                    report.node, report.heard, report.observation
                )
        for receipt in receipts:
            self.receipts.setdefault(receipt.name, receipt)

    async def waiting(self) -> tuple[tuple[NodeReport, ...], tuple[KeptReceipt, ...]]:
        return tuple(self.observed.values()), tuple(self.receipts.values())

    async def drop(self, settled: Settled) -> None:
        for name in settled.receipts:
            self.receipts.pop(name, None)
        for node, heard in settled.observations:
            kept = self.observed.get(node)
            if kept is not None and kept.heard <= heard:
                del self.observed[node]

    async def learn(self, change: Learnt) -> None:
        self.channels.update({channel.fleet: channel for channel in change.channels})
        self.records.update(change.records)
        self.gone = change.gone
        self.cursor = change.cursor
        self.bundles = change.bundles or self.bundles

    async def known(self) -> Known:
        return restored(self.channels.values(), self.records, self.gone, self.cursor, self.bundles)


class ScriptedHub:
    """``news`` are handed out in order, one a poll; ``away`` makes it unreachable."""

    def __init__(self) -> None:
        self.away = False
        self.news: asyncio.Queue[RelayNews] = asyncio.Queue()
        self.polls: list[RelaySync] = []
        self.reports: list[NodeReport] = []
        self.tries = 0
        """How often anybody tried to reach it."""
        self.batches: list[int] = []
        """Reports in each batch."""
        self.refuses: dict[str, tuple[int, ...]] = {}

    async def sync(self, request: RelaySync) -> RelayNews | None:
        self._reach()
        self.polls.append(request)
        return await self.news.get()

    async def report(self, report: RelayReport) -> RelayAcknowledged:
        self._reach()
        self.reports.extend(report.reports)
        self.batches.append(len(report.reports))
        last = {
            said.node: max(receipt_sequence(signed) for signed in said.receipts)
            for said in report.reports
            if said.receipts
        }
        return RelayAcknowledged(last, self.refuses)

    def _reach(self) -> None:
        self.tries += 1
        if self.away:
            raise TryLater("the hub does not answer")

    def heard_of(self, node: str) -> datetime | None:
        """When the newest report says that the node was heard."""
        return max((r.heard for r in self.reports if r.node == node), default=None)


class PublishedFiles:
    """Believes everything, unless it is told to find a file forged."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.forged = ""
        self.pinned: tuple[Channel, ...] = ()
        self._bundles: dict[str, dict[str, bytes]] = {}

    async def offer(self, metadata: Mapping[str, bytes]) -> None:
        if self.forged in metadata:
            raise Untrusted(f"{self.forged} is not signed by a key of its role")
        self.files.update(metadata)
        self._bundles.clear()

    async def check(self, signed: Signed) -> None:
        if signed.signature == b"forged":
            raise Untrusted("it is not signed by a key of its role")

    async def bundle(self, fleet: str) -> Mapping[str, bytes]:
        if fleet not in self._bundles:
            own = channel_target(fleet)
            self._bundles[fleet] = {
                name: data
                for name, data in self.files.items()
                if name == own or not name.startswith("channels/")
            }
        return self._bundles[fleet]

    def pin(self, channels: Iterable[Channel]) -> None:
        self.pinned = tuple(channels)


class WokenNodes:
    """Remembers who was woken."""

    def __init__(self) -> None:
        self.woken: list[frozenset[str]] = []

    def wake(self, names: Iterable[str]) -> int:
        self.woken.append(frozenset(names))
        return len(self.woken[-1])


def receipt_sequence(signed: Signed) -> int:
    """The number of a receipt, as the hub reads it."""
    return decode(signed.payload, Receipt, what="receipt").sequence


def _meets_its_port(
    memory: MemoryOfRelay, hub: ScriptedHub, published: PublishedFiles, sleepers: WokenNodes
) -> tuple[RelayMemory, HubLine, Published, Sleepers]:
    return memory, hub, published, sleepers
