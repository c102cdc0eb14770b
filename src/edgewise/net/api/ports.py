"""What the API needs from the outside: stores of its own, and narrow views of the parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec

from edgewise.identity.ports import Enrolled
from edgewise.protocol.api import AuditLine
from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.report import Observation, Receipt


class Sighting(msgspec.Struct, frozen=True):
    """When the hub last heard of a node, and what it said last."""

    name: str
    heard: datetime
    via: str
    """Relay it came through, or ``hub``."""
    observation: Observation = Observation()


class KeptRecord(msgspec.Struct, frozen=True):
    """A node's newest record, or the mark that it is gone."""

    name: str
    region: str
    change: int
    """Grows by one with every change of any record: the relays' cursor."""
    sequence: int
    """Of the record; it survives forgetting, so that it never goes back."""
    signed: Signed | None
    """None: the node was forgotten."""


class KeptReceipt(msgspec.Struct, frozen=True):
    """A receipt whose signature the hub has verified."""

    receipt: Receipt
    signed: Signed


@dataclass(frozen=True, slots=True)
class ReceiptQuery:
    """Which receipts, by node, newest first. Empty fields match everything."""

    node: str = ""
    releases: tuple[str, ...] = ()
    limit: int = 100


class Sightings(Protocol):
    """Implementations: backends.sqlite.hub, testing.hub."""

    async def save_sightings(self, batch: Sequence[Sighting]) -> None: ...
    async def sightings(self) -> tuple[Sighting, ...]: ...
    async def forget_sighting(self, name: str) -> None: ...


class Receipts(Protocol):
    """Implementations: backends.sqlite.hub, testing.hub."""

    async def add_receipts(self, batch: Sequence[KeptReceipt]) -> None:
        """Repeats (same node and sequence) change nothing. The newest 1,000 of a node stay."""

    async def receipts(self, query: ReceiptQuery) -> tuple[KeptReceipt, ...]: ...


class RecordStore(Protocol):
    """Implementations: backends.sqlite.hub, testing.hub."""

    async def save_records(self, batch: Sequence[KeptRecord]) -> None: ...
    async def records(self) -> tuple[KeptRecord, ...]: ...


class AuditStore(Protocol):
    """An append-only list of audit lines. Implementations: backends.sqlite.audit, testing.hub."""

    async def append_audit(self, line: AuditLine) -> None:
        """Raises Conflict when the line's sequence is not the next one."""

    async def last_audit(self) -> AuditLine | None: ...
    async def audit(self, after: int, limit: int) -> tuple[AuditLine, ...]:
        """Lines with a sequence greater than ``after``, in order."""


class Roster(Protocol):
    """Who has joined, in memory: asked at every poll."""

    def get(self, name: str) -> Enrolled | None: ...


class Channels(Protocol):
    """What is published now, in memory. Implementation: the hub's publisher."""

    def current(self, fleet: str) -> Channel | None: ...
    def fleets(self) -> tuple[str, ...]: ...
    def bundle(self, fleet: str) -> dict[str, bytes]:
        """The TUF files and the channel, as ``SyncReply.metadata`` carries them."""


class Evidence(Protocol):
    """The rollout engine's ears. Idempotent: repeats and old news change nothing."""

    async def heard(self, batch: Sequence[Sighting]) -> None: ...
    async def received(self, batch: Sequence[Receipt]) -> None: ...


class Verify(Protocol):
    """Checks a signature; implementation: identity.on_hub."""

    def __call__(self, key: bytes, signed: Signed) -> bool:
        """Whether ``key`` (DER SubjectPublicKeyInfo) made the signature."""
