"""The rules of a rollout, as the state machine reads them.

``sync`` compiles a RolloutPolicy document into these values; ``rollout`` decides by
them. Every knob is explained in docs/rollouts.md.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

import msgspec

from edgewise.model.labels import Selector
from edgewise.model.quantity import Share


class Gate(msgspec.Struct, frozen=True):
    """A question asked while a stage bakes; it must pass before the next stage starts."""

    name: str
    kind: Literal["exec", "http", "metric", "log"]
    spec: dict[str, str]
    """``exec``: {"command"}; ``http``: {"url", "expectStatus"}; others come with telemetry."""
    interval: timedelta = timedelta(minutes=1)
    failure_limit: int = 3
    timeout: timedelta = timedelta(seconds=10)


class StageRule(msgspec.Struct, frozen=True):
    """One stage: which nodes, how many at once, and what lets the next one start."""

    name: str
    selector: Selector = Selector()
    limit: Share = Share(percent=100)
    min_targets: int = 1
    max_concurrent: Share = Share(percent=100)
    success_threshold: Share = Share(percent=100)
    bake: timedelta = timedelta()
    approval: bool = False
    gates: tuple[Gate, ...] = ()


class RolloutRules(msgspec.Struct, frozen=True):
    """A RolloutPolicy, compiled. The defaults are the safe policy of `edgewise init`."""

    stages: tuple[StageRule, ...] = (StageRule("all"),)
    failure_threshold: Share = Share(percent=4)
    min_failures: int = 1
    group_by: tuple[str, ...] = ()
    """Label keys whose values form the groups of the disruption budget; empty: one group each."""
    max_unavailable: Share | None = None
    """Nodes of one group that may be down because of us at the same time."""
    node_timeout: timedelta = timedelta(minutes=30)
    """From the first contact in this rollout, not from dispatch."""
    offline_after: timedelta = timedelta(minutes=5)
    """Silence after which a node counts as offline."""
    offline: Literal["Deferred", "Failed", "Blocking"] = "Deferred"
    deferred_max: Share = Share(percent=100)
    catch_up: Literal["Direct", "Staged"] = "Direct"
    on_failure: Literal["Pause", "Rollback", "Continue"] = "Rollback"
    scope: Literal["Stage", "Attempted"] = "Attempted"
    on_failure_git: Literal["Quarantine", "RevertCommit", "OpenRevertRequest"] = "Quarantine"
    """What becomes of the commit of a rollout that was rolled back."""
    on_supersede: Literal["Restart", "Continue", "Queue"] = "Restart"
    max_duration: timedelta = timedelta(hours=72)
