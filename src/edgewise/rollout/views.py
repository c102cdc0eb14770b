"""What people see of fleets and rollouts: the API's types, filled from what is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Final, Literal

import msgspec

from edgewise.protocol.api import (
    Explanation,
    FleetStatus,
    NodeProgress,
    NodeState,
    RolloutDetail,
    RolloutSummary,
    StageStatus,
    SyncState,
    Transition,
)
from edgewise.protocol.channel import Bitmap
from edgewise.protocol.report import Health, Observation
from edgewise.rollout.fleet import Fleet
from edgewise.rollout.ports import Saved
from edgewise.rollout.states import (
    NODE_STATES,
    Baking,
    Ended,
    Moved,
    Paused,
    Pending,
    RolloutPlan,
    Row,
    State,
    name_of,
    reason_of,
)
from edgewise.rollout.table import Table

Sees = Callable[[str], bool]
"""Whether somebody may see the node of this name."""
FAILURES_SHOWN: Final = 50
_WORST: Final[tuple[Health, ...]] = ("Missing", "Degraded", "Progressing", "Suspended")


def target_of(fleet: Fleet, node: str, running: str) -> str:
    """The release that ``node`` should run, as its channel tells it."""
    return fleet.state.channel.target(fleet.members[node].index, running)


def sync_of(target: str, seen: Observation | None) -> SyncState:
    """Whether a node runs what it should."""
    if seen is None:
        return "Unknown"
    return "Synced" if seen.running == target and not seen.drifted else "OutOfSync"


def fleet_status(
    fleet: Fleet,
    running: Saved | None,
    seen: Mapping[str, Observation | None],
    present: Set[str],
    sees: Sees | None = None,
) -> FleetStatus:
    """One fleet in one line. ``seen``: the last observation of each node that was heard.

    With ``sees`` only such nodes are counted, and no reason is told: it may speak of others.
    """
    members = [n for n, m in fleet.members.items() if not m.gone and (sees is None or sees(n))]
    online = sum(1 for name in members if name in present)
    synced = healthy = 0
    found: set[Health] = set()
    for name in members:
        observation = seen.get(name)
        if observation is None:
            continue
        found.add(observation.health)
        healthy += observation.health == "Healthy"
        synced += sync_of(target_of(fleet, name, observation.running), observation) == "Synced"
    worst: Health = next((h for h in _WORST if h in found), "Healthy" if healthy else "Unknown")
    state = fleet.state
    return FleetStatus(
        name=state.name,
        nodes=len(members),
        synced=synced,
        healthy=healthy,
        offline=len(members) - online,
        stable=state.stable,
        candidate=state.channel.candidate,
        revision=state.revision,
        sync="Synced" if synced == len(members) else "OutOfSync" if found else "Unknown",
        health=worst,
        rollout=running.plan.id if running else "",
        rollout_state=name_of(running.head) if running else None,
        reason="" if sees else reason_of(running.head) if running else state.reason,
        quarantined=tuple(q.release for q in state.quarantined),
    )


def summary(saved: Saved, succeeded: int, failed: int) -> RolloutSummary:
    """One rollout in one line."""
    plan = saved.plan
    return RolloutSummary(
        id=plan.id,
        fleet=plan.fleet,
        revision=plan.revision,
        release=plan.release,
        previous=plan.previous,
        state=name_of(saved.head),
        reason=reason_of(saved.head),
        started=plan.started,
        ended=saved.ended,
        nodes=len(plan.nodes),
        succeeded=succeeded,
        failed=failed,
    )


def tally(rows: Mapping[int, Row]) -> tuple[int, int]:
    """How many succeeded, and how many failed the target (wherever they are now)."""
    succeeded = sum(1 for r in rows.values() if r.state == "Succeeded")
    return succeeded, sum(1 for r in rows.values() if r.failed or r.state == "Failed")


def detail(saved: Saved, table: Table, log: Sequence[Moved]) -> RolloutDetail:
    """`edgewise rollout show`."""
    plan = saved.plan
    stages = tuple(_stage(saved, table, i) for i in range(len(plan.stages)))
    failures = [
        NodeProgress(table.planned[i].name, plan.stages[r.stage].name, r.state, r.reason)
        for i, r in sorted(table.rows.items())
        if r.failed or r.state in ("Failed", "Unknown")
    ]
    return RolloutDetail(
        summary(saved, *tally(table.rows)),
        stages,
        tuple(Transition(m.at, m.state, m.actor, m.reason) for m in log),
        tuple(failures[:FAILURES_SHOWN]),
    )


def limited(
    saved: Saved, rows: Mapping[int, Row], log: Sequence[Moved], sees: Sees
) -> RolloutDetail:
    """``detail`` for somebody who sees only some of the nodes: others do not count, and the
    reasons, which may speak of them, are left out."""
    nodes = tuple(node for node in saved.plan.nodes if sees(node.name))
    mine = {node.index for node in nodes}
    plan = msgspec.structs.replace(saved.plan, nodes=nodes)
    table = Table(plan, {index: row for index, row in rows.items() if index in mine})
    whole = detail(replace(saved, plan=plan), table, log)
    blank = msgspec.structs.replace
    return RolloutDetail(
        blank(whole.summary, reason=""),
        tuple(blank(stage, reason="") for stage in whole.stages),
        tuple(blank(line, reason="") for line in whole.log),
        whole.failures,
    )


def _stage(saved: Saved, table: Table, stage: int) -> StageStatus:
    course, rule = saved.course.stages[stage], saved.plan.stages[stage]
    counted = table.stage_counts(stage)
    counts: dict[NodeState, int] = {s: counted[s] for s in NODE_STATES if s in counted}
    return StageStatus(
        name=rule.name,
        state=_stage_state(saved, stage),
        total=sum(counts.values()),
        counts=counts,
        started=course.started,
        bake_until=course.bake_until,
        reason=course.reason or _live_reason(saved, stage),
    )


def _stage_state(
    saved: Saved, stage: int
) -> Literal["Waiting", "Running", "Baking", "Passed", "Failed"]:
    course, head = saved.course.stages[stage], saved.head
    active = head.before if isinstance(head, Paused) else head
    if course.failed:
        return "Failed"
    if course.passed is not None:
        return "Passed"
    if isinstance(active, Baking) and active.stage == stage:
        return "Baking"
    return "Running" if course.started is not None else "Waiting"


def _live_reason(saved: Saved, stage: int) -> str:
    head = saved.head
    if isinstance(head, Pending | Ended) or head.stage != stage:
        return ""
    return reason_of(head)


def explain(
    node: str, fleet: Fleet, running: tuple[RolloutPlan, State] | None, seen: Observation | None
) -> Explanation:
    """Why this node runs what it runs, step by step."""
    state, member = fleet.state, fleet.members[node]
    lines = [f"It is member {member.index} of fleet {state.name}."]
    lines.append(
        f"The fleet's stable release is {state.stable[:12]} ({state.revision})."
        if state.stable
        else "The fleet has no stable release yet."
    )
    if fleet.is_held(node):
        lines.append(f"It is held and keeps what it runs. {member.hold_reason}".rstrip())
    if member.runs:
        lines.append(f"It keeps {member.runs[:12]} of a rollout that a newer commit superseded.")
    if running is not None:
        plan, rollout = running
        row = rollout.table.rows.get(member.index)
        head = rollout.head
        because = f": {reason_of(head)}" if reason_of(head) else ""
        lines.append(f"Rollout {plan.id} to {plan.release[:12]} is {name_of(head)}{because}.")
        if row is None:
            lines.append("It joined after the rollout began, so it gets the stable release.")
        else:
            why = f": {row.reason}" if row.reason else ""
            lines.append(f"In stage {plan.stages[row.stage].name} it is {row.state}{why}.")
    lines += [
        f"Release {q.release[:12]} is quarantined: {q.reason}" for q in state.quarantined[-3:]
    ]
    current = seen.running if seen else ""
    channel = state.channel
    target = channel.target(member.index, current)
    if target == current and member.index in Bitmap(channel.stay):
        lines.append(f"So it should stay on {current[:12] or 'nothing'}.")
    else:
        lines.append(f"So it should run {target[:12] or 'nothing'}.")
    if seen is None:
        lines.append("It has not been heard since the hub knows it.")
    else:
        word = "as it should" if target == current else f"phase {seen.phase} {seen.reason}".strip()
        lines.append(f"It says that it runs {current[:12] or 'nothing'}: {word}.")
    return Explanation(node, tuple(lines))
