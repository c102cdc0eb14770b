"""The hub's own stores in memory."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.model.errors import Conflict
from edgewise.net.api.ports import AuditStore, BundleStore, KeptRecord, RecordStore
from edgewise.protocol.api import AuditLine
from edgewise.protocol.channel import Signed


class MemoryHub:
    """Records, audit lines and trust bundles."""

    def __init__(self) -> None:
        self._records: dict[str, KeptRecord] = {}
        self._audit: list[AuditLine] = []
        self._bundles: Signed | None = None
        self._relay_keys: dict[str, tuple[bytes, ...]] = {}

    async def save_records(self, batch: Sequence[KeptRecord]) -> None:
        self._records |= {k.name: k for k in batch}

    async def records(self) -> tuple[KeptRecord, ...]:
        return tuple(self._records[name] for name in sorted(self._records))

    async def save_bundles(self, signed: Signed) -> None:
        self._bundles = signed

    async def bundles(self) -> Signed | None:
        return self._bundles

    async def save_relay_keys(self, relay: str, keys: tuple[bytes, ...]) -> None:
        self._relay_keys.pop(relay, None)
        if keys:
            self._relay_keys[relay] = keys

    async def relay_keys(self) -> dict[str, tuple[bytes, ...]]:
        return dict(self._relay_keys)

    async def append_audit(self, line: AuditLine) -> None:
        if line.sequence != len(self._audit) + 1:
            raise Conflict(f"audit line {line.sequence} does not follow line {len(self._audit)}")
        self._audit.append(line)

    async def last_audit(self) -> AuditLine | None:
        return self._audit[-1] if self._audit else None

    async def audit(self, after: int, limit: int) -> tuple[AuditLine, ...]:
        return tuple(line for line in self._audit if line.sequence > after)[:limit]


def _meets_its_ports(store: MemoryHub) -> tuple[RecordStore, AuditStore, BundleStore]:
    return store, store, store
