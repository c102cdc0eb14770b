"""Whether a stage may go on: one verdict from the counts of its nodes.

The two traps that this file exists for: a stage without connected nodes never passes
("100 % of nothing"), and a node counts as a success only by its own receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.api import NodeState
from edgewise.rollout.states import IN_FLIGHT


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a stage's counts mean."""

    kind: Literal["Running", "Waiting", "Missed", "Done"]
    """Running: nodes are at work or may be told. Waiting: for nodes that are away.
    Missed: everyone answered and too few succeeded. Done: threshold reached."""
    reason: str = ""
    may_tell: bool = True
    """Whether further nodes may be told meanwhile."""


def judge(
    rule: StageRule, rules: RolloutRules, counts: Mapping[NodeState, int], *, ready: int, sick: int
) -> Verdict:
    """The verdict on one stage.

    ``counts``: its nodes by state. ``ready``: those of the Queued ones that are connected.
    ``sick``: those of the Succeeded ones that say they are not healthy now.
    """
    n = {state: counts.get(state, 0) for state in ("Skipped", "Held", "Succeeded", "Failed")}
    unknown, deferred = counts.get("Unknown", 0), counts.get("Deferred", 0)
    working = sum(counts.get(state, 0) for state in IN_FLIGHT)
    total = sum(counts.values())
    affected = total - n["Skipped"] - n["Held"]
    if affected == 0 and n["Skipped"]:
        return Verdict("Done", "the change touches no node of this stage")
    if not total and rule.min_targets == 0:
        return Verdict("Done", "the stage has no nodes, and minTargets 0 says that is fine")
    needed = max(1, rule.min_targets - n["Skipped"])
    connected = ready + working + n["Succeeded"] + n["Failed"] + unknown
    if connected < needed:
        return Verdict("Waiting", _too_few(connected, needed, total, n["Held"]), may_tell=False)
    if ready or working:
        return Verdict("Running")
    if deferred and rules.offline == "Failed":
        return Verdict("Running", f"{deferred} offline nodes have until nodeTimeout to come back")
    attempted = n["Succeeded"] + n["Failed"] + unknown
    silent = unknown if rules.failure_threshold.exceeded_by(unknown, attempted) else 0
    judged = n["Succeeded"] + n["Failed"] + silent
    well = n["Succeeded"] - sick
    if judged and not rule.success_threshold.reached_by(well, judged):
        return Verdict("Missed", _missed(rule, well, judged, sick))
    if n["Succeeded"] < needed:
        have = n["Succeeded"]
        return Verdict("Waiting", f"{have} nodes succeeded, minTargets asks for {needed}")
    if deferred and rules.offline == "Blocking":
        return Verdict("Waiting", f"{deferred} nodes are offline, and the policy waits for them")
    if deferred and rules.deferred_max.exceeded_by(deferred, affected):
        return Verdict(
            "Waiting",
            f"{deferred} of {affected} nodes are offline, deferredMax is {rules.deferred_max}",
        )
    return Verdict("Done")


def _too_few(connected: int, needed: int, total: int, held: int) -> str:
    if not total:
        return f"the stage has no nodes, minTargets asks for {needed}"
    aside = f" ({held} are held or quarantined)" if held else ""
    return f"{connected} of {total} nodes are connected{aside}, minTargets asks for {needed}"


def _missed(rule: StageRule, well: int, judged: int, sick: int) -> str:
    ill = f" ({sick} became unhealthy afterwards)" if sick else ""
    return (
        f"stage {rule.name}: {well} of {judged} nodes succeeded{ill}, "
        f"successThreshold is {rule.success_threshold}"
    )


def tripped(
    rules: RolloutRules, *, attempted: int, failed: int, unknown: int, forgiven: int
) -> str:
    """Why the failure threshold is exceeded over all attempted nodes; empty when it is not."""
    silent = unknown if rules.failure_threshold.exceeded_by(unknown, attempted) else 0
    bad = failed + silent - forgiven
    if bad < max(1, rules.min_failures) or not rules.failure_threshold.exceeded_by(bad, attempted):
        return ""
    quiet = f", {silent} of them not heard of" if silent else ""
    return (
        f"{bad} of {attempted} attempted nodes failed{quiet}, "
        f"failureThreshold is {rules.failure_threshold}"
    )
