"""What the rollout engine is given, and what it says of a node's place."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from edgewise.rollout.ports import (
    Announcer,
    GateCheck,
    NodeStates,
    Notices,
    Reverts,
    RolloutStore,
)


@dataclass(frozen=True, slots=True)
class Outside:
    """What the engine works through."""

    store: RolloutStore
    nodes: NodeStates
    announcer: Announcer
    gates: GateCheck
    notices: Notices
    reverts: Reverts


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the engine gathers before it acts."""

    coalesce: timedelta = timedelta(milliseconds=50)
    """Events that come within this time are decided together."""
    flush: timedelta = timedelta(seconds=3)
    """Last contacts are written at most this often; a crash loses no more of them."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a node belongs: what its signed record says."""

    fleet: str
    index: int
    held: bool
