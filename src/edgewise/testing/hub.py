"""The hub's own stores in memory, and a small world for its sync calls."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.model.errors import Conflict
from edgewise.net.api.ports import (
    AuditStore,
    KeptReceipt,
    KeptRecord,
    ReceiptQuery,
    Receipts,
    RecordStore,
    Sighting,
    Sightings,
)
from edgewise.protocol.api import AuditLine


class MemoryHub:
    """Sightings, receipts, records and audit lines in dictionaries and lists."""

    def __init__(self) -> None:
        self._sightings: dict[str, Sighting] = {}
        self._receipts: dict[tuple[str, int], KeptReceipt] = {}
        self._records: dict[str, KeptRecord] = {}
        self._audit: list[AuditLine] = []

    async def save_sightings(self, batch: Sequence[Sighting]) -> None:
        self._sightings |= {s.name: s for s in batch}

    async def sightings(self) -> tuple[Sighting, ...]:
        return tuple(self._sightings[name] for name in sorted(self._sightings))

    async def forget_sighting(self, name: str) -> None:
        self._sightings.pop(name, None)

    async def add_receipts(self, batch: Sequence[KeptReceipt]) -> None:
        for kept in batch:
            node, sequence = kept.receipt.node, kept.receipt.sequence
            self._receipts.setdefault((node, sequence), kept)
            for key in [k for k in self._receipts if k[0] == node and k[1] <= sequence - 1000]:
                del self._receipts[key]

    async def receipts(self, query: ReceiptQuery) -> tuple[KeptReceipt, ...]:
        keys = sorted(self._receipts, key=lambda key: (key[0], -key[1]))
        found = [
            self._receipts[key]
            for key in keys
            if query.node in ("", key[0])
            and (not query.releases or self._receipts[key].receipt.release in query.releases)
        ]
        return tuple(found[: query.limit])

    async def save_records(self, batch: Sequence[KeptRecord]) -> None:
        self._records |= {k.name: k for k in batch}

    async def records(self) -> tuple[KeptRecord, ...]:
        return tuple(self._records[name] for name in sorted(self._records))

    async def append_audit(self, line: AuditLine) -> None:
        if line.sequence != len(self._audit) + 1:
            raise Conflict(f"audit line {line.sequence} does not follow line {len(self._audit)}")
        self._audit.append(line)

    async def last_audit(self) -> AuditLine | None:
        return self._audit[-1] if self._audit else None

    async def audit(self, after: int, limit: int) -> tuple[AuditLine, ...]:
        return tuple(line for line in self._audit if line.sequence > after)[:limit]


def _meets_its_ports(
    store: MemoryHub,
) -> tuple[Sightings, Receipts, RecordStore, AuditStore]:
    return store, store, store, store
