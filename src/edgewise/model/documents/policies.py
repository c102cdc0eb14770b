"""The policies: rollout (acted on), access, heal, egress and notification (checked)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import (
    Count,
    Duration,
    LabelKey,
    Metadata,
    Misfit,
    Name,
    Percent,
    ShareWord,
    Strict,
    Subject,
    Text,
)
from edgewise.model.labels import Selector


class MetricQuery(Strict, frozen=True, kw_only=True):
    """A question to the metric store."""

    query: Text
    """PromQL."""
    success_condition: Text
    """Over ``value``: ``value < 80``."""


class ExecGate(Strict, frozen=True, kw_only=True):
    """A command on the hub; exit 0 passes, 1 fails, anything else is inconclusive."""

    command: Text
    """Split into words; no shell."""


class HttpGate(Strict, frozen=True, kw_only=True):
    """A GET by the hub."""

    url: Annotated[str, Meta(pattern="^https?://", extra={"like": "https://host/path"})]
    """What to get."""
    expect_status: Annotated[int, Meta(ge=100, le=599)] = 200
    """The status that passes."""


class GateSpec(Strict, frozen=True, kw_only=True):
    """A question asked while a stage bakes: exactly one of exec, http, metric."""

    name: Name
    """For messages."""
    exec: ExecGate | None = None
    """A command on the hub."""
    http: HttpGate | None = None
    """A GET by the hub."""
    metric: MetricQuery | None = None
    """A query. Accepted, not yet acted on: it answers Inconclusive, which pauses."""
    interval: Duration = "1m"
    """Between two questions."""
    failure_limit: Annotated[int, Meta(ge=1, le=1000)] = 3
    """Bad answers until the stage fails."""
    timeout: Duration = "10s"
    """A slower answer is inconclusive."""

    def __post_init__(self) -> None:
        if sum(kind is not None for kind in (self.exec, self.http, self.metric)) != 1:
            raise Misfit("", "a gate has exactly one of exec, http and metric")


class StageApproval(Strict, frozen=True, kw_only=True):
    """Whether a person must let the stage start."""

    required: bool = False
    """``edgewise rollout approve``."""


class StageSpec(Strict, frozen=True, kw_only=True):
    """One stage. A node belongs to the first stage that takes it."""

    name: Name
    """Unique in the policy."""
    selector: Selector = Selector()
    """Which nodes of the fleet; all that are left when left out."""
    limit: ShareWord = "100%"
    """How many of those that the selector matches and no earlier stage took; the others go
    to later stages."""
    min_targets: Count = 1
    """Fewer connected nodes than this: the stage waits. ``0``: a stage that has no nodes at all
    is passed over; otherwise nothing counts as success on zero nodes."""
    max_concurrent: ShareWord = "100%"
    """How many of the stage change at the same time."""
    success_threshold: ShareWord = "100%"
    """How many must succeed before the next stage."""
    bake: Duration = "0s"
    """How long everything must stay healthy before the next stage."""
    approval: StageApproval = StageApproval()
    """Whether a person must let the stage start."""
    gates: Annotated[tuple[GateSpec, ...], Meta(max_length=20)] = ()
    """Questions asked while it bakes."""


class DisruptionBudget(Strict, frozen=True, kw_only=True):
    """How much of a group may be down because of us at the same time."""

    group_by: Annotated[tuple[LabelKey, ...], Meta(max_length=8)] = ()
    """Labels whose values form the groups; left out, the whole fleet is one."""
    max_unavailable: ShareWord
    """Nodes of one group."""


class OfflineRules(Strict, frozen=True, kw_only=True):
    """Nodes that cannot be reached."""

    treat_as: Literal["Deferred", "Failed", "Blocking"] = "Deferred"
    """``Deferred``: they do not count and catch up later."""
    deferred_max: ShareWord = "100%"
    """More deferred nodes than this: the stage waits."""
    catch_up: Literal["Direct", "Staged"] = "Direct"
    """``Direct``: newest release on return. ``Staged``: wait for their own stage."""
    after: Duration = "5m"
    """Silence after which a node counts as offline."""


class OnFailure(Strict, frozen=True, kw_only=True):
    """What happens when too many nodes failed."""

    action: Literal["Pause", "Rollback", "Continue"] = "Rollback"
    """Stop, go back, or carry on."""
    scope: Literal["Stage", "Attempted"] = "Attempted"
    """Who goes back."""
    git: Literal["Quarantine", "RevertCommit", "OpenRevertRequest"] = "Quarantine"
    """What happens to the commit of a rollout that was rolled back: nothing more, a commit
    that reverts it, or a branch with that commit for a person to merge."""


class RolloutPolicySpec(Strict, frozen=True, kw_only=True):
    """How a release moves over a fleet."""

    stages: Annotated[tuple[StageSpec, ...], Meta(min_length=1, max_length=50)]
    """In order. They must leave no node out."""
    disruption_budget: DisruptionBudget | None = None
    """How much of a group may be down at the same time."""
    failure_threshold: Percent = "4%"
    """Of the nodes attempted so far; judged all the time."""
    min_failures: Annotated[int, Meta(ge=1)] = 1
    """Never trip the threshold on fewer failures than this."""
    node_timeout: Duration = "30m"
    """From the node's first contact in this rollout."""
    offline: OfflineRules = OfflineRules()
    """Nodes that cannot be reached."""
    on_failure: OnFailure = OnFailure()
    """What happens when too many nodes failed."""
    on_supersede: Literal["Restart", "Continue", "Queue"] = "Restart"
    """What a newer commit does to a rollout that runs."""
    max_duration: Duration = "72h"
    """After this the rollout fails."""

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise Misfit("stages", f"two stages are called {name!r}")


class RolloutPolicy(Strict, frozen=True, kw_only=True, tag_field="kind", tag="RolloutPolicy"):
    """How a release moves over a fleet."""

    api_version: ApiVersion
    metadata: Metadata
    spec: RolloutPolicySpec


class AccessApproval(Strict, frozen=True, kw_only=True):
    """Who must agree."""

    required: bool = False
    """A second person."""
    approvers: tuple[Subject, ...] = ()
    """Who may agree."""


class AccessReason(Strict, frozen=True, kw_only=True):
    """Why access is asked for."""

    required: bool = False
    """A sentence."""


class AccessPolicySpec(Strict, frozen=True, kw_only=True):
    """Who may open a session on which nodes."""

    subjects: Annotated[tuple[Subject, ...], Meta(min_length=1)]
    """Who."""
    selector: Selector = Selector()
    """On which nodes."""
    allow: Annotated[
        tuple[Literal["shell", "logs", "port-forward", "files"], ...], Meta(min_length=1)
    ]
    """What."""
    max_duration: Duration = "30m"
    """How long."""
    approval: AccessApproval = AccessApproval()
    """Who must agree."""
    record: bool = True
    """Keep a recording."""
    reason: AccessReason = AccessReason()
    """Why."""


class AccessPolicy(Strict, frozen=True, kw_only=True, tag_field="kind", tag="AccessPolicy"):
    """Who may open a session on which nodes. Accepted, not yet acted on."""

    api_version: ApiVersion
    metadata: Metadata
    spec: AccessPolicySpec


class When(Strict, frozen=True, kw_only=True):
    """A symptom."""

    metric: Text
    """Which figure."""
    op: Literal[">", ">=", "<", "<=", "==", "!="]
    """Comparison."""
    value: int | float
    """Limit."""
    lasting: Duration = field(default="0s", name="for")
    """How long it must last."""


class HealAction(Strict, frozen=True, kw_only=True):
    """One rung of the ladder."""

    type: Literal["RestartProcess", "RestartApp", "RollbackApp", "RollbackRelease", "Reboot"]
    """What to do."""
    max: Annotated[int, Meta(ge=1)] | None = None
    """At most so often ..."""
    within: Duration | None = None
    """... in this time."""


class HealRule(Strict, frozen=True, kw_only=True):
    """A symptom and what to do."""

    name: Name
    """For messages."""
    source: Literal["ebpf", "cgroup", "probe", "metric"] = "cgroup"
    """Where the figure comes from."""
    when: When
    """The symptom."""
    scope: Literal["Process", "App", "Node"] = "App"
    """What is judged."""
    actions: Annotated[tuple[HealAction, ...], Meta(min_length=1)]
    """Rungs, in order."""
    notify: tuple[Name, ...] = ()
    """NotificationPolicies."""


class HealPolicySpec(Strict, frozen=True, kw_only=True):
    """What a node does about symptoms by itself."""

    rules: Annotated[tuple[HealRule, ...], Meta(min_length=1, max_length=100)]
    """Symptoms and actions."""
    count_as_rollout_failure: bool = True
    """Whether an action during a rollout makes the node count as failed."""


class HealPolicy(Strict, frozen=True, kw_only=True, tag_field="kind", tag="HealPolicy"):
    """What a node does about symptoms by itself. Accepted, not yet acted on."""

    api_version: ApiVersion
    metadata: Metadata
    spec: HealPolicySpec


class UrlFrom(Strict, frozen=True, kw_only=True):
    """A URL kept as a secret."""

    secret: Name
    """The Secret document; its key ``url``."""


class NotificationChannel(Strict, frozen=True, kw_only=True):
    """Where a message goes: exactly one of url and urlFrom."""

    type: Literal["webhook", "slack", "email"]
    """How."""
    url: Text | None = None
    """Where."""
    url_from: UrlFrom | None = None
    """Where, kept as a secret."""

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_from is None):
            raise Misfit("", "a channel has exactly one of url and urlFrom")


Event = Literal[
    "RolloutStarted",
    "RolloutSucceeded",
    "RolloutFailed",
    "RolloutPaused",
    "RolledBack",
    "ApprovalNeeded",
    "NodeOffline",
    "NodeDegraded",
    "DriftDetected",
    "SourceBroken",
]


class NotificationPolicySpec(Strict, frozen=True, kw_only=True):
    """Who hears of what."""

    events: Annotated[tuple[Event, ...], Meta(min_length=1)]
    """What."""
    channels: Annotated[tuple[NotificationChannel, ...], Meta(min_length=1)]
    """Where to."""


class NotificationPolicy(
    Strict, frozen=True, kw_only=True, tag_field="kind", tag="NotificationPolicy"
):
    """Who hears of what. Accepted, not yet acted on."""

    api_version: ApiVersion
    metadata: Metadata
    spec: NotificationPolicySpec
