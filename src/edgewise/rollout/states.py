"""The words of the fleet half: what a rollout is, what can happen to it, what it asks for.

A state has only the fields that make sense in it; every value here can be written as
canonical JSON, so what is decided can be saved as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.api import NodeState, RolloutState
from edgewise.protocol.report import Observation, Receipt

if TYPE_CHECKING:
    from edgewise.rollout.table import Table

Answer = Literal["Pass", "Fail", "Inconclusive"]
Verb = Literal["approve", "pause", "resume", "abort"]
End = Literal["RolledBack", "Cancelled"]

IN_FLIGHT: Final[frozenset[NodeState]] = frozenset(
    {"Dispatched", "Downloading", "Ready", "Applying", "Verifying"}
)
NODE_STATES: Final[tuple[NodeState, ...]] = get_args(NodeState)


# What stays the same while a rollout runs.


class PlannedNode(msgspec.Struct, frozen=True, array_like=True):
    """A member of the fleet when the rollout began."""

    index: int
    name: str
    stage: int
    group: str
    """The group of the disruption budget it belongs to."""
    start: Literal["Queued", "Skipped", "Held"] = "Queued"
    told: bool = False
    """It runs the target already (a retried rollout): a rollback has to fetch it back too."""
    reason: str = ""


class RolloutPlan(msgspec.Struct, frozen=True):
    """What one rollout sets out to do. Replaced as a whole when its policy is edited."""

    id: str
    fleet: str
    revision: str
    release: str
    previous: str
    """The release to go back to: the fleet's stable one; empty when there is none yet."""
    rules: RolloutRules
    stages: tuple[StageRule, ...]
    started: datetime
    nodes: tuple[PlannedNode, ...]
    first: int = 0
    """The stage to begin with; not 0 when it continues a superseded rollout."""
    next_rules: RolloutRules | None = None
    """An edited policy: takes effect with the next stage."""


# States of a rollout. It is exactly one of these.


class Pending(msgspec.Struct, frozen=True, tag=True):
    """Saved, not begun."""

    since: datetime


class Progressing(msgspec.Struct, frozen=True, tag=True):
    """Nodes of ``stage`` are being told and are at work."""

    stage: int
    since: datetime
    reason: str = ""


class WaitingForTargets(msgspec.Struct, frozen=True, tag=True):
    """Too few nodes of ``stage`` are connected, or too many are away."""

    stage: int
    since: datetime
    reason: str


class WaitingForWindow(msgspec.Struct, frozen=True, tag=True):
    """Every node at work waits for its update window; maxDuration does not count."""

    stage: int
    since: datetime
    reason: str
    opens: datetime | None
    """When the first of the windows opens; None when none will (then maxDuration counts)."""


class WaitingForApproval(msgspec.Struct, frozen=True, tag=True):
    """``stage`` begins when a person approves."""

    stage: int
    since: datetime


class GateRecord(msgspec.Struct, frozen=True):
    """What one gate has answered in this bake."""

    name: str
    due: datetime
    """When it is asked next."""
    asked: datetime | None = None
    """When the question that is still open was asked."""
    last: Answer | None = None
    fails: int = 0
    why: str = ""


class Baking(msgspec.Struct, frozen=True, tag=True):
    """``stage`` has reached its threshold and is watched until ``until``."""

    stage: int
    since: datetime
    until: datetime
    gates: tuple[GateRecord, ...] = ()
    reason: str = ""
    extended: bool = False
    """It was made longer once, because the hub was away when it should have ended."""


Active = Progressing | WaitingForTargets | WaitingForWindow | WaitingForApproval | Baking


class Paused(msgspec.Struct, frozen=True, tag=True):
    """Nobody new is told until a person resumes or aborts; nodes at work may finish."""

    since: datetime
    by: str
    reason: str
    before: Active

    @property
    def stage(self) -> int:
        """The stage it stopped in."""
        return self.before.stage


class RollingBack(msgspec.Struct, frozen=True, tag=True):
    """The nodes that were told return to the previous release."""

    stage: int
    since: datetime
    reason: str
    end: End
    from_stage: int
    """Nodes of earlier stages keep the release (scope: Stage)."""


class Succeeded(msgspec.Struct, frozen=True, tag=True):
    """Every stage passed: the release is the fleet's stable one."""

    at: datetime


class RolledBack(msgspec.Struct, frozen=True, tag=True):
    """It failed, and the attempted nodes run the previous release again."""

    at: datetime
    reason: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """It failed, and so did the way back on some node: a person has to look."""

    at: datetime
    reason: str


class Cancelled(msgspec.Struct, frozen=True, tag=True):
    """A person aborted it, and the attempted nodes run the previous release again."""

    at: datetime
    reason: str


class Superseded(msgspec.Struct, frozen=True, tag=True):
    """A newer commit took its place."""

    at: datetime
    reason: str
    by: str
    """Release that took its place."""


Ended = Succeeded | RolledBack | Failed | Cancelled | Superseded
Head = Pending | Active | Paused | RollingBack | Ended


def name_of(head: Head) -> RolloutState:
    """The word for it that people and the API use."""
    word: RolloutState = type(head).__name__  # type: ignore[assignment]
    return word


def reason_of(head: Head) -> str:
    """Why it is in this state, in a sentence; empty when the state says it all."""
    if isinstance(head, WaitingForApproval):
        return "a person has to approve the next stage"
    return getattr(head, "reason", "")


class StageCourse(msgspec.Struct, frozen=True):
    """When one stage began, baked and passed."""

    started: datetime | None = None
    bake_until: datetime | None = None
    passed: datetime | None = None
    failed: bool = False
    reason: str = ""


class Course(msgspec.Struct, frozen=True):
    """What a rollout remembers from one state to the next."""

    clock: datetime
    """maxDuration counts from here; a resume starts it again."""
    stages: tuple[StageCourse, ...]
    forgiven: int = 0
    """Failures that a person (or onFailure: Continue) has accepted."""
    accepted: int = -1
    """The stage whose missed successThreshold a person has accepted by resuming."""
    approved: int = -1
    """The highest stage that a person approved."""
    grace_until: datetime | None = None
    """After a hub restart: nobody is judged by silence before this."""


# One node in one rollout.


class Row(msgspec.Struct, frozen=True):
    """Where one node stands. Only ``table.Table.put`` replaces one."""

    state: NodeState
    stage: int
    told: bool = False
    """Its bit in the wave was set, or it ran the target before."""
    back: bool = False
    """It is on the way back to the previous release (or there)."""
    failed: bool = False
    """It failed the target, whatever happened afterwards."""
    confirmed: bool = False
    """It sent a signed receipt for running the target."""
    restored: bool = False
    """It failed and put the previous release back by itself."""
    dispatched: datetime | None = None
    contact: datetime | None = None
    """First contact after ``dispatched``: nodeTimeout counts from here. Moved on by the time
    that the node has waited for update windows."""
    waits: datetime | None = None
    """Since when it says that it waits for an update window."""
    opens: datetime | None = None
    """When that window opens, as the node says; None with ``waits``: it never does."""
    sequence: int = 0
    """Of the newest receipt that counted; older ones are ignored."""
    reason: str = ""


# Events.


@dataclass(frozen=True, slots=True)
class Online:
    """A node was heard after silence, or for the first time."""

    index: int


@dataclass(frozen=True, slots=True)
class Offline:
    """A node was not heard for offlineAfter."""

    index: int


@dataclass(frozen=True, slots=True)
class Heard:
    """A node made contact at ``at``, and perhaps said how it is (unsigned)."""

    index: int
    at: datetime
    observation: Observation | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """A receipt whose signature was verified."""

    index: int
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class GateAnswered:
    """A gate answered, or could not."""

    stage: int
    gate: str
    answer: Answer
    why: str


@dataclass(frozen=True, slots=True)
class Command:
    """A person (or the hub on behalf of one) wants something."""

    verb: Verb
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Supersede:
    """A newer commit takes this rollout's place."""

    by: str
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class RulesChanged:
    """The policy was edited while the rollout runs."""

    rules: RolloutRules
    stages: Mapping[int, str]
    """Node index to the name of its stage under the new policy."""
    actor: str


@dataclass(frozen=True, slots=True)
class Left:
    """A node is no longer in the fleet."""

    index: int


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """A node is to keep what it runs, or no longer."""

    index: int
    held: bool


@dataclass(frozen=True, slots=True)
class Restarted:
    """The hub was away: silence up to now is no evidence against a node."""


Event = (
    Online
    | Offline
    | Heard
    | Received
    | GateAnswered
    | Command
    | Supersede
    | RulesChanged
    | Left
    | HoldChanged
    | Restarted
)


# Effects: what a step asks the world to do. All are safe to repeat.


@dataclass(frozen=True, slots=True)
class Announce:
    """The channel has to say something else: publish it."""


@dataclass(frozen=True, slots=True)
class AskGate:
    """Ask one gate's question once, and bring the answer as GateAnswered."""

    stage: int
    gate: str


@dataclass(frozen=True, slots=True)
class Undo:
    """The policy wants the commit reverted in git as well."""

    state: RolloutState
    reason: str


@dataclass(frozen=True, slots=True)
class Notify:
    """Tell people."""

    event: Literal["RolloutPaused", "RolloutFailed", "RolloutWaits", "RolloutEnded"]
    text: str


Effect = Announce | AskGate | Undo | Notify


@dataclass(frozen=True, slots=True)
class Moved:
    """One transition: the rollout's log is the list of these."""

    at: datetime
    state: RolloutState
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class State:
    """A rollout at one instant. ``step`` consumes it: use the one that it returns."""

    head: Head
    course: Course
    table: Table


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step decided."""

    plan: RolloutPlan
    state: State
    changed: Mapping[int, Row]
    """The rows that differ from before: what has to be saved."""
    effects: tuple[Effect, ...] = ()
    transitions: tuple[Moved, ...] = ()
    wake_at: datetime | None = None
    """When to step again if nothing happens; None: only an event can change anything."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Verb of a command that makes no sense now, to the reason."""
