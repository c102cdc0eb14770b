"""The operator's API under ``/v1/``: what the CLI, the console and your scripts exchange.

Every list is a ``Page``; every error is a ``Problem`` (RFC 9457). docs/openapi.json is
generated from these types and committed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Generic, Literal, TypeVar

import msgspec

from edgewise.protocol.problem import Problem as Problem
from edgewise.protocol.report import AppStatus, Health, Phase, Traffic

T = TypeVar("T")

SyncState = Literal["Synced", "OutOfSync", "Unknown"]
RolloutState = Literal[
    "Pending",
    "Progressing",
    "WaitingForTargets",
    "WaitingForWindow",
    "WaitingForWindow",
    "WaitingForApproval",
    "Baking",
    "Paused",
    "RollingBack",
    "Succeeded",
    "RolledBack",
    "Failed",
    "Cancelled",
    "Superseded",
]
NodeState = Literal[
    "Queued",
    "Dispatched",
    "Downloading",
    "Ready",
    "Applying",
    "Verifying",
    "Succeeded",
    "Failed",
    "RolledBack",
    "Deferred",
    "Held",
    "Skipped",
    "Unknown",
]


class Page(msgspec.Struct, Generic[T], frozen=True):
    """At most ``limit`` items; pass ``next`` as ``after`` for the following ones."""

    items: tuple[T, ...]
    next: str | None = None


class Condition(msgspec.Struct, frozen=True):
    """kstatus: Ready, Reconciling or Stalled, with a reason a person can act on."""

    type: Literal["Ready", "Reconciling", "Stalled"]
    status: bool
    reason: str
    message: str = ""
    since: datetime | None = None


class SourceProblem(msgspec.Struct, frozen=True):
    """One mistake in the fleet repo."""

    file: str
    line: int
    column: int
    message: str
    hint: str = ""
    value: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.message}{hint}"


class SourceStatus(msgspec.Struct, frozen=True):
    """Where the fleet repo stands."""

    revision: str
    """Newest commit seen, as ``main@sha1:...``; empty before the first."""
    compiled: str
    """Newest commit that compiled; the fleets follow this one."""
    conditions: tuple[Condition, ...] = ()
    problems: tuple[SourceProblem, ...] = ()


class FleetStatus(msgspec.Struct, frozen=True):
    """One fleet in one line."""

    name: str
    nodes: int
    synced: int
    healthy: int
    offline: int
    stable: str
    candidate: str
    revision: str
    """Commit behind ``stable``."""
    sync: SyncState
    health: Health
    rollout: str = ""
    """Identifier of the rollout that runs, if any."""
    rollout_state: RolloutState | None = None
    reason: str = ""
    quarantined: tuple[str, ...] = ()


class HeldChange(msgspec.Struct, frozen=True):
    """A commit that waits for a person (mass deletion): `edgewise rollout approve ID`."""

    id: str
    revision: str
    reason: str


class RelayStatus(msgspec.Struct, frozen=True):
    """One relay."""

    name: str
    region: str
    connected: bool
    last_seen: datetime | None
    nodes: int


class FederationStatus(msgspec.Struct, frozen=True):
    """One trust domain of another organisation."""

    trust_domain: str
    url: str
    """Of its bundle endpoint."""
    sequence: int
    """Of the bundle that is published to the nodes; 0 for none."""
    fetched: datetime | None
    """When its endpoint last gave a good bundle, since the hub started."""
    problem: str = ""
    """Why the last look failed; the last good bundle stays in use."""


class HubStatus(msgspec.Struct, frozen=True):
    """`edgewise status`."""

    organisation: str
    version: str
    trust: Literal["hub", "builder"]
    source: SourceStatus
    fleets: tuple[FleetStatus, ...] = ()
    relays: tuple[RelayStatus, ...] = ()
    held: tuple[HeldChange, ...] = ()
    unplaced: int = 0
    """Nodes that no fleet selects."""
    audit_lines: int = 0
    audit_head: str = ""
    """Hash of the newest audit line: note it elsewhere, and a log cut short is noticed."""
    federations: tuple[FederationStatus, ...] = ()
    quarantined: int = 0
    """Nodes and relays that get nothing: `edgewise node ls` says why."""
    failing: int = 0
    """Nodes that fail to attest: `edgewise device ls --failing`."""


class NodeSummary(msgspec.Struct, frozen=True):
    """One node in one line."""

    name: str
    fleet: str
    region: str
    labels: dict[str, str]
    sync: SyncState
    health: Health
    phase: Phase
    online: bool
    last_seen: datetime | None
    running: str
    target: str
    held: bool = False
    reason: str = ""
    platform: str = ""
    """As the node said it when it joined (``linux/arm64``)."""
    joined_with: dict[str, str] = {}
    """Labels of its join token: what a compile starts from; ``labels`` has the repo's too."""


class NodeIdentity(msgspec.Struct, frozen=True):
    """How a node proved what it is, and what its TPM said last."""

    method: Literal["token", "tpm", "factory"] = "token"
    """What let it in."""
    evidence: str = ""
    """``ek:<SHA-256 of the endorsement key>``, ``idevid:<SHA-256>``, or nothing."""
    vouched: str = ""
    """Who vouches for the evidence: a maker's authority, or the device list."""
    serial: str = ""
    attested: datetime | None = None
    """When its TPM last attested well."""
    reference: str = ""
    """Which good boot that was; empty: there was none to compare with."""
    failing_since: datetime | None = None
    reason: str = ""
    what: str = ""
    pcrs: dict[str, str] = {}
    """PCR to its SHA-256 value, of the last genuine quote."""


class NodeProof(msgspec.Struct, frozen=True):
    """One line of `edgewise device ls`."""

    name: str
    labels: dict[str, str]
    identity: NodeIdentity
    quarantined: str = ""


class NodeDetail(msgspec.Struct, frozen=True):
    """`edgewise node show`."""

    summary: NodeSummary
    platform: str
    agent_version: str
    joined: datetime
    via: str
    """Relay it last came through, or ``hub``."""
    apps: tuple[AppStatus, ...] = ()
    drifted: tuple[str, ...] = ()
    previous: str = ""
    receipts: tuple[ReceiptLine, ...] = ()
    free_bytes: int = 0
    identity: NodeIdentity = NodeIdentity()
    keys: Literal["", "tpm", "file"] = ""
    """How its private keys lie on its disk, as it says; empty: it has not said."""


class ReceiptLine(msgspec.Struct, frozen=True):
    """One receipt as it is shown: the hub has verified its signature."""

    node: str
    sequence: int
    outcome: Literal["Succeeded", "Failed", "RolledBack"]
    release: str
    rollout: str
    at: datetime
    reason: str = ""
    bytes_fetched: int = 0
    bytes_full: int = 0
    seconds: float = 0.0
    traffic: Traffic = Traffic()
    """Planned and used bytes by way."""


class Explanation(msgspec.Struct, frozen=True):
    """`edgewise node explain`: why this node runs what it runs, step by step."""

    node: str
    lines: tuple[str, ...]


class StageStatus(msgspec.Struct, frozen=True):
    """One stage of one rollout; the counts sum to ``total``."""

    name: str
    state: Literal["Waiting", "Running", "Baking", "Passed", "Failed"]
    total: int
    counts: dict[NodeState, int]
    started: datetime | None = None
    bake_until: datetime | None = None
    reason: str = ""


class RolloutSummary(msgspec.Struct, frozen=True):
    """One rollout in one line."""

    id: str
    fleet: str
    revision: str
    release: str
    previous: str
    state: RolloutState
    reason: str
    started: datetime
    ended: datetime | None
    nodes: int
    succeeded: int
    failed: int


class NodeProgress(msgspec.Struct, frozen=True):
    """Where one node stands in a rollout."""

    node: str
    stage: str
    state: NodeState
    reason: str = ""


class Transition(msgspec.Struct, frozen=True):
    """One line of the rollout's log: who or what, from where to where, and why."""

    at: datetime
    state: RolloutState
    actor: str
    reason: str


class RolloutDetail(msgspec.Struct, frozen=True):
    """`edgewise rollout show`."""

    summary: RolloutSummary
    stages: tuple[StageStatus, ...]
    log: tuple[Transition, ...]
    failures: tuple[NodeProgress, ...] = ()
    """At most 50."""


class RolloutCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/rollouts/{id}/{approve,pause,resume,abort,retry}."""

    reason: str = ""


class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/tokens."""

    role: Literal["node", "relay"] = "node"
    labels: dict[str, str] = {}
    region: str = "default"
    ttl_s: float = 3600.0
    uses: int = 1
    """How many different keys may use it; 1 is the safe default."""
    via: str = ""
    """Name of the relay that nodes shall join through; empty: the hub."""


class TokenCreated(msgspec.Struct, frozen=True):
    """The only time the token's secret is shown."""

    identifier: str
    token: str
    expires: datetime


class TokenLine(msgspec.Struct, frozen=True):
    """A token without its secret."""

    identifier: str
    role: Literal["node", "relay"]
    labels: dict[str, str]
    region: str
    expires: datetime
    uses: int
    used_by: tuple[str, ...]


class ArtifactLine(msgspec.Struct, frozen=True):
    """One published artifact version."""

    name: str
    version: str
    platforms: tuple[str, ...]
    size: int
    """Bytes of the largest platform's tree."""
    built_from: str = ""


class Builds(msgspec.Struct, frozen=True):
    """The TUF ``builds`` role as it stands: what a builder signs the successor of."""

    metadata: bytes
    """``builds.json``; empty before the first."""
    keys: tuple[str, ...]
    """Key identifiers that may sign it."""
    trust: Literal["hub", "builder"]


class BuildsUpload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A successor of ``builds.json`` and the small documents it names; big objects go first,
    with PUT /v1/objects/{sha256}."""

    metadata: bytes
    documents: tuple[bytes, ...] = ()
    """Artifact, release, part and tree documents, uncompressed."""


class MissingObjects(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body and answer of POST /v1/objects/missing: which of these the hub does not have."""

    sha256: tuple[str, ...]


class ObjectsUpload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/objects: several small objects at once."""

    contents: dict[str, bytes]
    """By SHA-256, uncompressed."""


class AuditLine(msgspec.Struct, frozen=True):
    """One mutating call or decision; each line carries the hash of the one before."""

    sequence: int
    at: datetime
    actor: str
    action: str
    subject: str
    detail: str
    previous: str
    hash: str
    address: str = ""
    """Where the call came from; empty for the hub's own decisions."""


class TraceNode(msgspec.Struct, frozen=True):
    """Where a commit stands on one node."""

    node: str
    fleet: str
    state: Literal["Running", "Pending", "Failed", "RolledBack", "Replaced", "Unchanged"]
    receipt: ReceiptLine | None = None


class Trace(msgspec.Struct, frozen=True):
    """`edgewise trace COMMIT`: from git to every node."""

    revision: str
    author: str
    subject: str
    seen: datetime
    compiled: bool
    problems: tuple[SourceProblem, ...] = ()
    releases: dict[str, str] = {}
    """Fleet to release digest."""
    rollouts: tuple[RolloutSummary, ...] = ()
    nodes: tuple[TraceNode, ...] = ()
    bytes_fetched: int = 0
    bytes_full: int = 0
    traffic: Traffic = Traffic()
    """Planned and used bytes by way, and requests, of all its nodes."""


class PlanRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of POST /v1/plan: revisions of the hub's own repo."""

    base: str = ""
    """Empty: what the fleets run now."""
    head: str = "main"


class FileChange(msgspec.Struct, frozen=True):
    """One part that differs on some nodes."""

    part: str
    """``app/hello``, ``config/site``."""
    kind: Literal["added", "removed", "changed"]
    nodes: int
    example: str
    """A node that the diff speaks of."""
    diff: str
    """Unified diff of the part's text, at most 20,000 characters."""
    bytes: int
    """To each such node, with the deltas that are ready; what it has already does not count."""
    bytes_full: int = 0
    """The part's trees, packed, to a node that has nothing."""
    assumed_whole: bool = False
    """No delta leads there (yet), so that whole files were counted; see ``Plan``."""


class StagePlan(msgspec.Struct, frozen=True):
    """A stage and its members, by the rules of the fleet's RolloutPolicy."""

    name: str
    nodes: int
    members: tuple[str, ...]
    """At most 50 names."""
    waits_for: str
    """In words: threshold, bake, gates, approval."""
    bytes: int = 0
    """That travel to its nodes."""
    bytes_full: int = 0


class FleetPlan(msgspec.Struct, frozen=True):
    """What a commit does to one fleet."""

    fleet: str
    before: str
    after: str
    nodes: int
    changed_nodes: int
    changes: tuple[FileChange, ...]
    stages: tuple[StagePlan, ...]
    bytes: int
    """That travel to all its nodes."""
    joining: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    bytes_full: int = 0
    assumed_whole: bool = False


class Plan(msgspec.Struct, frozen=True):
    """`edgewise plan`: exactly what a commit would do, before anything moves."""

    base: str
    head: str
    fleets: tuple[FleetPlan, ...]
    problems: tuple[SourceProblem, ...] = ()
    not_acted_on: tuple[str, ...] = ()
    """``file:line kind/name``: accepted, not yet acted on."""
    held: str = ""
    """Why the change would wait for a person, if it would."""
    warnings: tuple[SourceProblem, ...] = ()
    """What compiles but is probably not meant, such as a selector that matches nothing."""
    bytes: int = 0
    """That travel to all nodes with the deltas and packs that are ready."""
    bytes_full: int = 0
    """The same to nodes that have nothing, object by object."""
    assumed_whole: bool = False
    """Some of it was counted as whole files: no delta is ready, or (``edgewise plan`` without a
    hub) nobody knows; without a hub sizes are those before compression."""


class RootLine(msgspec.Struct, frozen=True):
    """One root certificate."""

    state: Literal["signs", "next", "old"]
    sha256: str
    not_before: datetime
    not_after: datetime
    key_here: bool
    """False: its key is in a safe, or destroyed."""


class CaStatus(msgspec.Struct, frozen=True):
    """`edgewise ca show`."""

    organisation: str
    stage: Literal["Stable", "Prepared", "Activated"]
    roots: tuple[RootLine, ...]
    """The one that signs first."""
    bundles: int
    """Sequence of the newest trust bundles."""
    machines: int
    """Nodes and relays, without those in quarantine."""
    ready: int
    """Those that have done their part in this stage of a rotation."""
    waiting: tuple[str, ...]
    """At most 20 names of those that have not."""
    next_step: Literal["prepare", "activate", "retire", "cancel"]
    open_tokens: int
    """Join tokens that can still be used; they pin the root that signed when they were made."""
    domains: tuple[str, ...] = ()
    """Trust domains of this organisation."""


class RotateRoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step of replacing the root."""

    step: Literal["prepare", "activate", "retire", "cancel"]
    force: bool = False
    """Do not wait for machines that have not done their part: they rejoin later."""
    dry_run: bool = False
    """Check and say how things stand; change nothing."""
