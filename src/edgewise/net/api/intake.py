"""What nodes say, on its way to the rollout engine and to disk: in batches.

Contacts are kept in memory and written once a second, so a heartbeat costs no disk write.
Receipts are different: a poll with receipts is answered only after the engine and the
store have them, and all that arrive together share one transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from edgewise.identity.ports import Enrolled
from edgewise.model.errors import EdgewiseError, TryLater, Untrusted
from edgewise.net.api.ports import Evidence, KeptReceipt, Receipts, Sighting, Sightings, Verify
from edgewise.protocol import limits
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import decode
from edgewise.protocol.report import Observation, Receipt
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

FLUSH: Final = timedelta(seconds=1)
"""Contacts that a power cut may lose; they come again with the next poll."""
REPORT: Final = timedelta(milliseconds=100)
"""How long changed observations gather before the engine hears them."""
QUEUE: Final = 20_000
"""Receipts that wait for the disk; more are asked to come again."""


def read_receipt(enrolled: Enrolled, signed: Signed, verify: Verify) -> Receipt:
    """The receipt in ``signed``. Raises Untrusted unless this node's own key signed it."""
    if signed.purpose != "receipt/1":
        raise Untrusted(f"{enrolled.name} sent a {signed.purpose} where receipts belong")
    if not verify(enrolled.key, signed):
        raise Untrusted(f"a receipt of {enrolled.name} is not signed by its enrolment key")
    receipt = decode(signed.payload, Receipt, what="receipt", at_most=limits.RECORD)
    if receipt.node != enrolled.name:
        raise Untrusted(f"{enrolled.name} sent a receipt of {receipt.node}")
    return receipt


class Intake:
    """Contacts and receipts of all nodes."""

    def __init__(
        self,
        kept: Sightings,
        receipts: Receipts,
        evidence: Evidence,
        clock: Clock,
        log: Log,
    ) -> None:
        self._kept = kept
        self._receipts = receipts
        self._evidence = evidence
        self._clock = clock
        self._log = log
        self._seen: dict[str, Sighting] = {}
        self._unsaved: dict[str, Sighting] = {}
        self._untold: dict[str, Sighting] = {}
        self._queue: list[tuple[Sequence[KeptReceipt], asyncio.Future[None]]] = []
        self._queued = 0
        self._something = asyncio.Event()

    @property
    def seen(self) -> Mapping[str, Sighting]:
        """The last contact with each node."""
        return self._seen

    async def load(self) -> None:
        """Read what was kept before a restart."""
        self._seen = {sighting.name: sighting for sighting in await self._kept.sightings()}

    def heard(self, name: str, via: str, at: datetime, observation: Observation | None) -> None:
        """A contact; ``observation`` only when the node's state changed."""
        before = self._seen.get(name)
        if before is not None and before.heard > at:
            return  # a relay's old news
        state = observation or (before.observation if before else Observation())
        sighting = Sighting(name, at, via, state)
        self._seen[name] = self._unsaved[name] = self._untold[name] = sighting

    async def forget(self, name: str) -> None:
        """The node left the fleet for good."""
        for known in (self._seen, self._unsaved, self._untold):
            known.pop(name, None)
        await self._kept.forget_sighting(name)

    async def receive(self, batch: Sequence[KeptReceipt]) -> None:
        """Returns when the engine and the store have them. Raises TryLater when too many wait."""
        if self._queued + len(batch) > QUEUE:
            raise TryLater("too many receipts wait to be stored", wait=timedelta(seconds=5))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((batch, done))
        self._queued += len(batch)
        self._something.set()
        await done

    async def run(self) -> None:
        """Store receipts, tell the engine and save contacts, for ever."""
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._store_receipts())
            parts.create_task(self._tell_engine())
            parts.create_task(self._save_contacts())

    async def flush(self) -> None:
        """Save what only memory has; called once more at the end."""
        batch, self._unsaved = self._unsaved, {}
        if batch:
            await self._kept.save_sightings(tuple(batch.values()))

    async def _store_receipts(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            batch, self._queue = self._queue, []
            self._queued = 0
            everything = [kept for receipts, _ in batch for kept in receipts]
            try:
                # The engine first: a crash between the two makes the node send again, and
                # the engine ignores repeats; the other order could lose a receipt.
                await self._evidence.received([kept.receipt for kept in everything])
                await self._receipts.add_receipts(everything)
            except EdgewiseError as error:
                _settle((done for _, done in batch), error)
                self._log.event("receipts not stored", "error", error=str(error))
            else:
                _settle((done for _, done in batch), None)

    async def _tell_engine(self) -> None:
        while True:
            await self._clock.sleep(REPORT)
            batch, self._untold = self._untold, {}
            if batch:
                await self._evidence.heard(tuple(batch.values()))

    async def _save_contacts(self) -> None:
        while True:
            await self._clock.sleep(FLUSH)
            await self.flush()


def _settle(waiting: Iterable[asyncio.Future[None]], error: EdgewiseError | None) -> None:
    for done in waiting:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)
