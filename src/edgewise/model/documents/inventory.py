"""Workspace, NodeSet and Node: the repo's settings and the expected inventory."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from edgewise.model.documents.joining import JoinSpec
from edgewise.model.documents.words import (
    KeyId,
    LabelKey,
    LabelValue,
    Metadata,
    Name,
    ShareWord,
    Strict,
    Text,
    VarName,
    VarValue,
)

ApiVersion = Literal["edgewise.dev/v1"]

PATHS = (
    "nodes", "fleets", "apps", "configs", "images", "policies", "secrets", "identities", "people",
)  # fmt: skip


class Verification(Strict, frozen=True, kw_only=True):
    """Which commits must carry a good SSH signature before anything is compiled."""

    mode: Literal["off", "HEAD", "all"] = "off"
    """``HEAD``: the newest commit; ``all``: every commit since the last accepted one."""
    allowed_signers: str = ".edgewise/allowed_signers"
    """File of the repo with the signers, in the form of ssh-keygen(1) ALLOWED SIGNERS."""


class PruneProtection(Strict, frozen=True, kw_only=True):
    """What a commit may take away without a person's approval."""

    max_deleted: ShareWord = "10%"
    """Nodes that lose their fleet, of all nodes that have one. More than this is held."""


class TemplateRules(Strict, frozen=True, kw_only=True):
    """How templates behave."""

    missing_key: Literal["error"] = "error"
    """A template that names a missing key never compiles. There is no other mode."""


class ArtifactRules(Strict, frozen=True, kw_only=True):
    """What an artifact must bring before an App may name it (docs/provenance.md)."""

    require: Annotated[tuple[Literal["sbom", "provenance"], ...], Meta(max_length=2)] = ()
    """``sbom``: a bill of materials for each platform; ``provenance``: a statement of where its
    trees come from."""
    builders: Annotated[tuple[KeyId, ...], Meta(max_length=100)] = ()
    """Keys of which one must have signed the provenance, as ``edgewise key ls`` lists them.
    Left out: any builder, and with ``trust: hub`` a statement without a signature too."""
    on_publish: Literal["Accept", "Refuse"] = "Accept"
    """``Refuse``: the hub does not take such an artifact at all. Either way no commit compiles
    that names one."""


class WorkspaceSpec(Strict, frozen=True, kw_only=True):
    """Settings of the repo."""

    paths: Annotated[tuple[Text, ...], Meta(max_length=64)] = PATHS
    """Directories that hold documents; files elsewhere are left alone."""
    verification: Verification = Verification()
    """Signed commits."""
    prune: bool = True
    """``false``: every commit that takes a node out of its fleet waits for approval."""
    prune_protection: PruneProtection = PruneProtection()
    """How much one commit may take away."""
    template: TemplateRules = TemplateRules()
    """How templates behave."""
    trust: Literal["hub", "builder"] = "hub"
    """``builder``: the hub only schedules releases that a builder signed; nodes that are not
    in the repo take no part in what is compiled."""
    vars: dict[VarName, VarValue] = {}
    """Variables of every fleet; a Fleet's own win. May be templates."""
    artifacts: ArtifactRules = ArtifactRules()
    """What artifacts must bring."""
    join: JoinSpec = JoinSpec()
    """Who may join and by which proof (docs/attestation.md)."""


class Workspace(Strict, frozen=True, kw_only=True, tag_field="kind", tag="Workspace"):
    """``edgewise.yaml``: one per repo."""

    api_version: ApiVersion
    metadata: Metadata
    spec: WorkspaceSpec = WorkspaceSpec()


class NodeDefaults(Strict, frozen=True, kw_only=True):
    """What every node of the set has unless its row says otherwise."""

    labels: dict[LabelKey, LabelValue] = {}
    """Merged below the row's labels."""


class NodeRow(Strict, frozen=True, kw_only=True):
    """One node of a NodeSet."""

    name: Name
    """The name that the node joins with."""
    labels: dict[LabelKey, LabelValue] = {}
    """What selectors match. They win over labels that the node joined with."""
    hold: bool = False
    """Keep the present release; do not count in rollouts."""


class NodeSetSpec(Strict, frozen=True, kw_only=True):
    """Expected nodes, one row each."""

    defaults: NodeDefaults = NodeDefaults()
    """What every row starts from."""
    nodes: Annotated[tuple[NodeRow, ...], Meta(max_length=50_000)] = ()
    """The rows."""


class NodeSet(Strict, frozen=True, kw_only=True, tag_field="kind", tag="NodeSet"):
    """Expected inventory in compact form."""

    api_version: ApiVersion
    metadata: Metadata
    spec: NodeSetSpec = NodeSetSpec()


class NodeOverrides(Strict, frozen=True, kw_only=True):
    """What differs on this one node."""

    vars: dict[VarName, VarValue] = {}
    """Win over the vars of the Workspace, the Fleet and its overlays."""


class NodeSpec(Strict, frozen=True, kw_only=True):
    """One node in full form."""

    hold: bool = False
    """Keep the present release; do not count in rollouts."""
    overrides: NodeOverrides = NodeOverrides()
    """What differs on this one node."""


class Node(Strict, frozen=True, kw_only=True, tag_field="kind", tag="Node"):
    """One node in full form, for overrides; its labels are in ``metadata.labels``."""

    api_version: ApiVersion
    metadata: Metadata
    spec: NodeSpec = NodeSpec()
