"""What rollout does on the relay: hear nodes, tell the hub, hear the hub, wake nodes.

The relay carries on while the hub is away: nodes keep getting what it has, and what they
say waits on its disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from edgewise.model.errors import EdgewiseError, Forbidden, NeedsPerson, TryLater
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Signed
from edgewise.protocol.codec import encode
from edgewise.protocol.report import Observation
from edgewise.protocol.sync import (
    NodeReport,
    RelayNews,
    RelayReport,
    RelaySync,
    SyncReply,
    SyncRequest,
)
from edgewise.rollout.fanin import Bounds, FanIn, KeptReceipt, Settled, read_receipts
from edgewise.rollout.fanout import Known, Newer, concerned, learn, newer_for
from edgewise.rollout.relay_ports import HubLine, Published, RelayMemory, Sleepers
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a relay speaks."""

    report_every: timedelta = timedelta(seconds=1)
    """At most one batch in this time, unless a full one waits."""
    after_nothing_new: timedelta = timedelta(seconds=1)
    """Between two polls when the hub answered at once and with nothing new."""
    away_first: timedelta = timedelta(seconds=1)
    away_cap: timedelta = timedelta(seconds=10)
    """Longest wait between two tries while the hub is away: relays are few, and a whole
    region waits for the first that gets through."""
    hold: timedelta = timedelta(seconds=60)
    """How long a node's poll is held."""


@dataclass(slots=True)
class HubContact:
    """When the hub answered last, and since when it does or does not."""

    reachable: bool = False
    since: datetime | None = None
    problem: str = ""


@dataclass(slots=True)
class _Write:
    """Reports that wait for the next transaction; many nodes share one."""

    reports: list[NodeReport] = field(default_factory=list)
    receipts: list[KeptReceipt] = field(default_factory=list)
    done: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


_Shared = tuple[Mapping[str, bytes], Signed | None, datetime, bytes]
_NOTHING: Mapping[str, bytes] = {}


class Relaying:
    """A relay's part in rollouts. ``open`` it, then run ``follow`` and ``report`` as tasks."""

    def __init__(  # noqa: PLR0913 - a composition: every argument is a port
        self,
        memory: RelayMemory,
        hub: HubLine,
        published: Published,
        sleepers: Sleepers,
        clock: Clock,
        chance: Chance,
        log: Log,
        *,
        bounds: Bounds = Bounds(),  # noqa: B008 - frozen
        pace: Pace = Pace(),
    ) -> None:
        self._memory = memory
        self._hub = hub
        self._published = published
        self._sleepers = sleepers
        self._shared: dict[tuple[str, bool], _Shared] = {}
        self._clock = clock
        self._chance = chance
        self._log = log
        self._bounds = bounds
        self.pace = pace
        self._fan_in = FanIn(bounds)
        self._running: dict[str, str] = {}
        self._known = Known()
        self._something = asyncio.Event()
        self._full = asyncio.Event()
        self._reached = asyncio.Event()
        self._last_batch = float("-inf")
        self._write: _Write | None = None
        self._writing: asyncio.Task[None] | None = None
        self.contact = HubContact()
        self.own: Callable[[], tuple[tuple[bytes, ...], str]] = lambda: ((), "")
        """Its JWT keys, and the root above its certificate, for the hub."""
        self.trusting: Callable[[TrustBundles], None] = lambda bundles: None
        """Told of new trust bundles, after they are on disk."""

    async def open(self) -> None:
        """Take up what the disk has from before."""
        self._known = await self._memory.known()
        self._pin()
        reports, receipts = await self._memory.waiting()
        for report in reports:
            self._fan_in.hear(report.node, report.heard, report.observation)
            if report.observation is not None:
                self._running[report.node] = report.observation.running
        self._fan_in.keep(receipts)
        if reports or receipts:
            self._something.set()
        self._log.event(
            "relay memory read",
            fleets=len(self._known.channels),
            nodes=len(self._known.nodes),
            observations=len(reports),
            receipts=len(receipts),
        )

    @property
    def known(self) -> Known:
        """What the relay has from the hub."""
        return self._known

    @property
    def receipts_waiting(self) -> int:
        """Receipts that the hub has not taken over."""
        return len(self._fan_in)

    def admit(self, node: str) -> None:
        """Raises Forbidden for a node that the hub forgot or quarantined."""
        if node in self._known.gone:
            raise Forbidden(
                f"node {node} was forgotten or quarantined",
                hint="`edgewise node show` on the hub says why; join it again or release it",
            )

    async def hear(self, node: str, request: SyncRequest) -> int:
        """Keep what a node says; returns the sequence up to which its receipts are on disk.

        0 when none of them is. Raises Untrusted for receipts that are not its own.
        """
        heard = self._clock.now()
        receipts = self._fan_in.room_for(read_receipts(node, request.receipts))
        if len(receipts) < len(request.receipts):
            self._log.event(
                "receipts left at the node",
                "warning",
                node=node,
                left=len(request.receipts) - len(receipts),
                waiting=len(self._fan_in),
            )
        if request.observation is not None or receipts:
            await self._keep(NodeReport(node, heard, request.observation), receipts)
        self._fan_in.hear(node, heard, request.observation)
        self._fan_in.keep(receipts)
        self._remember_running(node, request.observation)
        self._something.set()
        if self._fan_in.observations >= self._bounds.reports:
            self._full.set()
        return receipts[-1].sequence if receipts else 0

    def _remember_running(self, node: str, observation: Observation | None) -> None:
        if observation is not None and (
            node in self._running or len(self._running) < self._bounds.observations
        ):
            self._running[node] = observation.running

    async def _keep(self, report: NodeReport, receipts: tuple[KeptReceipt, ...]) -> None:
        """One transaction for everybody who came while the last one was written."""
        if self._write is None:
            self._write = _Write()
        write = self._write
        write.reports.append(report)
        write.receipts.extend(receipts)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        await asyncio.shield(write.done)

    async def _write_all(self) -> None:
        while (write := self._write) is not None:
            self._write = None
            try:
                await self._memory.keep(write.reports, write.receipts)
            except EdgewiseError as error:
                write.done.set_exception(error)
                # Where every waiting node has hung up, nobody else looks at the error.
                write.done.exception()
            else:
                write.done.set_result(None)

    async def reply(self, node: str, request: SyncRequest, acknowledged: int = 0) -> bytes | None:
        """The encoded SyncReply with what is new to the node, or None: then hold its poll.

        A wave wakes many nodes with the same words: those are encoded once.
        """
        newer = newer_for(self._known, node, request)
        if newer is None and not acknowledged:
            return None
        newer = newer or Newer(None, "")
        fleet, bundles = newer.fleet, newer.bundles
        metadata = await self._published.bundle(fleet) if fleet else _NOTHING
        if newer.record is not None or acknowledged:
            return self._encoded(newer, metadata, acknowledged)
        second = self._clock.now().replace(microsecond=0)
        about = fleet, bundles is not None
        shared = self._shared.get(about)
        same = shared is not None and shared[0] is metadata and shared[1] is bundles
        if shared is None or not same or shared[2] != second:
            shared = (metadata, bundles, second, self._encoded(newer, metadata, 0))
            self._shared[about] = shared
        return shared[3]

    def _encoded(self, newer: Newer, metadata: Mapping[str, bytes], acknowledged: int) -> bytes:
        hold_s = self.pace.hold.total_seconds()
        now = self._clock.now()
        reply = SyncReply(newer.record, dict(metadata), acknowledged, hold_s, now, newer.bundles)
        return encode(reply)

    # From the hub

    async def follow(self) -> None:
        """Poll the hub for ever."""
        backoff = self._backoff()
        while True:
            begun = self._clock.monotonic()
            known = self._known
            jwt, issuer = self.own()
            request = RelaySync(
                {fleet: channel.sequence for fleet, channel in known.channels.items()},
                known.cursor,
                bundles=known.trusted.sequence if known.trusted is not None else 0,
                jwt=jwt,
                issuer=issuer,
            )
            try:
                news = await self._hub.sync(request)
                if news is not None:
                    await self.learn(news)
            except EdgewiseError as error:
                self._hub_failed(error)
                await self._clock.sleep(backoff.next())
                continue
            backoff.reset()
            self._hub_answered()
            at_once = self._clock.monotonic() - begun < 1.0
            if at_once and self._known is known:
                await self._clock.sleep(self.pace.after_nothing_new)

    async def learn(self, news: RelayNews) -> None:
        """Take news: to disk, then to the nodes they concern. Raises Untrusted."""
        before = self._known
        after, change = learn(before, news)
        if news.metadata:
            await self._published.offer(news.metadata)
        if after == before:
            return
        if change.bundles is not None:
            await self._published.check(change.bundles)
        await self._memory.learn(change)
        self._known = after
        if change.bundles is not None and after.trusted is not None:
            self.trusting(after.trusted)
        self._pin()
        woken = self._sleepers.wake(concerned(before, after, self._running))
        self._log.event(
            "news from the hub",
            fleets={fleet: channel.sequence for fleet, channel in after.channels.items()},
            records=len(change.records),
            gone=len(after.gone),
            woken=woken,
        )

    def _pin(self) -> None:
        """What every node may ask for at any moment must never leave the cache."""
        self._published.pin(self._known.channels.values())

    # To the hub

    async def report(self) -> None:
        """Hand batches to the hub for ever."""
        backoff = self._backoff()
        while True:
            await self._gather()
            batch = self._fan_in.batch(self._clock.now())
            if batch is None:
                continue
            self._last_batch = self._clock.monotonic()
            try:
                answer = await self._hub.report(RelayReport(batch.reports))
            except EdgewiseError as error:
                self._fan_in.give_back(batch)
                self._hub_failed(error)
                # Whichever comes first: the next try, or the other loop reaching the hub.
                await self._wait(self._reached, backoff.next())
                continue
            except asyncio.CancelledError:
                self._fan_in.give_back(batch)
                raise
            backoff.reset()
            self._hub_answered()
            await self._settle(self._fan_in.settle(batch, answer, self._clock.now()))

    async def _settle(self, settled: Settled) -> None:
        for receipt in settled.refused:
            self._log.event(
                "the hub refused a receipt",
                "warning",
                node=receipt.node,
                sequence=receipt.sequence,
            )
        if settled.receipts or settled.observations:
            try:
                await self._memory.drop(settled)
            except NeedsPerson as error:
                # They are sent again after a restart, which is harmless.
                self._log.event("not dropped from disk", "error", because=str(error))

    async def _gather(self) -> None:
        """Until there is something to report, and it is time or a full batch waits."""
        while not self._fan_in.waiting(self._clock.now()):
            self._something.clear()
            # Receipts may rest; nothing else calls when their rest is over.
            await self._wait(self._something, self._bounds.refused_again)
        early = self._last_batch + self.pace.report_every.total_seconds()
        rest = early - self._clock.monotonic()
        if rest > 0 and self._fan_in.observations < self._bounds.reports:
            self._full.clear()
            await self._wait(self._full, timedelta(seconds=rest))

    async def _wait(self, event: asyncio.Event, at_most: timedelta) -> None:
        waits = (
            asyncio.create_task(event.wait()),
            asyncio.create_task(self._clock.sleep(at_most)),
        )
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _backoff(self) -> Backoff:
        return Backoff(self._chance, first=self.pace.away_first, cap=self.pace.away_cap)

    def _hub_answered(self) -> None:
        self._reached.set()
        if not self.contact.reachable:
            self.contact = HubContact(True, self._clock.now())
            self._log.event("hub reached", receipts=len(self._fan_in))

    def _hub_failed(self, error: EdgewiseError) -> None:
        self._reached.clear()
        if self.contact.reachable or not self.contact.problem:
            self.contact = HubContact(False, self._clock.now(), str(error))
            self._log.event(
                "hub away",
                "info" if isinstance(error, TryLater) else "error",
                because=str(error),
                hint=error.hint,
            )
