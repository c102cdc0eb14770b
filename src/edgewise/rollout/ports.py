"""What rollout needs from the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol

import msgspec

from edgewise.model.rules import Gate
from edgewise.protocol.api import HeldChange, RolloutState
from edgewise.protocol.channel import Channel
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout.fleet import FleetState, Member, Proposal
from edgewise.rollout.states import Course, Head, Moved, RolloutPlan, Row


class Announcer(Protocol):
    """Makes a channel known. Idempotent: repeating one after a crash changes nothing.

    Implementation: the hub's publisher (TUF, then wake-up of the nodes it concerns).
    """

    async def announce(self, channel: Channel) -> None: ...


class GateCheck(Protocol):
    """Asks one gate's question once.

    Implementations: host-independent exec and http in net.gates; metric with telemetry.
    """

    async def ask(self, gate: Gate) -> tuple[Literal["Pass", "Fail", "Inconclusive"], str]:
        """The answer and, in a sentence, why."""


class Revert(msgspec.Struct, frozen=True):
    """A commit that is to be undone in git, because its rollout has failed."""

    rollout: str
    """Tells repeats: one rollout asks for one revert."""
    at: datetime
    fleet: str
    revision: str
    """The commit that failed, as ``main@sha1:...``."""
    good: str
    """The commit behind the release that the fleet runs again; empty when nobody knows."""
    request: bool
    """For a person to merge; else straight onto the branch, where the hub may."""
    state: RolloutState
    """How the rollout ended."""
    reason: str


@dataclass(frozen=True, slots=True)
class Reverted:
    """What became of a revert, for people."""

    done: bool
    """The branch itself is reverted; else somebody has to do what ``text`` says."""
    text: str


class Reverts(Protocol):
    """Undoes commits. Idempotent: repeating one after a crash finds what is there already.

    Implementations: backends.git.reverts, testing.rollouts.
    """

    async def revert(self, wanted: Revert) -> Reverted:
        """Raises TryLater while the repository cannot be reached."""


class Notice(msgspec.Struct, frozen=True):
    """Something that people want to know. Delivered at least once; ``id`` tells repeats."""

    id: str
    at: datetime
    event: Literal[
        "RolloutPaused",
        "RolloutFailed",
        "RolloutWaits",
        "RolloutEnded",
        "CommitReverted",
        "RevertNeeded",
    ]
    fleet: str
    rollout: str
    text: str


class Notices(Protocol):
    """Takes notices to people. Idempotent by ``Notice.id``."""

    async def notify(self, notice: Notice) -> None: ...


RECEIPTS_PER_NODE: Final = 200
"""Receipts kept for each node; the oldest go first."""
ROLLOUTS_KEPT: Final = 100
"""Ended rollouts kept for each fleet, with their rows and logs."""
LOG_LINES: Final = 2000
"""Log lines read back for one rollout; the newest win."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A rollout as it was saved, without its rows."""

    plan: RolloutPlan
    head: Head
    course: Course
    ended: datetime | None


@dataclass(slots=True)
class Change:
    """What one decision writes, in one transaction: state, and what is still to be done."""

    fleets: dict[str, FleetState] = field(default_factory=dict)
    members: dict[str, dict[str, Member]] = field(default_factory=dict)
    """Fleet to node name to member; only those that changed."""
    proposals: list[Proposal] = field(default_factory=list)
    """Kept by (fleet, release)."""
    plans: list[RolloutPlan] = field(default_factory=list)
    """New or edited ones."""
    heads: dict[str, tuple[Head, Course, datetime | None]] = field(default_factory=dict)
    """Rollout id to where it stands and when it ended; its plan is saved, now or before."""
    rows: dict[str, Mapping[int, Row]] = field(default_factory=dict)
    """Rollout id to the rows that changed."""
    log: dict[str, Sequence[Moved]] = field(default_factory=dict)
    """Rollout id to new lines."""
    announce: dict[str, Channel] = field(default_factory=dict)
    """Fleet to the channel to announce: replaces one that is still to be done."""
    notices: list[Notice] = field(default_factory=list)
    reverts: list[Revert] = field(default_factory=list)
    reverted: list[str] = field(default_factory=list)
    """Rollouts whose revert is done, or cannot be."""
    receipts: list[Receipt] = field(default_factory=list)
    held: list[HeldChange] = field(default_factory=list)
    unheld: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Undone:
    """Effects that were decided and not yet performed."""

    announce: Mapping[str, Channel]
    notices: tuple[Notice, ...]
    reverts: tuple[Revert, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Everything a hub needs to go on where it was."""

    fleets: Mapping[str, FleetState]
    members: Mapping[str, Mapping[str, Member]]
    proposals: tuple[Proposal, ...]
    running: tuple[Saved, ...]
    """Rollouts that have not ended."""
    held: tuple[HeldChange, ...]
    undone: Undone


class RolloutStore(Protocol):
    """Implementations: backends.sqlite.rollouts, testing.rollouts."""

    async def load(self) -> Loaded: ...

    async def commit(self, change: Change) -> None:
        """All of it in one transaction, or nothing. Receipts repeated by (node, sequence)
        are ignored; of one node the newest RECEIPTS_PER_NODE are kept."""

    async def announced(self, channel: Channel) -> None:
        """This channel is out. Changes nothing when a newer one is waiting."""

    async def notified(self, notice: str) -> None:
        """The notice with this id is delivered. Idempotent."""

    async def rows(self, rollout: str) -> Mapping[int, Row]:
        """The rows of a rollout that were ever put; others are as planned."""

    async def rollouts(
        self, fleet: str = "", *, limit: int = 100, after: str = ""
    ) -> tuple[Saved, ...]:
        """Newest first; ``after`` is the id of the last one of the previous page."""

    async def rollout(self, identifier: str) -> Saved | None: ...
    async def log(self, rollout: str) -> tuple[Moved, ...]:
        """Oldest first, at most LOG_LINES."""

    async def receipts(self, node: str, *, limit: int = 50) -> tuple[Receipt, ...]:
        """Newest first."""

    async def receipts_for(self, releases: Sequence[str]) -> tuple[Receipt, ...]:
        """The newest receipt of each node about one of these releases, by node name."""

    async def drop_proposals(self, fleet: str, keep: Sequence[str]) -> None:
        """Forget the proposals of all other releases of this fleet."""

    async def forget(self, node: str) -> None:
        """Its receipts go: another machine may take the name and count from 1 again."""


class NodeSeen(msgspec.Struct, frozen=True):
    """When a node was last heard, what it said and through whom."""

    node: str
    heard: datetime
    observation: Observation | None = None
    via: str = ""


class NodeStates(Protocol):
    """Last contact and observation of every node; its own table, written in batches.

    Implementations: backends.sqlite.rollouts, testing.rollouts.
    """

    async def save(self, seen: Sequence[NodeSeen]) -> None:
        """Upsert all in one transaction; what is saved last counts, also when its ``heard`` is
        earlier (a clock was put right). Without an observation the old one stays."""

    async def all(self) -> tuple[NodeSeen, ...]: ...
    async def forget(self, node: str) -> None: ...
