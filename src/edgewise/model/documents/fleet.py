"""Fleet: which nodes get what, and by which policies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import (
    Cron,
    Duration,
    Metadata,
    Name,
    Ref,
    Size,
    Strict,
    TimeZone,
    VarName,
    VarValue,
)
from edgewise.model.labels import Selector


class Placed(Strict, frozen=True, kw_only=True):
    """An App, Config, Secret or WorkloadIdentity of the fleet."""

    ref: Ref
    """The document."""
    selector: Selector = Selector()
    """Only these nodes of the fleet get it; all of them when left out."""


class Overlay(Strict, frozen=True, kw_only=True):
    """What differs on the nodes that ``selector`` matches; applied in order."""

    name: Name
    """For messages."""
    selector: Selector
    """Nodes of the fleet that the overlay applies to."""
    vars: dict[VarName, VarValue] = {}
    """Win over the Fleet's vars and over earlier overlays."""
    apps: tuple[dict[str, Any], ...] = ()
    """Patches of App specs: ``name`` of the App and the fields to change. Maps are merged,
    lists of named things are merged by name, other lists are replaced, null removes."""
    configs: tuple[dict[str, Any], ...] = ()
    """Patches of Config specs, as ``apps``; ``files`` are merged by ``path``."""


class ImageRef(Strict, frozen=True, kw_only=True):
    """A channel of an OSImage."""

    name: Name
    """The OSImage document."""
    channel: Name
    """One of its channels."""


class FleetOs(Strict, frozen=True, kw_only=True):
    """The operating system of the fleet."""

    image_ref: ImageRef
    """Which OSImage. Accepted, not yet acted on."""


class DriftPolicy(Strict, frozen=True, kw_only=True):
    """What happens when a file of a Config was changed on the node."""

    mode: Literal["Report", "Correct"] = "Correct"
    """``Report`` only tells; ``Correct`` also puts the file right."""
    interval: Duration = "5m"
    """How often files are compared."""


class WindowSpec(Strict, frozen=True, kw_only=True):
    """When something may happen."""

    at: Cron
    """When the window opens: five cron fields."""
    duration: Duration
    """How long it stays open."""
    time_zone: TimeZone = "UTC"
    """An IANA name, or ``Node`` for the node's own."""


class UpdateWindow(Strict, frozen=True, kw_only=True):
    """When nodes may fetch and apply. Left out: at any time."""

    download: WindowSpec | None = None
    """When bytes may travel."""
    apply: WindowSpec | None = None
    """When a staged release may be started."""


class DeliverySpec(Strict, frozen=True, kw_only=True):
    """How bytes come to the nodes. Left out: as fast as they can."""

    max_rate: Size | None = None
    """Bytes a second that each node downloads at most: ``250k``."""
    metered_links: Literal["Allow", "DeltasOnly", "Never"] = "Allow"
    """Over a link that costs by the byte: everything, only what deltas bring, or nothing."""
    spread: Duration = "0s"
    """Nodes begin to fetch spread over this time, each always at the same share of it."""
    reserve: Size | None = None
    """Disk that a fetch leaves free; 64Mi when left out."""


class FleetSpec(Strict, frozen=True, kw_only=True):
    """A fleet."""

    selector: Selector
    """Which nodes belong to it: Kubernetes label selector."""
    priority: Annotated[int, Meta(ge=-(10**6), le=10**6)] = 0
    """When several fleets select a node the highest wins; a tie is an error."""
    vars: dict[VarName, VarValue] = {}
    """Variables for templates. May be templates over ``node`` themselves."""
    overlays: Annotated[tuple[Overlay, ...], Meta(max_length=100)] = ()
    """What differs by label, in order."""
    os: FleetOs | None = None
    """Operating system image. Accepted, not yet acted on."""
    apps: Annotated[tuple[Placed, ...], Meta(max_length=200)] = ()
    """What runs."""
    configs: Annotated[tuple[Placed, ...], Meta(max_length=200)] = ()
    """Files that are kept in place."""
    secrets: Annotated[tuple[Placed, ...], Meta(max_length=200)] = ()
    """Secrets that are mounted."""
    identities: Annotated[tuple[Placed, ...], Meta(max_length=100)] = ()
    """WorkloadIdentities that processes on the nodes may have."""
    drift_policy: DriftPolicy = DriftPolicy()
    """Files that were changed by hand."""
    update_window: UpdateWindow = UpdateWindow()
    """When nodes may fetch and apply."""
    delivery: DeliverySpec | None = None
    """How bytes come to the nodes."""
    suspend: bool = False
    """Compile and plan, but start no rollout."""
    rollout_policy_ref: Ref | None = None
    """A RolloutPolicy; left out, the safe default applies."""
    access_policy_ref: Ref | None = None
    """An AccessPolicy. Accepted, not yet acted on."""
    heal_policy_ref: Ref | None = None
    """A HealPolicy. Accepted, not yet acted on."""
    egress_policy_ref: Ref | None = None
    """An EgressPolicy; left out, the node has no egress gateway."""


class Fleet(Strict, frozen=True, kw_only=True, tag_field="kind", tag="Fleet"):
    """Which nodes get what, and by which policies."""

    api_version: ApiVersion
    metadata: Metadata
    spec: FleetSpec
