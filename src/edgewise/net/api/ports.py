"""What the API needs from the outside: stores of its own, and narrow views of the parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from edgewise.identity.ports import Enrolled
from edgewise.protocol.api import AuditLine, Plan, PlanRequest, SourceStatus
from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout.ports import NodeSeen
from edgewise.sync.ports import CommitSeen


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


class RecordStore(Protocol):
    """Implementations: backends.sqlite.hub, testing.hub."""

    async def save_records(self, batch: Sequence[KeptRecord]) -> None: ...
    async def records(self) -> tuple[KeptRecord, ...]: ...


class BundleStore(Protocol):
    """Implementations: backends.sqlite.hub, testing.hub."""

    async def save_bundles(self, signed: Signed) -> None: ...
    async def bundles(self) -> Signed | None: ...
    async def save_relay_keys(self, relay: str, keys: tuple[bytes, ...]) -> None:
        """DER SubjectPublicKeyInfo of each JWT key; none: forget the relay."""

    async def relay_keys(self) -> dict[str, tuple[bytes, ...]]: ...


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
    def all(self) -> tuple[Enrolled, ...]:
        """By name."""


class Channels(Protocol):
    """What is published now, in memory. Implementation: the hub's publisher."""

    def current(self, fleet: str) -> Channel | None: ...
    def fleets(self) -> tuple[str, ...]: ...
    def bundle(self, fleet: str) -> dict[str, bytes]:
        """The TUF files and the channel, as ``SyncReply.metadata`` carries them."""


class Evidence(Protocol):
    """The rollout engine's ears. Implementation: rollout.on_hub.Rollouts."""

    async def receive(self, receipts: Sequence[Receipt]) -> None:
        """Receipts whose signature was verified; returns when they are saved and counted.

        Repeats change nothing. Raises TryLater when they could not be saved.
        """

    def observe(
        self, contacts: Mapping[str, tuple[datetime, Observation | None]], *, via: str = ""
    ) -> None:
        """Nodes that were heard, and what they said when that changed."""

    async def flush(self) -> None:
        """Returns when all that was observed is saved: nodes say it once."""

    def last_seen(self, node: str) -> NodeSeen | None: ...


class Verify(Protocol):
    """Checks a signature; implementation: identity.on_hub."""

    def __call__(self, key: bytes, signed: Signed) -> bool:
        """Whether ``key`` (DER SubjectPublicKeyInfo) made the signature."""


class Source(Protocol):
    """The fleet repo as the hub follows it."""

    def status(self) -> SourceStatus: ...
    def wake(self) -> None:
        """Look at git now."""

    async def commit(self, revision: str) -> CommitSeen:
        """What became of a commit (a prefix of its id, or a branch). Raises NotFound."""

    async def plan(self, request: PlanRequest) -> Plan:
        """What a commit would do. Raises NotFound for an unknown revision."""

    async def approve(self, identifier: str, *, actor: str, reason: str) -> None:
        """Let a held change go on."""
