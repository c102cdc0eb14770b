"""EgressPolicy: which workload may call what, and how both ends prove themselves."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal

from msgspec import Meta, field

from edgewise.model.documents.inventory import ApiVersion
from edgewise.model.documents.words import Metadata, Misfit, Port, Ref, Strict, Text
from edgewise.model.names import SpiffeId

_HOST: Final = re.compile(
    r"(\*\.)?[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
_TRUST: Final = re.compile(r"Organisation|System|[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?")

Method = Annotated[str, Meta(pattern=r"^[A-Z][A-Z-]{0,31}$", extra={"like": "GET or POST"})]
UrlPath = Annotated[
    str, Meta(pattern=r"^/[^\s?#\\]*$", max_length=1024, extra={"like": "/v1/stock"})
]
WorkloadPath = Annotated[
    str, Meta(pattern=r"^/app(/[A-Za-z0-9._-]+)+$", extra={"like": "/app/shops/till"})
]


class EgressRule(Strict, frozen=True, kw_only=True):
    """One destination. A request must fit every field of one rule."""

    host: Text
    """Name, address or network (``10.2.0.0/16``); ``*.example.net`` for everything below a
    name, at any depth, without the name itself."""
    ports: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=64)] = (443,)
    """Ports."""
    mtls: bool = True
    """The gateway speaks TLS 1.3 with the calling workload's certificate, and the far end must
    ask for it and prove who it is. ``false``: what the app sends leaves as it is."""
    protocol: Literal["HTTP", "TCP"] = "HTTP"
    """``TCP``: the app opens a tunnel with CONNECT and speaks its own protocol in it; with
    ``mtls`` the gateway wraps it, so the app must not do TLS itself."""
    spiffe_ids: Annotated[tuple[Text, ...], Meta(max_length=64)] = field(
        name="spiffeIDs", default=()
    )
    """Who the far end must be; one that ends in ``/*`` is everybody below it. Left out, its
    certificate must name the host."""
    trust: Text = "Organisation"
    """Whose roots count when ``spiffeIDs`` is left out: ``Organisation``, ``System`` (the
    machine's own list) or a trust domain."""
    methods: Annotated[tuple[Method, ...], Meta(max_length=32)] = ()
    """HTTP methods; all when left out."""
    paths: Annotated[tuple[UrlPath, ...], Meta(max_length=64)] = ()
    """Path prefixes, by whole segments: ``/v1`` is ``/v1`` and ``/v1/...``. All when left out."""
    apps: Annotated[tuple[Ref, ...], Meta(max_length=200)] = ()
    """Only these of the policy's apps; all of them when left out."""
    identities: Annotated[tuple[WorkloadPath, ...], Meta(max_length=200)] = ()
    """Only callers with one of these identities (path below the node's trust domain)."""
    addresses: Annotated[tuple[Text, ...], Meta(max_length=64)] = ()
    """Networks that the host's name must resolve into. Loopback, link-local and metadata
    addresses are only reached where this, or ``host`` itself, names them."""

    def __post_init__(self) -> None:
        _check_host(self.host)
        for index, text in enumerate(self.addresses):
            _network(text, f"addresses[{index}]")
        for index, text in enumerate(self.spiffe_ids):
            _check_peer(text, f"spiffeIDs[{index}]")
        if not _TRUST.fullmatch(self.trust):
            raise Misfit("trust", "trust is Organisation, System or a trust domain")
        if not self.mtls and (self.spiffe_ids or self.trust != "Organisation"):
            where = "spiffeIDs" if self.spiffe_ids else "trust"
            raise Misfit(where, "without mtls nobody's certificate is checked")
        if self.spiffe_ids and self.trust != "Organisation":
            raise Misfit("trust", "spiffeIDs say the trust domain already")
        if self.protocol == "TCP" and (self.methods or self.paths):
            raise Misfit("protocol", "a tunnel has neither methods nor paths")


class EgressPolicySpec(Strict, frozen=True, kw_only=True):
    """Where apps may connect to."""

    apps: Annotated[tuple[Ref, ...], Meta(max_length=200)] = ()
    """Which apps; all when left out."""
    allow: Annotated[tuple[EgressRule, ...], Meta(max_length=500)] = ()
    """Where to. The first rule that fits decides."""
    otherwise: Literal["Deny", "Allow"] = "Deny"
    """Everything that is not listed. ``Allow`` lets it out without mTLS."""
    enforce: bool = False
    """Also close every other way out for these apps, by nftables rules on the node (needs root;
    see docs/egress.md)."""


class EgressPolicy(Strict, frozen=True, kw_only=True, tag_field="kind", tag="EgressPolicy"):
    """Where apps may connect to."""

    api_version: ApiVersion
    metadata: Metadata
    spec: EgressPolicySpec


def _check_host(host: str) -> None:
    if (host[:1].isdigit() and host.replace(".", "").replace("/", "").isdigit()) or ":" in host:
        _network(host, "host")
    elif len(host) > 253 or not _HOST.fullmatch(host):
        raise Misfit("host", f"host {host[:80]!r} is no lower-case name, *.name or network")


def _network(text: str, where: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise Misfit(where, f"{where}: {error}") from error


def _check_peer(text: str, where: str) -> None:
    try:
        SpiffeId.parse(text.removesuffix("/*") if text.endswith("/*") else text)
    except ValueError:
        if text.endswith("/*") and text.count("/") == 3:
            return _check_peer(f"{text[:-1]}any", where)
        raise Misfit(where, f"{where}: {text[:80]!r} is no SPIFFE ID") from None
