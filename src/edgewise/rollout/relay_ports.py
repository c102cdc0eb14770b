"""What rollout on a relay needs from the outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from edgewise.protocol.channel import Channel, Signed
from edgewise.protocol.sync import (
    NodeReport,
    RelayAcknowledged,
    RelayNews,
    RelayReport,
    RelaySync,
)
from edgewise.rollout.fanin import KeptReceipt, Settled
from edgewise.rollout.fanout import Known, Learnt


class RelayMemory(Protocol):
    """What a relay must not forget when it is restarted: its own small file.

    Implementations: backends.sqlite.relay, testing.relay. What has returned is on disk.
    """

    async def keep(self, heard: Sequence[NodeReport], receipts: Sequence[KeptReceipt]) -> None:
        """Keep observations (the newest of a node wins, reports without one are skipped) and
        receipts (a known one is not kept twice), all or nothing.

        Raises NeedsPerson when the disk is full.
        """

    async def waiting(self) -> tuple[tuple[NodeReport, ...], tuple[KeptReceipt, ...]]:
        """Everything the hub has not taken over; receipts in the order in which they came."""

    async def drop(self, settled: Settled) -> None:
        """Forget what the hub has taken over. Idempotent."""

    async def learn(self, change: Learnt) -> None:
        """Keep what news changed, all or nothing."""

    async def known(self) -> Known:
        """Everything learnt so far."""


class HubLine(Protocol):
    """A relay's line to the hub.

    Implementation: net.relaying.HubOverHttps; testing.relay.ScriptedHub. Raises TryLater when
    the hub cannot be reached, Forbidden when it refuses this relay.
    """

    async def sync(self, request: RelaySync) -> RelayNews | None:
        """The long poll; None when nothing came within the hold time."""

    async def report(self, report: RelayReport) -> RelayAcknowledged: ...


class Sleepers(Protocol):
    """The polls that are held. Implementation: net.waiters."""

    def wake(self, names: Iterable[str]) -> int:
        """End the polls of these nodes; returns how many were held."""


class Published(Protocol):
    """What the hub published, as far as the relay has it. Implementation:
    delivery.on_relay.Cache.
    """

    async def offer(self, metadata: Mapping[str, bytes]) -> None:
        """Take TUF files and channels that the hub pushed; raises Untrusted."""

    async def check(self, signed: Signed) -> None:
        """Raises Untrusted unless the hub's channels key signed it."""

    async def bundle(self, fleet: str) -> Mapping[str, bytes]:
        """What a node of ``fleet`` would fetch next; the same object until it changes."""

    def pin(self, channels: Iterable[Channel]) -> None:
        """The present channels: they and their releases stay in the cache whatever else must
        go, and what they lead to goes last."""
