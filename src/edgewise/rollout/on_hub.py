"""Rollouts on the hub: feed the machine, save what it decides, then do it.

One lock, one decision at a time: state and what is still to be done are saved in one
transaction and performed afterwards, so a hub that is killed at any instant goes on
where it was. Receipts and contacts are gathered for a moment and decided in batches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta

import msgspec

from edgewise.model.errors import BadUsage, Conflict, NotFound, TryLater
from edgewise.model.rules import Gate
from edgewise.protocol.api import (
    Explanation,
    FleetStatus,
    HeldChange,
    RolloutDetail,
    RolloutSummary,
)
from edgewise.protocol.channel import Channel
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout import views, waves
from edgewise.rollout.fleet import Decision, Fleet, FleetState, Proposal
from edgewise.rollout.live import Live, Moment, revert_ended
from edgewise.rollout.outside import Outside, Pace, Placement
from edgewise.rollout.ports import (
    Change,
    NodeSeen,
    Notice,
    Revert,
    Saved,
)
from edgewise.rollout.presence import Presence
from edgewise.rollout.states import (
    AskGate,
    Command,
    GateAnswered,
    HoldChanged,
    Received,
    Restarted,
    RollingBack,
    Verb,
)
from edgewise.rollout.table import Table
from edgewise.rollout.views import Sees
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

__all__ = ["Outside", "Pace", "Placement", "Rollouts"]

_replace = msgspec.structs.replace
TOPICS_KEPT = 10_000
"""Version counters of fleets and rollouts; a watcher of a dropped one is told once more."""
_VERBS: dict[str, Verb] = {v: v for v in ("approve", "pause", "resume", "abort")}


class Rollouts:
    """All fleets and their rollouts. ``start`` first, then ``run`` beside the rest."""

    def __init__(
        self, outside: Outside, clock: Clock, chance: Chance, log: Log, pace: Pace | None = None
    ) -> None:
        self._out = outside
        self._clock = clock
        self._chance = chance
        self._log = log
        self._pace = pace or Pace()
        self._lock = asyncio.Lock()
        self._lives: dict[str, Live] = {}
        self._home: dict[str, str] = {}
        self._seen: dict[str, NodeSeen] = {}
        self._unsaved: dict[str, NodeSeen] = {}
        self._flushing = asyncio.Lock()
        self._held: dict[str, HeldChange] = {}
        self._announce: dict[str, Channel] = {}
        self._notices: dict[str, Notice] = {}
        self._reverts: dict[str, Revert] = {}
        self._questions: list[tuple[str, AskGate, Gate]] = []
        self._strays: list[Receipt] = []
        self._summaries: dict[str, RolloutSummary] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._work = asyncio.Event()
        self._undo = asyncio.Event()
        self._versions: dict[str, int] = {}
        self._watchers: dict[str, asyncio.Event] = {}

    # Starting and running.

    async def start(self) -> None:
        """Take up everything that was saved; call it once, before anything else."""
        loaded = await self._out.store.load()
        seen = {s.node: s for s in await self._out.nodes.all()}
        self._seen = {**seen, **self._unsaved}
        self._lives, self._home = {}, {}
        self._held = {h.id: h for h in loaded.held}
        self._announce = dict(loaded.undone.announce)
        self._notices = {n.id: n for n in loaded.undone.notices}
        self._reverts = {r.rollout: r for r in loaded.undone.reverts}
        self._questions = []
        for name, state in loaded.fleets.items():
            fleet = Fleet(state, dict(loaded.members.get(name, {})))
            fleet.proposals = {p.release: p for p in loaded.proposals if p.fleet == name}
            self._lives[name] = live = Live(fleet, Presence(_offline_after(fleet)))
            self._home.update({n: name for n, m in fleet.members.items() if not m.gone})
            self._count_present(live)
        for saved in loaded.running:
            live = self._lives[saved.plan.fleet]
            rows = await self._out.store.rows(saved.plan.id)
            live.plan = saved.plan
            live.state = waves.resume_from(saved.plan, saved.head, saved.course, dict(rows))
            live.inbox = [Restarted(), *live.contacts(self._seen)]
        for event in (self._wake, self._work, self._undo):
            event.set()

    def _count_present(self, live: Live) -> None:
        """Who was online when the hub last wrote is still counted so for offlineAfter: the
        hub's own absence is not the nodes' silence."""
        heard = {n: s.heard for n in live.fleet.members if (s := self._seen.get(n)) is not None}
        newest = max((s.heard for s in self._seen.values()), default=self._clock.now())
        for name, at in heard.items():
            if at + live.presence.after > newest:
                live.presence.heard(name, self._clock.now())

    async def run(self) -> None:
        """Decide, perform, ask gates and write last contacts, until cancelled."""
        async with asyncio.TaskGroup() as parts:
            parts.create_task(self._decide_for_ever())
            parts.create_task(self._perform_for_ever(self._work, self.perform))
            parts.create_task(self._perform_for_ever(self._undo, self.revert))
            parts.create_task(self._flush_for_ever())

    async def _decide_for_ever(self) -> None:
        while True:
            await self._sleep_until_needed()
            await self._clock.sleep(self._pace.coalesce)
            await self.decide()

    async def _sleep_until_needed(self) -> None:
        due = min((d for live in self._lives.values() if (d := live.due)), default=None)
        waits: set[asyncio.Future[object]] = {asyncio.ensure_future(self._wake.wait())}
        if due is not None:
            left = max(timedelta(), due - self._clock.now())
            waits.add(asyncio.ensure_future(self._clock.sleep(left)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def decide(self) -> None:
        """Decide on everything that has come in and everything that is due, once."""
        async with self._lock:
            self._wake.clear()
            waiting, self._waiting = self._waiting, []
            change = Change(receipts=self._strays)
            self._strays = []
            try:
                # Or a hub that dies now would take up decisions without what they rest on.
                await self.flush()
                for name, live in self._lives.items():
                    if live.decide(self._moment(), change):
                        self._bump(name)
                await self._commit(change)
            except BaseException as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(TryLater(f"the hub could not decide: {error}"))
                raise
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    def _moment(self, actor: str = "hub") -> Moment:
        return Moment(self._clock.now(), actor, lambda: self._chance.token(4).hex(), self._seen)

    async def _commit(self, change: Change) -> None:
        """Save; when that fails, memory is ahead of the store and is read again from it."""
        try:
            await self._out.store.commit(change)
        except BaseException:
            await self.start()
            raise
        self._announce.update(change.announce)
        self._notices.update({n.id: n for n in change.notices})
        for fleet in change.fleets:
            self._bump(fleet)
        self._reverts.update({r.rollout: r for r in change.reverts})
        for rollout in {*change.heads, *change.rows, *change.log}:
            self._bump(rollout)
        for rollout, lines in change.log.items():
            for line in lines:
                self._log.decision("rollout", because=line.reason, id=rollout, state=line.state)
        for live in self._lives.values():
            self._questions += live.questions
            live.questions = []
        if change.announce or change.notices or self._questions:
            self._work.set()
        if change.reverts:
            self._undo.set()

    # Proposals.

    async def propose(self, proposal: Proposal, *, actor: str) -> Decision:
        """What a commit (or a changed membership) wants one fleet to run.

        Call it for every fleet of every compile; repeating one changes nothing.
        """
        async with self._lock:
            change = Change()
            name = proposal.fleet
            live = self._lives.get(name)
            if live is None:
                fleet = Fleet(FleetState(name, Channel(name, 0)))
                live = self._lives[name] = Live(fleet, Presence(proposal.rules.offline_after))
            live.presence.after = proposal.rules.offline_after
            decision = live.consider(proposal, self._moment(actor), change)
            self._follow(live)
            await self._commit(change)
            keep = live.fleet.referenced() | ({live.plan.release} if live.plan else set())
            await self._out.store.drop_proposals(name, sorted(keep))
            live.fleet.proposals = {r: p for r, p in live.fleet.proposals.items() if r in keep}
            self._wake.set()
            return decision

    def _follow(self, live: Live) -> None:
        """Who is where, after a fleet's membership changed."""
        name, members = live.fleet.state.name, live.fleet.members
        for node, member in members.items():
            if not member.gone:
                self._home[node] = name
            elif self._home.get(node) == name:
                del self._home[node]

    async def retire(self, fleet: str, *, actor: str) -> None:
        """The fleet's document is gone: no members, no rollout; its channel stays as it is."""
        async with self._lock:
            live, change = self._live(fleet), Change()
            latest = live.fleet.proposals.get(live.fleet.state.latest)
            if latest is None:
                return
            nobody = _replace(latest, members={})
            moment = self._moment(actor)
            live.supersede(nobody, moment, change, keep=True)
            live.membership(nobody, moment, change)
            self._follow(live)
            live.inbox = []
            live.fleet.state = _replace(live.fleet.state, queued=False, reason="retired")
            live.say(change)
            await self._commit(change)

    # What nodes say.

    async def receive(self, receipts: Sequence[Receipt]) -> None:
        """Receipts whose signatures were verified. Returns when they are saved and counted.

        Raises TryLater when they could not be saved: the node sends them again.
        """
        if not receipts:
            return
        for receipt in receipts:
            live = self._lives.get(self._home.get(receipt.node, ""))
            if live is None:
                self._strays.append(receipt)
                continue
            live.receipts.append(receipt)
            live.inbox.append(Received(live.fleet.members[receipt.node].index, receipt))
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(saved)
        self._wake.set()
        await saved

    def observe(
        self, contacts: Mapping[str, tuple[datetime, Observation | None]], *, via: str = ""
    ) -> None:
        """Nodes that were heard, and what they said. ``via``: the relay's name."""
        now = self._clock.now()
        for node, (heard, observation) in contacts.items():
            old = self._seen.get(node)
            if old is not None and heard < old.heard <= now:
                continue  # relays bring contacts late; one from a later day is of a wrong clock
            said = observation or (old.observation if old else None)
            self._seen[node] = self._unsaved[node] = NodeSeen(node, heard, said, via)
            live = self._lives.get(self._home.get(node, ""))
            if live is not None:
                if live.heard(node, heard, observation, now):
                    self._bump(live.fleet.state.name)
                if live.inbox:
                    self._wake.set()

    # What people want.

    async def command(self, identifier: str, verb: str, *, actor: str, reason: str = "") -> None:
        """approve, pause, resume, abort or retry a rollout.

        Raises NotFound, BadUsage for another verb, Conflict when the state forbids it.
        """
        async with self._lock:
            change = Change()
            if verb == "retry":
                await self._retry(identifier, actor, reason, change)
            elif verb in _VERBS:
                live = await self._running(identifier)
                moment = self._moment(actor)
                events, live.inbox = [*live.inbox, Command(_VERBS[verb], actor, reason)], []
                out = live.step(events, moment, change)
                if live.plan is None:
                    live.take_up_queued(moment, change)
                await self._commit(change)
                if why := out.refused.get(verb):
                    raise Conflict(
                        f"cannot {verb}: {why}", hint="`edgewise rollout show` says more"
                    )
                return
            else:
                raise BadUsage(
                    f"rollouts do not know {verb!r}", hint="approve, pause, resume, abort or retry"
                )
            await self._commit(change)

    async def _running(self, identifier: str) -> Live:
        for live in self._lives.values():
            if live.plan is not None and live.plan.id == identifier:
                return live
        saved = await self._out.store.rollout(identifier)
        if saved is None:
            raise NotFound(f"there is no rollout {identifier!r}", hint="`edgewise rollout ls`")
        raise Conflict(
            f"rollout {identifier} has ended", hint="`edgewise rollout retry` starts anew"
        )

    async def _retry(self, identifier: str, actor: str, reason: str, change: Change) -> None:
        saved = await self._out.store.rollout(identifier)
        if saved is None:
            raise NotFound(f"there is no rollout {identifier!r}", hint="`edgewise rollout ls`")
        live, release = self._live(saved.plan.fleet), saved.plan.release
        state = live.fleet.state
        if state.latest != release or release == state.stable:
            raise Conflict(
                f"rollout {identifier} is not about the newest commit of fleet {state.name}",
                hint="push the commit that you want, or revert to it",
            )
        if live.state is not None and isinstance(live.state.head, RollingBack):
            raise Conflict(f"rollout {identifier} is still on its way back", hint="try it later")
        left = tuple(q for q in state.quarantined if q.release != release)
        live.fleet.state = _replace(state, quarantined=left, reason="", queued=False)
        why = Decision("Full", f"retried by {actor}: {reason}")
        live.begin(live.fleet.proposals[release], why, self._moment(actor), change)

    async def hold(self, node: str, held: bool, *, actor: str, reason: str = "") -> None:
        """Keep a node on what it runs, or let it go again. Raises NotFound."""
        async with self._lock:
            live, change = self._live(self._home.get(node, "")), Change()
            why = f"{actor}: {reason}".rstrip(": ") if held else ""
            member = _replace(live.fleet.members[node], held=held, hold_reason=why)
            live.fleet.update({node: member})
            live.members_changed({node: member}, change)
            if live.plan is not None:
                held_now = live.fleet.is_held(node)
                live.step([HoldChanged(member.index, held_now)], self._moment(actor), change)
            live.say(change)
            await self._commit(change)

    async def forget(self, node: str) -> None:
        """The node's enrolment is gone: so are its receipts and last contact. Its place in
        the fleet goes with the next compile."""
        self._seen.pop(node, None)
        self._unsaved.pop(node, None)
        await self._out.store.forget(node)
        await self._out.nodes.forget(node)

    # Changes that wait for a person (mass deletion).

    async def hold_change(self, held: HeldChange) -> None:
        """A commit that may not go on by itself; one per id."""
        async with self._lock:
            await self._commit(Change(held=[held]))
            self._held[held.id] = held

    def held(self) -> tuple[HeldChange, ...]:
        """Those that wait, oldest first."""
        return tuple(self._held.values())

    async def release_change(self, identifier: str) -> HeldChange | None:
        """Approved, or no longer wanted: returns it, None when there is no such change."""
        async with self._lock:
            if identifier not in self._held:
                return None
            await self._commit(Change(unheld=[identifier]))
            return self._held.pop(identifier)

    async def say_again(self, fleet: str) -> None:
        """Announce the channel with the next sequence: there is more to publish with it."""
        async with self._lock:
            change = Change()
            self._live(fleet).say(change, again=True)
            await self._commit(change)

    # Performing.

    async def _perform_for_ever(
        self, due: asyncio.Event, perform: Callable[[], Awaitable[None]]
    ) -> None:
        backoff = Backoff(self._chance)
        while True:
            await due.wait()
            due.clear()
            try:
                await perform()
            except TryLater as error:
                self._log.event("effects wait", "warning", because=str(error))
                await self._clock.sleep(backoff.next())
                due.set()
            else:
                backoff.reset()

    async def perform(self) -> None:
        """Do everything that was decided and is not done. Raises TryLater; safe to repeat."""
        for fleet, channel in list(self._announce.items()):
            await self._out.announcer.announce(channel)
            await self._out.store.announced(channel)
            if self._announce.get(fleet) is channel:
                del self._announce[fleet]
        for identifier, notice in list(self._notices.items()):
            await self._out.notices.notify(notice)
            await self._out.store.notified(identifier)
            self._notices.pop(identifier, None)
        questions, self._questions = self._questions, []
        await asyncio.gather(*(self._ask(*q) for q in questions))

    async def revert(self) -> None:
        """Undo the commits that failed, apart from ``perform``: git may take its time.

        Raises TryLater; safe to repeat.
        """
        for wanted in list(self._reverts.values()):
            found = await self._out.reverts.revert(wanted)
            async with self._lock:
                await self._commit(revert_ended(wanted, found, self._clock.now()))
                self._reverts.pop(wanted.rollout, None)

    async def _ask(self, rollout: str, question: AskGate, gate: Gate) -> None:
        answer, why = await self._out.gates.ask(gate)
        for live in self._lives.values():
            if live.plan is not None and live.plan.id == rollout:
                live.inbox.append(GateAnswered(question.stage, question.gate, answer, why))
                self._wake.set()

    async def _flush_for_ever(self) -> None:
        while True:
            await self._clock.sleep(self._pace.flush)
            await self.flush()

    async def flush(self) -> None:
        """Write the last contacts that are not written yet, in one batch; when it returns, all
        that was observed before is saved. Raises what the store raises, and loses nothing then.

        Callers that come while a batch is written share the next one.
        """
        async with self._flushing:
            batch, self._unsaved = self._unsaved, {}
            if not batch:
                return
            try:
                await self._out.nodes.save(tuple(batch.values()))
            except BaseException:
                self._unsaved = {**batch, **self._unsaved}
                raise

    # Reading.

    def _live(self, fleet: str) -> Live:
        if (live := self._lives.get(fleet)) is None:
            raise NotFound(f"there is no fleet {fleet!r} here", hint="`edgewise status` lists them")
        return live

    def channel(self, fleet: str) -> Channel:
        """What the fleet's channel says. Raises NotFound."""
        return self._live(fleet).fleet.state.channel

    def placement(self, node: str) -> Placement | None:
        """Fleet and index of a node; None when no fleet selects it."""
        live = self._lives.get(self._home.get(node, ""))
        if live is None:
            return None
        fleet = live.fleet
        return Placement(fleet.state.name, fleet.members[node].index, fleet.is_held(node))

    def last_seen(self, node: str) -> NodeSeen | None:
        """Last contact and observation."""
        return self._seen.get(node)

    def is_online(self, node: str) -> bool:
        """Heard within offlineAfter."""
        live = self._lives.get(self._home.get(node, ""))
        return live is not None and node in live.presence.online

    def fleets(self) -> tuple[FleetStatus, ...]:
        """Every fleet in one line, by name."""
        return tuple(self.fleet_status(name) for name in sorted(self._lives))

    def fleet_status(self, fleet: str, sees: Sees | None = None) -> FleetStatus:
        """One fleet, as far as ``sees`` lets somebody see its nodes. Raises NotFound."""
        live = self._live(fleet)
        seen = {n: self._seen[n].observation for n in live.fleet.members if n in self._seen}
        return views.fleet_status(live.fleet, live.saved, seen, live.presence.online, sees)

    def members(self, fleet: str) -> tuple[str, ...]:
        """Names of the nodes of a fleet; none for a fleet that is not known."""
        live = self._lives.get(fleet)
        members = live.fleet.members.items() if live is not None else ()
        return tuple(name for name, member in members if not member.gone)

    async def fleet_of(self, identifier: str) -> str:
        """The fleet of a rollout. Raises NotFound."""
        return (await self._saved(identifier))[0].plan.fleet

    async def rollouts(
        self, fleet: str = "", *, limit: int = 100, after: str = ""
    ) -> tuple[RolloutSummary, ...]:
        """Newest first."""
        found = await self._out.store.rollouts(fleet, limit=limit, after=after)
        return tuple([await self._summary(s) for s in found])

    async def _summary(self, saved: Saved) -> RolloutSummary:
        """An ended rollout never changes again: its rows are counted once."""
        identifier = saved.plan.id
        if (known := self._summaries.get(identifier)) is not None:
            return known
        live = self._lives.get(saved.plan.fleet)
        if live is not None and live.state is not None and live.plan is not None:
            if live.plan.id == identifier:
                return views.summary(saved, *views.tally(live.state.table.rows))
        rows = Table(saved.plan, await self._out.store.rows(identifier)).rows
        summary = views.summary(saved, *views.tally(rows))
        if saved.ended is not None:
            if len(self._summaries) >= TOPICS_KEPT:
                del self._summaries[next(iter(self._summaries))]
            self._summaries[identifier] = summary
        return summary

    async def detail(self, identifier: str, sees: Sees | None = None) -> RolloutDetail:
        """One rollout with its stages, log and failures; ``sees`` as ``fleet_status``.

        Raises NotFound.
        """
        saved, table = await self._saved(identifier)
        log = await self._out.store.log(identifier)
        if table is None:
            table = Table(saved.plan, await self._out.store.rows(identifier))
        if sees is not None:
            return views.limited(saved, table.rows, log, sees)
        return views.detail(saved, table, log)

    async def _saved(self, identifier: str) -> tuple[Saved, Table | None]:
        """A rollout, with its table while it runs."""
        for live in self._lives.values():
            saved = live.saved
            if saved is not None and live.state is not None and saved.plan.id == identifier:
                return saved, live.state.table
        found = await self._out.store.rollout(identifier)
        if found is None:
            raise NotFound(f"there is no rollout {identifier!r}", hint="`edgewise rollout ls`")
        return found, None

    def explain(self, node: str) -> Explanation:
        """Why this node runs what it runs."""
        live = self._lives.get(self._home.get(node, ""))
        if live is None:
            return Explanation(node, ("No fleet selects it, so it keeps what it runs.",))
        seen = self._seen.get(node)
        running = (live.plan, live.state) if live.plan and live.state else None
        return views.explain(node, live.fleet, running, seen.observation if seen else None)

    async def changed(self, topic: str, after: int) -> int:
        """Wait until the version of a fleet (or rollout id) is not ``after``; returns it."""
        while self._versions.get(topic, 0) == after:
            await self._watchers.setdefault(topic, asyncio.Event()).wait()
        return self._versions.get(topic, 0)

    def _bump(self, topic: str) -> None:
        if len(self._versions) > TOPICS_KEPT:
            del self._versions[next(iter(self._versions))]
        self._versions[topic] = self._versions.get(topic, 0) + 1
        if (event := self._watchers.pop(topic, None)) is not None:
            event.set()


def _offline_after(fleet: Fleet) -> timedelta:
    latest = fleet.proposals.get(fleet.state.latest)
    return latest.rules.offline_after if latest else timedelta(minutes=5)
