"""A fleet in memory with the rollout that runs in it: every decision about it, as values.

Nothing here saves or does anything: each method adds to a ``Change`` what has to be saved
and done, and the engine commits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

import msgspec

from edgewise.model.rules import Gate
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout import fleet as ledger
from edgewise.rollout import waves
from edgewise.rollout.fleet import Decision, Fleet, Member, Proposal
from edgewise.rollout.ports import Change, NodeSeen, Notice, Revert, Reverted, Saved
from edgewise.rollout.presence import Presence
from edgewise.rollout.states import (
    AskGate,
    Ended,
    Event,
    Heard,
    HoldChanged,
    Left,
    Moved,
    Notify,
    Offline,
    Online,
    Outcome,
    RollingBack,
    RolloutPlan,
    RulesChanged,
    State,
    Supersede,
    Undo,
    WaitingForWindow,
)

_replace = msgspec.structs.replace


@dataclass(frozen=True, slots=True)
class Moment:
    """What a decision depends on besides the fleet."""

    now: datetime
    actor: str
    new_id: Callable[[], str]
    """Makes the tail of an identifier that was never used."""
    seen: Mapping[str, NodeSeen]
    """Last contacts of all nodes."""


def revert_ended(wanted: Revert, found: Reverted, now: datetime) -> Change:
    """What is saved when a commit was reverted, or could not be: a line and a notice."""
    rollout = wanted.rollout
    line = Moved(now, wanted.state, "hub", found.text)
    event: Literal["CommitReverted", "RevertNeeded"] = (
        "CommitReverted" if found.done else "RevertNeeded"
    )
    notice = Notice(f"{rollout}-revert", now, event, wanted.fleet, rollout, found.text)
    return Change(log={rollout: [line]}, notices=[notice], reverted=[rollout])


@dataclass(slots=True)
class Live:
    """One fleet. ``plan`` and ``state`` are both set while a rollout runs."""

    fleet: Fleet
    presence: Presence
    plan: RolloutPlan | None = None
    state: State | None = None
    inbox: list[Event] = field(default_factory=list)
    receipts: list[Receipt] = field(default_factory=list)
    wake_at: datetime | None = None
    questions: list[tuple[str, AskGate, Gate]] = field(default_factory=list)
    """Gates to ask, with the rollout that asks; not saved: a restart asks again."""

    @property
    def saved(self) -> Saved | None:
        """The running rollout as the store would give it."""
        if self.plan is None or self.state is None:
            return None
        return Saved(self.plan, self.state.head, self.state.course, None)

    @property
    def due(self) -> datetime | None:
        """When something is due without an event."""
        times = [self.wake_at, self.presence.next_due]
        return min((t for t in times if t is not None), default=None)

    def contacts(self, seen_by: Mapping[str, NodeSeen]) -> list[Event]:
        """What the machine has to know about contact when it starts to follow a rollout."""
        events: list[Event] = []
        for index, name in self.fleet.names().items():
            online = name in self.presence.online
            events.append(Online(index) if online else Offline(index))
            seen = seen_by.get(name)
            if online and seen is not None and seen.observation is not None:
                events.append(Heard(index, seen.heard, seen.observation))
        return events

    def decide(self, m: Moment, change: Change) -> bool:
        """Take what has come in and what is due; whether a node went offline."""
        silent = self.presence.silent(m.now)
        self.inbox += [Offline(self.fleet.members[n].index) for n in silent]
        change.receipts += self.receipts
        self.receipts = []
        if self.wake_at is not None and self.wake_at <= m.now:
            self.step(self._take_inbox(), m, change)
        else:
            self.catch_up(m, change)
        if self.plan is None:
            self.take_up_queued(m, change)
        return bool(silent)

    def catch_up(self, m: Moment, change: Change) -> None:
        """Apply what has come in."""
        events = self._take_inbox()
        if events and self.plan is not None:
            self.step(events, m, change)

    def _take_inbox(self) -> list[Event]:
        events, self.inbox = self.inbox, []
        return events

    def step(self, events: Sequence[Event], m: Moment, change: Change) -> Outcome:
        """One step of the running rollout, and what it means for the fleet."""
        assert self.plan is not None
        assert self.state is not None
        plan, before, now = self.plan, self.state, m.now
        out = waves.step(plan, before, events, now)
        self.plan, self.state, self.wake_at = out.plan, out.state, out.wake_at
        identifier = plan.id
        if out.plan is not plan:
            change.plans.append(out.plan)
        if out.changed:
            change.rows[identifier] = {**change.rows.get(identifier, {}), **out.changed}
        head = out.state.head
        ended = now if isinstance(head, Ended) else None
        if head is not before.head or out.state.course is not before.course:
            change.heads[identifier] = (head, out.state.course, ended)
        if out.transitions:
            change.log[identifier] = (*change.log.get(identifier, ()), *out.transitions)
        self._take_effects(out, m, change)
        if head is not before.head:
            members = ledger.settle(self.fleet, out.plan, out.state, now)
            self.members_changed(members, change)
        if ended is not None:
            if self.fleet.state.rollout:
                self.fleet.state = _replace(self.fleet.state, rollout="")
            self.plan = self.state = self.wake_at = None
        self.say(change)
        return out

    def _take_effects(self, out: Outcome, m: Moment, change: Change) -> None:
        plan, now = out.plan, m.now
        for effect in out.effects:
            if isinstance(effect, Notify):
                identifier = f"{plan.id}-{m.new_id()}"
                change.notices.append(
                    Notice(identifier, now, effect.event, plan.fleet, plan.id, effect.text)
                )
            elif isinstance(effect, Undo):
                self._undo(effect, plan, m, change)
            elif isinstance(effect, AskGate):
                gates = {g.name: g for g in plan.stages[effect.stage].gates}
                self.questions.append((plan.id, effect, gates[effect.gate]))

    def _undo(self, effect: Undo, plan: RolloutPlan, m: Moment, change: Change) -> None:
        if self.fleet.state.latest != plan.release:
            why = "the commit is not reverted: a newer one is already there"
            lines = change.log.get(plan.id, ())
            change.log[plan.id] = (*lines, Moved(m.now, effect.state, "hub", why))
            return
        request = plan.rules.on_failure_git == "OpenRevertRequest"
        good = self.fleet.state.revision
        change.reverts.append(
            Revert(
                plan.id, m.now, plan.fleet, plan.revision, good, request, effect.state,
                effect.reason,
            )
        )  # fmt: skip

    def say(self, change: Change, *, again: bool = False) -> None:
        """Bring the channel up to date, and remember to announce it if it says more.

        ``again``: also when it does not, with the next sequence.
        """
        channel = ledger.channel_of(self.fleet, self.plan, self.state)
        name = self.fleet.state.name
        if again and channel == self.fleet.state.channel:
            channel = _replace(channel, sequence=channel.sequence + 1)
        if channel != self.fleet.state.channel:
            self.fleet.state = _replace(self.fleet.state, channel=channel)
            change.announce[name] = channel
        change.fleets[name] = self.fleet.state

    def members_changed(self, members: Mapping[str, Member], change: Change) -> None:
        """Remember that these have to be saved."""
        if members:
            change.members.setdefault(self.fleet.state.name, {}).update(members)

    def take_up_queued(self, m: Moment, change: Change) -> None:
        """A rollout ended: take up the proposal that waited for it."""
        newest = self.fleet.proposals.get(self.fleet.state.latest)
        if self.fleet.state.queued and newest is not None and not newest.suspended:
            self.consider(newest, m, change)

    def consider(self, new: Proposal, m: Moment, change: Change) -> Decision:
        """Decide on a proposal and begin what follows from it."""
        self.catch_up(m, change)
        fleet = self.fleet
        returning = (
            self.state is not None
            and isinstance(self.state.head, RollingBack)
            and len(self.state.table.waiting_back) > 0
        )
        in_window = self.state is not None and isinstance(self.state.head, WaitingForWindow)
        decision = ledger.decide(fleet, new, self.plan, returning=returning, in_window=in_window)
        self.membership(new, m, change)
        queued = decision.way == "Queue"
        waits = decision.reason if decision.way in ("Queue", "Refuse") else ""
        fleet.state = _replace(fleet.state, queued=queued, reason=waits)
        if decision.way == "Rules":
            self._edit_rules(new, m, change)
        elif decision.way in ("Adopt", "Nothing") and self.plan is None:
            good = (new.release, *(g for g in fleet.state.good if g != new.release))
            fleet.state = _replace(
                fleet.state,
                stable=new.release,
                revision=new.revision,
                good=good[: ledger.GOOD_KEPT],
            )
        elif decision.way == "Revert":
            self.supersede(new, m, change, keep=False)
            fleet.state = _replace(fleet.state, revision=new.revision)
        elif decision.way in ("Full", "Restore"):
            self.begin(new, decision, m, change)
        self.say(change)
        return decision

    def membership(self, new: Proposal, m: Moment, change: Change) -> None:
        """Enrol newcomers, let the others go, and follow the documents' holds."""
        fleet = self.fleet
        held = {n for n in new.members if n in fleet.members and fleet.is_held(n)}
        members, left = ledger.enrol(fleet, new)
        self.members_changed(members, change)
        fleet.proposals[new.release] = new
        fleet.state = _replace(fleet.state, latest=new.release)
        change.proposals.append(new)
        for name in left:
            self.inbox.append(Left(fleet.members[name].index))
        self.presence.forget(left)
        for name in new.members:
            if fleet.is_held(name) != (name in held):
                self.inbox.append(HoldChanged(fleet.members[name].index, name not in held))
        for name in members:
            seen = m.seen.get(name)
            if name in new.members and seen and seen.heard + self.presence.after > m.now:
                self.presence.heard(name, seen.heard)
        fleet.update({})

    def _edit_rules(self, new: Proposal, m: Moment, change: Change) -> None:
        plan = self.plan
        assert plan is not None
        if new.rules in (plan.rules, plan.next_rules):
            return
        members = self.fleet.members
        stages = {members[n].index: c.stage for n, c in new.members.items()}
        self.step([RulesChanged(new.rules, stages, m.actor)], m, change)

    def supersede(self, new: Proposal, m: Moment, change: Change, *, keep: bool) -> int:
        """End the running rollout; returns the stage that it had reached."""
        if self.plan is None or self.state is None:
            return 0
        plan, state = self.plan, self.state
        stage = getattr(state.head, "stage", 0)
        if keep and not isinstance(state.head, RollingBack):
            kept = ledger.keep_superseded(self.fleet, plan, state)
            self.members_changed(kept, change)
        why = f"{new.revision} takes its place"
        self.step([Supersede(new.release, m.actor, why)], m, change)
        return stage if plan.rules.on_supersede == "Continue" else 0

    def begin(self, new: Proposal, decision: Decision, m: Moment, change: Change) -> None:
        """Begin a rollout, in place of the one that runs."""
        first = self.supersede(new, m, change, keep=True)
        identifier = f"{new.fleet}-{m.new_id()}"
        plan = ledger.plan_for(self.fleet, new, decision.way, identifier, now=m.now, first=first)
        self.plan, self.state = plan, waves.begin(plan)
        self.fleet.state = _replace(self.fleet.state, rollout=identifier)
        self.inbox = []
        change.plans.append(plan)
        self.step(self.contacts(m.seen), m, change)

    def heard(self, node: str, at: datetime, said: Observation | None, now: datetime) -> bool:
        """Note a contact; whether it changes what people see."""
        index = self.fleet.members[node].index
        back = at + self.presence.after > now and self.presence.heard(node, at)
        if self.plan is None or self.state is None:
            return back or said is not None
        if back:
            self.inbox.append(Online(index))
        row = self.state.table.rows.get(index)
        starts_clock = row is not None and row.dispatched is not None and row.contact is None
        if row is not None and (said is not None or starts_clock):
            self.inbox.append(Heard(index, at, said))
        return back or said is not None
