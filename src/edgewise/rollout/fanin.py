"""Fan-in on a relay: many nodes' reports become few batches for the hub.

Nothing here reads a clock, a disk or a socket. The laws:

1. Of a node's observations only the newest is kept: an older one says nothing new.
2. A receipt that was kept is offered to the hub until the hub has stored or refused it, and
   one node's receipts are offered in the order in which they came.
3. A receipt is never dropped to make room. One that does not fit is not kept, so the relay
   does not acknowledge it and the node keeps it: the queue ends where the room ends.
4. Observations are what goes when there are too many: the one that waited longest
   first.
5. A batch holds at most ``Bounds.reports`` reports and ``Bounds.bytes`` bytes, and while one
   is under way none of its receipts is in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.report import Observation, Receipt
from edgewise.protocol.sync import NodeReport, RelayAcknowledged

_ENVELOPE = 1024
# Room for the brackets, commas and names around the reports of a batch.


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a relay keeps for the hub at most. See docs/relay.md for the sizes in bytes."""

    observations: int = 20_000
    receipts: int = 50_000
    receipts_per_node: int = 256
    reports: int = 500
    bytes: int = limits.RELAY_REPORT - _ENVELOPE
    refused_again: timedelta = timedelta(seconds=60)
    """How long a node's receipts rest after the hub took a batch without taking them."""


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    """A signed receipt and what tells it from others.

    The key is part of its name: a node that was replaced counts from one again, under
    another key, while receipts of its predecessor may still wait.
    """

    node: str
    key_id: str
    sequence: int
    signed: Signed

    @property
    def name(self) -> ReceiptName:
        """What it is stored under."""
        return (self.node, self.key_id, self.sequence)


ReceiptName = tuple[str, str, int]


def read_receipts(node: str, signed: Iterable[Signed]) -> tuple[KeptReceipt, ...]:
    """What a node handed in, in its order; the signature is for the hub to check.

    Raises Untrusted for anything that is not a receipt of this very node: a node may only
    speak for itself.
    """
    kept = []
    for item in signed:
        if item.purpose != "receipt/1":
            raise Untrusted(f"{node} sent a {item.purpose} where a receipt belongs")
        receipt = decode(item.payload, Receipt, what=f"receipt of {node}", at_most=64 << 10)
        if receipt.node != node:
            raise Untrusted(f"{node} sent a receipt of {receipt.node[:80]!r}")
        kept.append(KeptReceipt(node, item.key_id, receipt.sequence, item))
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Batch:
    """One POST /v1/relay/report."""

    reports: tuple[NodeReport, ...]
    receipts: tuple[KeptReceipt, ...]


@dataclass(frozen=True, slots=True)
class Settled:
    """What the hub has taken over and need not be kept any more."""

    receipts: tuple[ReceiptName, ...]
    observations: tuple[tuple[str, datetime], ...]
    """Node and the time of the observation that was reported; a newer one stays."""
    refused: tuple[KeptReceipt, ...] = ()
    """Receipts that the hub will never accept (audited there), dropped here as well."""


@dataclass(slots=True)
class _Queue:
    receipts: dict[ReceiptName, KeptReceipt] = field(default_factory=dict)
    under_way: bool = False
    rests_until: datetime | None = None


class FanIn:
    """What waits for the hub."""

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self._bounds = bounds
        self._heard: dict[str, NodeReport] = {}
        # Nodes with something new to say, the one that waited longest first.
        self._queues: dict[str, _Queue] = {}
        self._count = 0
        self.dropped_observations = 0

    def __len__(self) -> int:
        """Receipts that wait."""
        return self._count

    @property
    def observations(self) -> int:
        """Nodes of which something is to be reported besides receipts."""
        return len(self._heard)

    def waiting(self, now: datetime) -> int:
        """Reports that a batch could carry now."""
        ready = sum(self._ready(queue, now) for queue in self._queues.values())
        both = sum(self._ready(self._queues[n], now) for n in self._heard if n in self._queues)
        return len(self._heard) + ready - both

    @staticmethod
    def _ready(queue: _Queue, now: datetime) -> bool:
        resting = queue.rests_until is not None and now < queue.rests_until
        return bool(queue.receipts) and not queue.under_way and not resting

    def room_for(self, receipts: Sequence[KeptReceipt]) -> tuple[KeptReceipt, ...]:
        """The beginning of ``receipts`` (all of one node) that fits; write these to disk first."""
        if not receipts:
            return ()
        queue = self._queues.get(receipts[0].node)
        known = queue.receipts if queue else {}
        free = min(self._bounds.receipts_per_node - len(known), self._bounds.receipts - self._count)
        fitting = []
        for receipt in receipts:
            if receipt.name not in known:
                if free <= 0:
                    break
                free -= 1
            fitting.append(receipt)
        return tuple(fitting)

    def hear(self, node: str, heard: datetime, observation: Observation | None = None) -> None:
        """A node spoke. What it said before stays where it says nothing new."""
        before = self._heard.get(node)
        if observation is None and before is not None:
            observation = before.observation
        # In its old place: a node that speaks often must not fall behind the others for ever.
        self._heard[node] = NodeReport(node, heard, observation)
        self._bound_observations()

    def keep(self, receipts: Iterable[KeptReceipt]) -> None:
        """Take up receipts that are on disk. One that is known already adds nothing."""
        for receipt in receipts:
            queue = self._queues.setdefault(receipt.node, _Queue())
            if receipt.name not in queue.receipts:
                queue.receipts[receipt.name] = receipt
                self._count += 1

    def _bound_observations(self) -> None:
        while len(self._heard) > self._bounds.observations:
            del self._heard[next(iter(self._heard))]
            self.dropped_observations += 1

    def batch(self, now: datetime) -> Batch | None:
        """The next batch, or None when nothing waits. Settle it or give it back."""
        ready = (node for node, queue in self._queues.items() if self._ready(queue, now))
        names = dict.fromkeys(islice(ready, self._bounds.reports))
        names |= dict.fromkeys(islice(self._heard, self._bounds.reports))
        reports: list[NodeReport] = []
        carried: list[KeptReceipt] = []
        room = self._bounds.bytes
        for node in islice(names, self._bounds.reports):
            report, receipts, size = self._report_of(node, now, room)
            if size > room and reports:
                break
            room -= size
            reports.append(report)
            carried.extend(receipts)
            self._heard.pop(node, None)
            if receipts:
                self._queues[node].under_way = True
        return Batch(tuple(reports), tuple(carried)) if reports else None

    def _report_of(
        self, node: str, now: datetime, room: int
    ) -> tuple[NodeReport, list[KeptReceipt], int]:
        said = self._heard.get(node) or NodeReport(node, now)
        size = len(encode(said)) + 1
        queue = self._queues.get(node)
        receipts: list[KeptReceipt] = []
        if queue is not None and self._ready(queue, now):
            for receipt in queue.receipts.values():
                more = len(encode(receipt.signed)) + 1
                # The first always goes: a receipt is far smaller than an empty batch's room.
                if receipts and size + more + 32 > room:
                    break
                size += more
                receipts.append(receipt)
            size += 32
        report = NodeReport(
            node, said.heard, said.observation, tuple(receipt.signed for receipt in receipts)
        )
        return report, receipts, size

    def settle(self, batch: Batch, answer: RelayAcknowledged, now: datetime) -> Settled:
        """The hub took the batch: drop what it has stored or refused, keep the rest.

        Only receipts of this batch are dropped, whatever numbers the answer names.
        """
        gone, refused = [], []
        for receipt in batch.receipts:
            queue = self._queues[receipt.node]
            queue.under_way = False
            if receipt.sequence in answer.refused.get(receipt.node, ()):
                refused.append(receipt)
            elif receipt.sequence > answer.receipts.get(receipt.node, 0):
                queue.rests_until = now + self._bounds.refused_again
                continue
            gone.append(receipt.name)
            del queue.receipts[receipt.name]
            self._count -= 1
        for node in {receipt.node for receipt in batch.receipts}:
            if not self._queues[node].receipts:
                del self._queues[node]
        observed = tuple((r.node, r.heard) for r in batch.reports if r.observation is not None)
        return Settled(tuple(gone), observed, tuple(refused))

    def give_back(self, batch: Batch) -> None:
        """The hub did not take the batch: it waits again, unless newer words have come."""
        for receipt in batch.receipts:
            self._queues[receipt.node].under_way = False
        waiting = self._heard
        self._heard = {}
        for report in batch.reports:
            newer = waiting.pop(report.node, None)
            if newer is None:
                self._heard[report.node] = NodeReport(report.node, report.heard, report.observation)
            else:
                self._heard[report.node] = NodeReport(
                    report.node, newer.heard, newer.observation or report.observation
                )
        self._heard.update(waiting)
        self._bound_observations()
