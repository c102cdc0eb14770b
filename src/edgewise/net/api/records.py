"""Node records: what the hub says about each node, numbered so that they never go back.

A record is made anew only when what it says changes. Forgetting a node leaves a mark with
the last sequence, because the name may join again with another key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from edgewise.net.api.ports import KeptRecord, RecordStore
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.protocol.codec import encode

BATCH = 2000
"""Records in one answer to a relay: about 1 MiB."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a node's record should say."""

    region: str
    fleet: str = ""
    index: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    sealed: Mapping[str, str] = field(default_factory=dict)
    identities: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    key: bytes = b""


def succeed(before: NodeRecord | None, last: int, name: str, wanted: Wanted) -> NodeRecord | None:
    """The next record of a node, or None when ``before`` says it all already.

    ``last`` is the highest sequence that this name ever had.
    """
    after = NodeRecord(
        name,
        last + 1,
        wanted.fleet,
        wanted.index,
        dict(wanted.labels),
        dict(wanted.sealed),
        dict(wanted.identities),
        wanted.key,
    )
    if before is not None and _content(before) == _content(after):
        return None
    return after


def _content(record: NodeRecord) -> NodeRecord:
    return msgspec.structs.replace(record, sequence=0)


class Records:
    """All records in memory, saved before anybody sees them."""

    def __init__(self, store: RecordStore, sign: Callable[[bytes], Awaitable[Signed]]) -> None:
        self._store = store
        self._sign = sign
        self._kept: dict[str, KeptRecord] = {}
        self._records: dict[str, NodeRecord] = {}
        self._change = 0

    async def load(self, read: Callable[[bytes], NodeRecord]) -> None:
        """Read what was saved."""
        for kept in await self._store.records():
            self._remember(kept, read(kept.signed.payload) if kept.signed else None)

    def get(self, name: str) -> tuple[NodeRecord, Signed] | None:
        """The newest record and its signed form."""
        kept, record = self._kept.get(name), self._records.get(name)
        if kept is None or record is None or kept.signed is None:
            return None
        return record, kept.signed

    async def put(self, wanted: Mapping[str, Wanted]) -> tuple[str, ...]:
        """Make records say this; returns the names whose record is new."""
        fresh: list[tuple[KeptRecord, NodeRecord]] = []
        change = self._change
        for name, want in sorted(wanted.items()):
            kept = self._kept.get(name)
            last = kept.sequence if kept else 0
            record = succeed(self._records.get(name), last, name, want)
            if record is not None:
                change += 1
                signed = await self._sign(encode(record))
                fresh.append(
                    (KeptRecord(name, want.region, change, record.sequence, signed), record)
                )
        if fresh:
            await self._store.save_records([kept for kept, _ in fresh])
        for kept, record in fresh:
            self._remember(kept, record)
        return tuple(kept.name for kept, _ in fresh)

    async def signed_with(self, key_id: str) -> None:
        """Sign again what another key signed: the channels key changed while we were away."""
        if any(kept.signed and kept.signed.key_id != key_id for kept in self._kept.values()):
            await self.sign_again()

    async def sign_again(self) -> None:
        """The channels key has changed: sign every record with the new one."""
        names = {
            name: Wanted(kept.region, r.fleet, r.index, r.labels, r.sealed, r.identities, r.key)
            for name, kept in self._kept.items()
            if (r := self._records.get(name))
        }
        self._records.clear()
        await self.put(names)

    async def forget(self, name: str) -> None:
        """Leave the mark of a node that is gone. Idempotent."""
        kept = self._kept.get(name)
        if kept is None or kept.signed is None:
            return
        mark = KeptRecord(name, kept.region, self._change + 1, kept.sequence, None)
        await self._store.save_records([mark])
        self._remember(mark, None)

    def since(self, region: str, cursor: int) -> tuple[dict[str, Signed], tuple[str, ...], int]:
        """(records, names that are gone, next cursor) for a relay; at most BATCH at a time.

        A cursor from the future (a hub restored from a backup) starts from the beginning.
        """
        start = cursor if cursor <= self._change else 0
        news: Sequence[KeptRecord] = sorted(
            (k for k in self._kept.values() if k.region == region and k.change > start),
            key=lambda kept: kept.change,
        )
        chosen = news[:BATCH]
        end = chosen[-1].change if len(news) > BATCH else self._change
        records = {kept.name: kept.signed for kept in chosen if kept.signed is not None}
        return records, tuple(k.name for k in chosen if k.signed is None), end

    def of_fleet(self, fleet: str) -> dict[str, Signed]:
        """Node to its record, for every node of the fleet."""
        names = sorted(name for name, record in self._records.items() if record.fleet == fleet)
        return {name: found[1] for name in names if (found := self.get(name))}

    def sealed_objects(self) -> frozenset[str]:
        """Digests of every secret that is sealed to a node now."""
        return frozenset(d for r in self._records.values() for d in r.sealed.values())

    def _remember(self, kept: KeptRecord, record: NodeRecord | None) -> None:
        self._kept[kept.name] = kept
        self._change = max(self._change, kept.change)
        if record is None:
            self._records.pop(kept.name, None)
        else:
            self._records[kept.name] = record
