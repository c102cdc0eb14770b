"""Drives the node half: hears the hub, performs the machine's actions, reports.

Three tasks: the held poll (wake-ups), the reports (observations and receipts, sent beside
the poll), and the work (fetch, apply, watch, go back; one thing at a time). A step of the
machine is saved before its actions are performed; a full disk makes the step wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal, assert_never

import msgspec

from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater
from edgewise.protocol.channel import Channel, NodeRecord, Signed
from edgewise.protocol.installed import Installed
from edgewise.protocol.media import MEDIA
from edgewise.protocol.report import Observation
from edgewise.protocol.sync import SyncReply, SyncRequest
from edgewise.rollout import node as machine
from edgewise.rollout.node import Node, phase_of, step, target_of, target_release
from edgewise.rollout.node_ports import Body, Crypto, Kept, Line, NodeMemory, Releases
from edgewise.rollout.windows import closes, next_open, share_of
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

FIRST_HOLD: Final = timedelta(seconds=60)
REPORT_PAUSE: Final = timedelta(seconds=0.5)
"""Changes within it travel in one report; receipts do not wait for it."""
WINDOW_LOOK: Final = timedelta(minutes=10)
"""How often a closed window is looked at again, because wall clocks are set."""
LONGEST_PAUSE: Final = timedelta(minutes=5)
DISK_PAUSE: Final = timedelta(seconds=10)
FREE_STEP: Final = 256 << 20
"""Free space is reported in such steps, so that it does not make reports by itself."""


@dataclass(frozen=True, slots=True)
class About:
    """What the node says of itself beside its state."""

    name: str
    platform: str
    version: str
    boot_id: str
    zone: str = "UTC"
    """IANA name of the node's own time zone."""
    mode: str = ""
    """How apps are held together: cgroup or session."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the driver works with."""

    line: Line
    crypto: Crypto
    releases: Releases
    body: Body
    memory: NodeMemory
    clock: Clock
    chance: Chance
    log: Log


class NodeRollout:
    """One node. ``run`` lasts until it is cancelled; apps are not touched by that."""

    def __init__(self, about: About, parts: Parts) -> None:
        self._about = about
        self._parts = parts
        kept = parts.memory.load()
        self._kept = kept or Kept(Node(about.name))
        self._actions: asyncio.Queue[machine.Action] = asyncio.Queue()
        self._doing: asyncio.Task[machine.Event | None] | None = None
        self._doing_what: machine.Action | None = None
        self._turn = asyncio.Lock()
        self._taking = asyncio.Lock()
        self._dirty = asyncio.Event()
        self._owing = asyncio.Event()
        self._sent: Observation | None = None
        self._progress = 0.0
        self._shut: tuple[Literal["download", "apply"], datetime | None] | None = None
        """The window that is waited for, and when it opens."""
        self._signed: dict[int, Signed] = {}
        self._hold = FIRST_HOLD
        self.moved = asyncio.Event()
        """Another release runs than before."""
        self.trusting: Callable[[], None] = lambda: None
        """Called after new trust bundles have been verified and kept."""
        self.recorded: Callable[[NodeRecord | None], None] = lambda record: None
        """Called after another record has been verified and kept."""
        self.issuer = ""
        """The root above the node's certificate, for the observation."""
        self.keys: Literal["", "tpm", "file"] = ""
        """How the node's keys lie on its disk, for the observation."""
        self._checked: int | None = None
        """Mark of the news that were checked last."""

    @property
    def node(self) -> Node:
        """The state, as it was saved last."""
        return self._kept.node

    @property
    def record(self) -> NodeRecord | None:
        """What the hub has signed about this node, as it was verified last."""
        return self._kept.record

    def changed(self) -> None:
        """Something that the observation shows may have changed."""
        self._dirty.set()

    async def run(self) -> None:
        """Put in place what should run, then listen and work for ever."""
        await self._put_in_place()
        await self._feed(machine.AgentStarted())
        await self._retarget()
        self._dirty.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._work())
            tasks.create_task(self._poll())
            tasks.create_task(self._report())

    async def converge(self) -> None:
        """Put right what drifted: called at the drift interval."""
        if isinstance(self.node.state, (machine.Applying, machine.RollingBack)):
            return  # the work is at it
        await self._put_in_place()

    async def _put_in_place(self) -> None:
        try:
            await self._parts.body.run(self._should_run())
        except EdgewiseError as error:
            self._parts.log.event("not as it should be", "error", problem=str(error))

    def _should_run(self) -> Installed | None:
        state = self.node.state
        release = self.node.running
        if isinstance(state, (machine.Applying, machine.Verifying)):
            release = state.target.release
        return self._parts.releases.staged(release) if release else None

    def drift_interval(self) -> timedelta:
        """How often files are looked at, by the release that runs."""
        running = self._parts.releases.staged(self.node.running) if self.node.running else None
        return timedelta(seconds=running.settings.drift_interval_s if running else 300.0)

    # Steps

    async def _feed(self, event: machine.Event) -> None:
        """One step: decide, save, then pass the actions on to the work."""
        async with self._turn:
            node, actions = step(self.node, event, self._parts.clock.now())
            if node.running != self.node.running:
                self.moved.set()
            await self._save(msgspec.structs.replace(self._kept, node=node))
            for action in actions:
                if isinstance(action, (machine.BeginFetch, machine.StopFetching)):
                    self._stop_waiting()
                if not isinstance(action, machine.StopFetching):
                    self._actions.put_nowait(action)
        if self._unsent():
            self._owing.set()
        self._dirty.set()

    async def _save(self, kept: Kept) -> None:
        """Until it is on disk: deciding without remembering is what must not happen."""
        while kept != self._kept:
            try:
                self._parts.memory.save(kept)
            except NeedsPerson as error:
                self._parts.log.event("cannot save", "error", problem=str(error))
                await self._parts.clock.sleep(DISK_PAUSE)
            else:
                self._kept = kept

    def _stop_waiting(self) -> None:
        """End a fetch or a wait for a window; nothing that has begun to apply."""
        while not self._actions.empty():
            self._actions.get_nowait()
        if self._doing is not None and isinstance(
            self._doing_what, (machine.BeginFetch, machine.AwaitWindow)
        ):
            self._doing.cancel()

    async def _retarget(self) -> None:
        record, channel = self._kept.record, self._kept.channel
        if record is None:
            return
        if not record.fleet or channel is None or channel.fleet != record.fleet:
            await self._feed(machine.TargetSet(machine.Target(self.node.running)))
            return
        node = self.node
        target = target_of(channel, record.index, node.running, node.previous)
        await self._feed(machine.TargetSet(target))

    # Work

    async def _work(self) -> None:
        while True:
            action = await self._actions.get()
            self._doing_what = action
            self._doing = asyncio.ensure_future(self._perform(action))
            try:
                await asyncio.wait({self._doing})
            finally:
                self._doing.cancel()
                doing, self._doing = self._doing, None
            if doing.cancelled():
                continue
            event = doing.result()
            if event is not None:
                await self._feed(event)
                if isinstance(event, (machine.Settled, machine.Restored)):
                    await self._retarget()

    async def _perform(self, action: machine.Action) -> machine.Event | None:
        self._parts.log.event("work", action=type(action).__name__)
        match action:
            case machine.BeginFetch(release):
                return await self._fetch(release)
            case machine.AwaitWindow(release):
                return await self._await_window(release)
            case machine.Apply(release, was):
                return await self._apply(release, was)
            case machine.Settle(release, was):
                return await self._settle(release, was)
            case machine.Restore(release, failed):
                return await self._restore(release, failed)
            case machine.Confirm():
                self._confirm()
                return None
            case machine.StopFetching():
                return None  # done at once, in _feed
            case _:
                assert_never(action)

    async def _fetch(self, release: str) -> machine.Event:
        backoff = Backoff(self._parts.chance, cap=timedelta(minutes=5))
        self._progress = 0.0
        await self._wait_for_turn(release)
        while True:
            record = self._kept.record
            if record is None:
                return machine.FetchFailed(release, "this node has no record any more", True)
            await self._open(self._download_window())
            try:
                installed = await self._while_open(release, record)
                if installed is None:
                    continue  # the window has closed: it goes on at the next opening
            except TryLater as error:
                wait = max(backoff.next(), min(error.wait, timedelta(minutes=5)))
                self._parts.log.event("fetch broke off", "warning", problem=str(error), wait=wait)
                await self._feed(machine.FetchFailed(release, str(error), False))
                await self._parts.clock.sleep(wait)
            except EdgewiseError as error:
                return machine.FetchFailed(release, f"{error} {error.hint}".strip(), True)
            else:
                was = self._staged_or_none(self.node.running)
                fetch = machine.Fetch(
                    installed.bytes_fetched,
                    installed.bytes_full,
                    installed.changed_since(was),
                    installed.traffic,
                )
                self._say_fetched(installed)
                same = was is not None and was.parts() == installed.parts()
                return machine.Fetched(release, same, fetch)

    def _say_fetched(self, installed: Installed) -> None:
        """One line with planned and used bytes by way."""
        traffic = installed.traffic
        ways = {f"{way}_bytes": count for way, count in traffic.used.items()}
        ways |= {f"{way}_planned": count for way, count in traffic.planned.items()}
        fields: dict[str, object] = {"requests": traffic.requests, **ways}
        self._parts.log.event("fetched", "info", **fields)
        for one in traffic.refused:
            self._parts.log.event(
                "refused", "warning", what=one.what[:12], why=one.why, bytes=one.bytes
            )

    def _at(self, progress: float) -> None:
        if progress - self._progress >= 0.1:
            self._progress = round(progress, 2)
            self._dirty.set()

    async def _wait_for_turn(self, release: str) -> None:
        """Spread many nodes' starts, where the fleet asks for it; seen as a window."""
        running = self._download_window()
        spread = running.settings.travel.spread_s if running else 0.0
        if spread <= 0:
            return
        wait = timedelta(seconds=spread * share_of(self._about.name, release))
        try:
            self._say_shut(("download", self._parts.clock.now() + wait))
            await self._parts.clock.sleep(wait)
        finally:
            self._say_shut(None)

    async def _while_open(self, release: str, record: NodeRecord) -> Installed | None:
        """Fetch until the download window closes; None: it has, and what came is kept."""
        running = self._download_window()
        window = running.settings.download_window if running else None
        fetch = asyncio.ensure_future(self._parts.crypto.fetch(release, record, self._at))
        try:
            while window is not None and not fetch.done():
                now = self._parts.clock.now()
                end = closes(window, now, self._about.zone)
                if end is None or end <= now:
                    return None
                look = asyncio.ensure_future(self._parts.clock.sleep(min(WINDOW_LOOK, end - now)))
                try:
                    await asyncio.wait({fetch, look}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    look.cancel()
            return await fetch
        finally:
            if not fetch.done():
                fetch.cancel()
                await asyncio.wait({fetch})

    def _download_window(self) -> Installed | None:
        """The release that runs says when to download: the new one is not here yet."""
        return self._staged_or_none(self.node.running)

    async def _open(self, installed: Installed | None, *, apply: bool = False) -> None:
        if installed is None:
            return
        settings = installed.settings
        window = settings.apply_window if apply else settings.download_window
        try:
            while True:
                now = self._parts.clock.now()
                opening = next_open(window, now, self._about.zone)
                if opening is not None and opening <= now:
                    return
                self._say_shut(("apply" if apply else "download", opening))
                wait = WINDOW_LOOK if opening is None else min(WINDOW_LOOK, opening - now)
                await self._parts.clock.sleep(wait)
        finally:
            self._say_shut(None)

    def _say_shut(self, shut: tuple[Literal["download", "apply"], datetime | None] | None) -> None:
        if shut != self._shut:
            self._shut = shut
            self._dirty.set()

    async def _await_window(self, release: str) -> machine.Event:
        await self._open(self._staged_or_none(release), apply=True)
        return machine.WindowOpened(release)

    async def _apply(self, release: str, was: str) -> machine.Event:
        before = self._staged_or_none(was)
        try:
            installed = self._parts.releases.activate(release)
            await self._parts.body.update(installed, before)
        except EdgewiseError as error:
            return machine.Unhealthy(release, f"cannot be applied: {error}")
        return machine.Applied(release)

    async def _settle(self, release: str, was: str) -> machine.Event:
        installed = self._staged_or_none(release)
        if installed is None:
            return machine.Unhealthy(release, "its directory is gone")
        problem = await self._parts.body.settle(installed, self._staged_or_none(was))
        return machine.Unhealthy(release, problem) if problem else machine.Settled(release)

    async def _restore(self, release: str, failed: str) -> machine.Event:
        releases = self._parts.releases
        try:
            active = releases.active()
            if release and active is not None and active.release == failed:
                before = releases.previous()
                if before is not None and before.release == release:
                    releases.put_back()
                else:
                    releases.activate(release)
            await self._parts.body.run(self._staged_or_none(release))
        except EdgewiseError as error:
            return machine.Restored(str(error))
        return machine.Restored()

    def _staged_or_none(self, release: str) -> Installed | None:
        return self._parts.releases.staged(release) if release else None

    def _confirm(self) -> None:
        self._parts.body.confirm()
        node = self.node
        keep = {node.running, node.previous, target_release(node), *self._parts.body.in_use()}
        freed = self._parts.releases.collect(keep - {""})
        self._parts.log.event("collected", bytes=freed)

    # Hearing

    async def _poll(self) -> None:
        backoff = Backoff(self._parts.chance)
        while True:
            try:
                reply = await self._parts.line.exchange(self._request(), self._hold)
                if reply is not None:
                    await self._take(reply)
                backoff.reset()
            except EdgewiseError as error:
                self._sent = None  # whoever answers next may know nothing of us
                wait = backoff.next()
                if isinstance(error, TryLater) and error.wait > wait > timedelta(seconds=1):
                    # Asked to stay away, and not for the first time: do, but not all at once.
                    wait = min(error.wait, LONGEST_PAUSE) * (0.5 + self._parts.chance.fraction())
                self._parts.log.event("not in touch", "warning", problem=str(error), wait=wait)
                await self._parts.clock.sleep(wait)
                self._dirty.set()

    def _request(self) -> SyncRequest:
        record, channel = self._kept.record, self._kept.channel
        return SyncRequest(
            # Media say what the hub said once; 0 asks for what it says now.
            channel=channel.sequence if channel and not self._kept.offline else 0,
            fleet=channel.fleet if channel else "",
            record=record.sequence if record else 0,
            bundles=self._kept.bundles,
        )

    async def _take(self, reply: SyncReply, *, carried: bool = False) -> None:
        if not carried and MEDIA in reply.metadata:
            # An order's long life must hide nothing that the network could bring.
            others = {name: data for name, data in reply.metadata.items() if name != MEDIA}
            reply = msgspec.structs.replace(reply, metadata=others)
        self._hold = timedelta(seconds=max(1.0, min(reply.hold_s, 3600.0)))
        if reply.acknowledged:
            await self._feed(machine.Acknowledged(reply.acknowledged))
        if reply.record is None and not reply.metadata and reply.bundles is None:
            return
        async with self._taking:
            # A report that overtook the check of the same news is answered with it again.
            mark = hash((reply.record, frozenset(reply.metadata.items()), reply.bundles))
            if mark == self._checked:
                return
            news = await self._parts.crypto.verify(reply)
            before = self._kept.record
            kept = msgspec.structs.replace(
                self._kept,
                record=_newer_record(self._kept.record, news.record),
                channel=_newer_channel(self._kept.channel, news.channel, news.record),
                bundles=news.bundles or self._kept.bundles,
                offline=self._kept.offline if news.channel is None else news.offline,
            )
            async with self._turn:
                await self._save(msgspec.structs.replace(kept, node=self.node))
            self._checked = mark
            if self._kept.record != before:
                self.recorded(self._kept.record)
            if news.bundles:
                self.trusting()
                self.changed()
            await self._retarget()

    async def offered(self, order: SyncReply) -> None:
        """Take an order that came on removable media. Raises Untrusted, TryLater."""
        await self._take(
            msgspec.structs.replace(order, hold_s=self._hold.total_seconds()), carried=True
        )

    # Reporting

    async def _report(self) -> None:
        backoff = Backoff(self._parts.chance)
        while True:
            await self._dirty.wait()
            if not self._unsent():
                await self._pause_unless_owing()
            self._owing.clear()
            self._dirty.clear()
            observation = self.observation()
            if observation == self._sent and not self._unsent():
                continue
            try:
                receipts = await self._sign()
                request = msgspec.structs.replace(
                    self._request(),
                    observation=None if observation == self._sent else observation,
                    receipts=receipts,
                    hold_s=0.0,
                )
                reply = await self._parts.line.exchange(request, timedelta())
                self._sent = observation
                if reply is not None:
                    await self._take(reply)
                backoff.reset()
            except EdgewiseError as error:
                self._parts.log.event("report waits", "warning", problem=str(error))
                await self._parts.clock.sleep(backoff.next())
                self._dirty.set()

    async def _pause_unless_owing(self) -> None:
        """Gather changes; a receipt that comes meanwhile ends it, rollouts wait for those."""
        pause = asyncio.ensure_future(self._parts.clock.sleep(REPORT_PAUSE))
        owing = asyncio.ensure_future(self._owing.wait())
        try:
            await asyncio.wait({pause, owing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pause.cancel()
            owing.cancel()

    def _unsent(self) -> bool:
        return bool(self.node.owed)

    async def _sign(self) -> tuple[Signed, ...]:
        owed = self.node.owed
        fresh = tuple(r for r in owed if r.sequence not in self._signed)
        if fresh:
            signed = await self._parts.crypto.sign(fresh)
            self._signed |= {r.sequence: s for r, s in zip(fresh, signed, strict=True)}
        self._signed = {r.sequence: self._signed[r.sequence] for r in owed}
        return tuple(self._signed.values())

    def observation(self) -> Observation:
        """The node as it is now."""
        node, look = self.node, self._parts.body.look()
        phase, reason = phase_of(node)
        free = 0
        with contextlib.suppress(OSError):
            free = self._parts.releases.free_bytes() // FREE_STEP * FREE_STEP
        return Observation(
            running=node.running,
            previous=node.previous,
            target=target_release(node),
            phase=phase,
            reason=(reason or look.problem)[:500],
            health=look.health,
            apps=look.apps,
            drifted=look.drifted,
            progress=self._progress if phase == "Downloading" else 0.0,
            window=self._shut[0] if self._shut else "",
            opens=self._shut[1] if self._shut else None,
            platform=self._about.platform,
            version=self._about.version,
            mode=self._about.mode,
            boot_id=self._about.boot_id,
            free_bytes=free,
            channel=self._kept.channel.sequence if self._kept.channel else 0,
            bundles=self._kept.bundles,
            issuer=self.issuer,
            keys=self.keys,
        )


def _newer_record(old: NodeRecord | None, new: NodeRecord | None) -> NodeRecord | None:
    if old is None or new is None:
        return new or old
    return new if new.sequence >= old.sequence else old


def _newer_channel(
    old: Channel | None, new: Channel | None, record: NodeRecord | None
) -> Channel | None:
    if new is None:
        moved = record is not None and old is not None and record.fleet != old.fleet
        return None if moved else old
    if old is not None and old.fleet == new.fleet and new.sequence < old.sequence:
        return old
    return new
