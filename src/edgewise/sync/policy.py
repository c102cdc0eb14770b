"""A RolloutPolicy document to the rules that the state machine reads. Pure."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from edgewise.model.documents.policies import GateSpec, RolloutPolicySpec, StageSpec
from edgewise.model.quantity import Share, parse_duration
from edgewise.model.rules import Gate, RolloutRules, StageRule

SAFE_DEFAULT: Final = RolloutRules(
    stages=(
        StageRule("first", limit=Share(percent=10), bake=timedelta(minutes=2)),
        StageRule("rest", max_concurrent=Share(percent=25), success_threshold=Share(percent=95)),
    ),
)
"""What a Fleet without a rolloutPolicyRef follows: a tenth of the nodes, chosen by hash and
the same for every commit, must all succeed and stay healthy for two minutes; then the
rest, a quarter at a time. No label is needed for it."""


def rules_of(spec: RolloutPolicySpec) -> RolloutRules:
    """The rules; the document's own checks have passed, so nothing can fail here."""
    budget = spec.disruption_budget
    return RolloutRules(
        stages=tuple(_stage(stage) for stage in spec.stages),
        failure_threshold=Share.parse(spec.failure_threshold),
        min_failures=spec.min_failures,
        group_by=budget.group_by if budget else (),
        max_unavailable=Share.parse(budget.max_unavailable) if budget else None,
        node_timeout=parse_duration(spec.node_timeout),
        offline_after=parse_duration(spec.offline.after),
        offline=spec.offline.treat_as,
        deferred_max=Share.parse(spec.offline.deferred_max),
        catch_up=spec.offline.catch_up,
        on_failure=spec.on_failure.action,
        scope=spec.on_failure.scope,
        on_failure_git=spec.on_failure.git,
        on_supersede=spec.on_supersede,
        max_duration=parse_duration(spec.max_duration),
    )


def _stage(stage: StageSpec) -> StageRule:
    return StageRule(
        name=stage.name,
        selector=stage.selector,
        limit=Share.parse(stage.limit),
        min_targets=stage.min_targets,
        max_concurrent=Share.parse(stage.max_concurrent),
        success_threshold=Share.parse(stage.success_threshold),
        bake=parse_duration(stage.bake),
        approval=stage.approval.required,
        gates=tuple(_gate(gate) for gate in stage.gates),
    )


def _gate(gate: GateSpec) -> Gate:
    interval, timeout = parse_duration(gate.interval), parse_duration(gate.timeout)
    if gate.exec is not None:
        spec = {"command": gate.exec.command}
        return Gate(gate.name, "exec", spec, interval, gate.failure_limit, timeout)
    if gate.http is not None:
        spec = {"url": gate.http.url, "expectStatus": str(gate.http.expect_status)}
        return Gate(gate.name, "http", spec, interval, gate.failure_limit, timeout)
    metric = gate.metric
    spec = {"query": metric.query, "successCondition": metric.success_condition} if metric else {}
    return Gate(gate.name, "metric", spec, interval, gate.failure_limit, timeout)
