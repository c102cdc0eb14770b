"""Workload identities: which processes get which SPIFFE ID."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, field

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import (
    DnsName,
    Duration,
    Metadata,
    Misfit,
    Strict,
    Text,
    TrustDomain,
    WorkloadPath,
)
from edgewise.model.quantity import parse_duration

SHORTEST_S = 60.0
LONGEST_S = 3600.0

Hint = Annotated[str, Meta(max_length=64)]


class IdentityTerms(Strict, frozen=True, kw_only=True):
    """What every workload identity has."""

    ttl: Duration | None = None
    """Lifetime of its X509-SVIDs, 1m to 1h; they are renewed at half of it. Left out, an hour.
    Hub and relays give an hour at most today, and less when their own certificate ends sooner."""
    dns_names: Annotated[tuple[DnsName, ...], Meta(max_length=8)] = ()
    """Names beside the SPIFFE ID, for clients that check host names."""
    hint: Hint = ""
    """Tells several identities of one workload apart (Workload API, ``hint``)."""
    federates_with: Annotated[tuple[TrustDomain, ...], Meta(max_length=16)] = ()
    """Other organisations' trust domains that it trusts. Those of its own organisation are
    always there."""

    def __post_init__(self) -> None:
        if self.ttl is None:
            return
        if not SHORTEST_S <= parse_duration(self.ttl).total_seconds() <= LONGEST_S:
            raise Misfit("ttl", f"a ttl of {self.ttl} is not between 1m and 1h")


class AppIdentity(IdentityTerms, frozen=True, kw_only=True):
    """The app's SPIFFE ID; whoever the app's supervisor started has it."""

    spiffe_id: WorkloadPath | None = field(default=None, name="spiffeID")
    """Path below the node's trust domain; left out, ``/app/<fleet>/<app>``."""


class WorkloadIdentitySpec(IdentityTerms, frozen=True, kw_only=True):
    """A SPIFFE ID for processes by what the kernel says of them."""

    spiffe_id: WorkloadPath = field(name="spiffeID")
    """Path below the node's trust domain; no other document may have it."""
    selectors: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=16)]
    """All must hold: ``unix:uid:1000``, ``unix:gid:``, ``unix:user:``, ``unix:group:``,
    ``unix:path:/usr/sbin/nginx``, ``unix:sha256:``, ``systemd:unit:nginx.service``,
    ``edgewise:app:till``, ``container:id:``."""


class WorkloadIdentity(Strict, frozen=True, kw_only=True, tag_field="kind", tag="WorkloadIdentity"):
    """A SPIFFE ID for processes that are no App, or for some processes of one."""

    api_version: ApiVersion
    metadata: Metadata
    spec: WorkloadIdentitySpec
