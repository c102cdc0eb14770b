"""One fleet over time: what a new compile means for it, and what its channel says.

Pure. Rollouts come and go; the fleet keeps the indexes of its nodes, its stable release,
what is quarantined, and who keeps running something else.

Laws:
1. An index belongs to one node name for as long as the channel lives.
2. A quarantined release is never started: it takes another release, or a person's retry.
3. What changes no member is adopted without a rollout; what succeeded here before is
   restored without stages; everything else goes through all stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import msgspec

from edgewise.model.quantity import Share
from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.channel import Bitmap, Channel
from edgewise.rollout.states import (
    Cancelled,
    Failed,
    PlannedNode,
    RolledBack,
    RollingBack,
    RolloutPlan,
    State,
    Succeeded,
)

_replace = msgspec.structs.replace
GOOD_KEPT: Final = 16
"""Releases that succeeded, remembered per fleet so that a revert needs no stages."""
QUARANTINE_KEPT: Final = 64
"""Quarantined releases per fleet; the oldest are forgotten first."""


class MemberPlan(msgspec.Struct, frozen=True, array_like=True):
    """A member as compiled for one release."""

    selection: str
    """Digest of what this node runs under the release: equal selections need no change."""
    stage: str
    group: str
    """Values of the disruption budget's labels (``group_of``)."""
    held: bool = False


class Proposal(msgspec.Struct, frozen=True):
    """What a commit wants one fleet to run: made from sync's CompiledFleet."""

    fleet: str
    release: str
    revision: str
    rules: RolloutRules
    members: dict[str, MemberPlan]
    suspended: bool = False


def group_of(node: str, labels: Mapping[str, str], rules: RolloutRules) -> str:
    """The disruption group of a node; without groupBy every node is its own."""
    if not rules.group_by:
        return node
    return ",".join(f"{key}={labels.get(key, '')}" for key in rules.group_by)


class Quarantined(msgspec.Struct, frozen=True):
    """A release that nobody may start, and why."""

    release: str
    reason: str
    at: datetime
    rollout: str
    in_channel: bool = False
    """Nodes that run it are told to leave it (not while a rollback keeps to a budget)."""


class Member(msgspec.Struct, frozen=True):
    """One node of the fleet."""

    index: int
    runs: str = ""
    """Release of a superseded rollout that it may run and keeps; empty: the stable one."""
    confirmed: bool = False
    """It sent a receipt for ``runs``."""
    held: bool = False
    hold_reason: str = ""
    """Set by a person's hold; the document's hold is in the proposal."""
    gone: bool = False


class FleetState(msgspec.Struct, frozen=True):
    """What is saved of a fleet besides its members."""

    name: str
    channel: Channel
    stable: str = ""
    revision: str = ""
    """Commit behind ``stable``."""
    latest: str = ""
    """Release of the newest proposal."""
    rollout: str = ""
    """The rollout that runs, or empty."""
    queued: bool = False
    """The newest proposal waits until the rollout has ended, or the fleet is resumed."""
    reason: str = ""
    """Why the newest proposal is not on its way."""
    good: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    next_index: int = 0

    def quarantine_of(self, release: str) -> Quarantined | None:
        """Why ``release`` may not start here, if it may not."""
        return next((q for q in self.quarantined if q.release == release), None)


@dataclass(slots=True)
class Fleet:
    """A fleet in memory."""

    state: FleetState
    members: dict[str, Member] = field(default_factory=dict)
    proposals: dict[str, Proposal] = field(default_factory=dict)
    """By release: the stable one, the newest, and those that some node keeps."""
    _stay: list[int] | None = None

    def update(self, changed: Mapping[str, Member]) -> None:
        """Members that changed."""
        self.members.update(changed)
        self._stay = None

    def stay(self) -> list[int]:
        """Indexes of the members that keep what they run: held, or superseded in flight."""
        if self._stay is None:
            self._stay = [
                m.index
                for n, m in self.members.items()
                if not m.gone and (m.runs or self.is_held(n))
            ]
        return self._stay

    def selection(self, name: str, release: str) -> str | None:
        """What ``name`` runs under ``release``; None when it was no member then."""
        proposal = self.proposals.get(release)
        member = proposal.members.get(name) if proposal else None
        return member.selection if member else None

    def present(self, name: str) -> str | None:
        """The selection that ``name`` runs, as far as the hub asked for it."""
        member = self.members.get(name)
        if member is None or member.gone:
            return None
        release = member.runs if member.runs and member.confirmed else self.state.stable
        if member.runs and not member.confirmed:
            return None  # nobody knows how far it came
        return self.selection(name, release)

    def is_held(self, name: str) -> bool:
        """By its document or by a person."""
        latest = self.proposals.get(self.state.latest)
        compiled = latest.members.get(name) if latest else None
        member = self.members.get(name)
        return bool((member and member.held) or (compiled and compiled.held))

    def names(self) -> dict[int, str]:
        """Index to name of the present members."""
        return {m.index: name for name, m in self.members.items() if not m.gone}

    def referenced(self) -> set[str]:
        """The releases whose proposals are still needed."""
        kept = {m.runs for m in self.members.values() if m.runs and not m.gone}
        return kept | {self.state.stable, self.state.latest} - {""}


Way = Literal["Nothing", "Adopt", "Full", "Restore", "Revert", "Queue", "Refuse", "Rules"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a proposal, and why."""

    way: Way
    reason: str


def decide(
    fleet: Fleet,
    new: Proposal,
    running: RolloutPlan | None,
    *,
    returning: bool,
    in_window: bool = False,
) -> Decision:
    """What a proposal means. ``returning``: the running rollout is on its way back under a
    disruption budget, which a newer release must not cut short. ``in_window``: it waits for
    update windows, which are a release's own: a commit that changes only them must not wait."""
    state = fleet.state
    if bad := state.quarantine_of(new.release):
        return Decision("Refuse", f"release {new.release[:12]} is quarantined: {bad.reason}")
    if running is not None:
        if new.release == running.release:
            return Decision("Rules", "the rollout of this release is running")
        if returning:
            return Decision("Queue", "the rollback of the previous release has to end first")
        if new.release == state.stable:
            return Decision("Revert", "the commit reverts to the stable release")
        if not in_window and _same(fleet, new, running.release):
            return Decision("Queue", "it changes no node beyond the rollout that is running")
        if running.rules.on_supersede == "Queue":
            return Decision("Queue", "the policy says onSupersede: Queue")
    if new.release == state.stable:
        return Decision("Nothing", "the fleet runs this release")
    if new.suspended:
        return Decision("Queue", "the fleet is suspended")
    if running is None and all(
        fleet.present(n) == new.members[n].selection for n in _old(fleet, new)
    ):
        return Decision("Adopt", "it changes no node of the fleet")
    if running is None and new.release in state.good:
        return Decision("Restore", "the release succeeded in this fleet before")
    return Decision("Full", "a new release")


def _old(fleet: Fleet, new: Proposal) -> list[str]:
    """Members of ``new`` that the stable release already knew: newcomers simply get stable."""
    before = fleet.proposals.get(fleet.state.stable)
    if before is None:
        return list(new.members)
    return [n for n in new.members if n in before.members and not fleet.is_held(n)]


def _same(fleet: Fleet, new: Proposal, release: str) -> bool:
    running = fleet.proposals.get(release)
    return running is not None and all(
        new.members[n].selection == m.selection
        for n, m in running.members.items()
        if n in new.members
    )


def enrol(fleet: Fleet, new: Proposal) -> tuple[dict[str, Member], list[str]]:
    """Members that change because of a proposal's membership, and the names that left.

    A newcomer gets the next free index, a returner its old one.
    """
    changed: dict[str, Member] = {}
    index = fleet.state.next_index
    for name in new.members:
        old = fleet.members.get(name)
        if old is None:
            changed[name] = Member(index)
            index += 1
        elif old.gone:
            changed[name] = _replace(old, gone=False, runs="", confirmed=False)
    left = [n for n, m in fleet.members.items() if not m.gone and n not in new.members]
    for name in left:
        changed[name] = _replace(fleet.members[name], gone=True, runs="", confirmed=False)
    fleet.update(changed)
    fleet.state = _replace(fleet.state, next_index=index)
    return changed, left


def plan_for(
    fleet: Fleet, new: Proposal, way: Way, identifier: str, *, now: datetime, first: int = 0
) -> RolloutPlan:
    """The plan of a rollout to ``new``: who is in which stage, and who needs nothing."""
    stages, rules = new.rules.stages, new.rules
    if way == "Restore":
        stages = (StageRule("restore", success_threshold=Share(percent=0)),)
        first = 0
    first = min(first, len(stages) - 1)
    at = {s.name: i for i, s in enumerate(stages)}
    nodes = []
    for name, compiled in sorted(new.members.items(), key=lambda m: fleet.members[m[0]].index):
        member = fleet.members[name]
        stage = max(first, at.get(compiled.stage, len(stages) - 1))
        if way == "Restore":
            stage = 0
        start: Literal["Queued", "Skipped", "Held"] = "Queued"
        reason, told = "", False
        if fleet.is_held(name):
            start, reason = "Held", "held: it keeps what it runs"
        elif fleet.present(name) == compiled.selection:
            start, reason = "Skipped", "the change does not touch it"
            told = member.runs == new.release
        nodes.append(PlannedNode(member.index, name, stage, compiled.group, start, told, reason))
    return RolloutPlan(
        id=identifier,
        fleet=new.fleet,
        revision=new.revision,
        release=new.release,
        previous=fleet.state.stable,
        rules=rules,
        stages=stages,
        started=now,
        nodes=tuple(nodes),
        first=first,
    )


# What a rollout's state means for its fleet.


def keep_superseded(fleet: Fleet, plan: RolloutPlan, state: State) -> dict[str, Member]:
    """Nodes that were told keep what they run; returns the members that changed."""
    changed = {}
    for index, row in state.table.rows.items():
        name = state.table.planned[index].name
        member = fleet.members.get(name)
        if member is None or member.gone or not row.told or row.back:
            continue
        if row.state == "Failed" and row.restored:
            continue
        changed[name] = _replace(
            member, runs=plan.release, confirmed=row.confirmed or row.state == "Skipped"
        )
    fleet.update(changed)
    return changed


def settle(fleet: Fleet, plan: RolloutPlan, state: State, now: datetime) -> dict[str, Member]:
    """Bring the fleet up to date with its rollout's state; returns changed members."""
    head, fleet_state = state.head, fleet.state
    if isinstance(head, Succeeded):
        good = tuple(g for g in fleet_state.good if g != plan.release)[: GOOD_KEPT - 1]
        fleet.state = _replace(
            fleet_state,
            stable=plan.release,
            revision=plan.revision,
            good=(plan.release, *good),
            rollout="",
        )
        changed = {
            n: _replace(m, runs="", confirmed=False)
            for n, m in fleet.members.items()
            if m.runs and not fleet.is_held(n)
        }
        fleet.update(changed)
        return changed
    if isinstance(head, RollingBack | RolledBack | Failed | Cancelled):
        over = not isinstance(head, RollingBack)
        partly = isinstance(head, RollingBack | RolledBack) and _keeps_earlier(plan, state)
        at_once = (over or plan.rules.max_unavailable is None) and bool(plan.previous)
        entry = Quarantined(plan.release, head.reason, now, plan.id, at_once and not partly)
        old = fleet_state.quarantine_of(plan.release)
        if old is not None:
            entry = _replace(entry, at=old.at)
        others = tuple(q for q in fleet_state.quarantined if q.release != plan.release)
        fleet.state = _replace(
            fleet_state,
            quarantined=(*others, entry)[-QUARANTINE_KEPT:],
            rollout="" if over else plan.id,
            reason=f"release {plan.release[:12]} is quarantined: {head.reason}",
        )
        if over and (partly or not plan.previous):
            return keep_superseded(fleet, plan, state)
    return {}


def _keeps_earlier(plan: RolloutPlan, state: State) -> bool:
    return any(r.told and not r.back and r.state == "Succeeded" for r in state.table.rows.values())


def channel_of(fleet: Fleet, plan: RolloutPlan | None, state: State | None) -> Channel:
    """What the channel has to say now; its sequence grows only when that changed."""
    fleet_state, old = fleet.state, fleet.state.channel
    stay = fleet.stay()
    candidate, wave, rollout = "", Bitmap(), ""
    keep = Bitmap.of(stay)
    if plan is not None and state is not None and fleet_state.rollout == plan.id:
        rollout = plan.id
        if isinstance(state.head, RollingBack):
            told = (i for i, r in state.table.rows.items() if r.told and not r.back)
            returned = {i for i, r in state.table.rows.items() if r.back and r.state != "Queued"}
            kept = {*stay, *told, *state.table.waiting_back} - returned
            keep = Bitmap.of(kept)
        else:
            candidate, wave = plan.release, state.table.wave
    new = Channel(
        fleet=fleet_state.name,
        sequence=old.sequence,
        stable=fleet_state.stable,
        candidate=candidate,
        wave=wave.data,
        stay=keep.data,
        quarantined=tuple(q.release for q in fleet_state.quarantined if q.in_channel),
        rollout=rollout,
    )
    return old if new == old else _replace(new, sequence=old.sequence + 1)
