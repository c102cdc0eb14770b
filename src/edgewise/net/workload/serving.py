"""What every method of the workload socket works with: who calls, and what may they have."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import msgspec

from edgewise.host.callers import Facts, Peer
from edgewise.identity.supply import WorkloadSupply
from edgewise.identity.workload_messages import trusted
from edgewise.identity.workload_ports import Caller, LocalSvid
from edgewise.model.errors import Forbidden, TryLater
from edgewise.net.workload.http2 import Stream
from edgewise.protocol.bundles import DomainBundle
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

CALLS_KEPT: Final = 64
"""Callers that are shown to a person; the oldest go first."""


class Seen(msgspec.Struct, frozen=True):
    """A caller, for a person who looks."""

    pid: int
    uid: int
    app: str
    unit: str
    executable: str
    method: str
    identities: tuple[str, ...]
    at: datetime
    calls: int = 1


@dataclass
class Serving:
    """Shared by all connections."""

    supply: WorkloadSupply
    facts: Facts
    clock: Clock
    log: Log
    seen: deque[Seen] = field(default_factory=lambda: deque(maxlen=CALLS_KEPT))

    async def caller(self, peer: Peer) -> Caller:
        """Who made the connection, by the kernel's word of now. Raises Forbidden."""
        if self.facts.needs_digest(peer.pid):
            # Hashing lets go of the interpreter, and a large program must not stop the probes.
            await asyncio.to_thread(self.facts.digest, peer.pid)
        return peer.caller(self.facts)

    async def entitled(self, stream: Stream, method: str) -> tuple[Caller, tuple[str, ...]]:
        """The caller and its SPIFFE IDs. Raises Forbidden when it has none."""
        caller = await self.caller(stream.peer)
        ids = self.supply.entitled(caller)
        self._remember(caller, method, ids)
        if not ids:
            raise Forbidden(
                "no identity is registered for this process",
                hint=f"`edgewise agent explain {caller.pid}` on the node says what does not hold",
            )
        return caller, ids

    def _remember(self, caller: Caller, method: str, ids: tuple[str, ...]) -> None:
        for old in self.seen:
            if (old.pid, old.method, old.identities) == (caller.pid, method, ids):
                self.seen.remove(old)
                calls = old.calls + 1
                break
        else:
            calls = 1
        self.seen.append(
            Seen(
                caller.pid,
                caller.uid,
                caller.app,
                caller.unit,
                caller.executable,
                method,
                ids,
                self.clock.now(),
                calls,
            )
        )

    async def svids(self, ids: tuple[str, ...]) -> tuple[LocalSvid, ...]:
        """Those that there are now, the default one first; empty while there is none yet."""
        found = []
        for spiffe_id in ids:
            try:
                found.append(await self.supply.x509(spiffe_id))
            except TryLater:
                continue  # its renewal is under way; the next version has it
        return tuple(found)

    def trusted(self, ids: tuple[str, ...]) -> dict[str, DomainBundle]:
        """Trust domain to bundle for a workload. Raises TryLater before the hub has said."""
        bundles = self.supply.bundles()
        if bundles is None:
            raise TryLater("this node does not know yet whom to trust")
        return trusted(bundles, self.supply.federates_with(ids))


def domain_of(spiffe_id: str) -> str:
    """The trust domain of a SPIFFE ID."""
    return spiffe_id.removeprefix("spiffe://").partition("/")[0]
