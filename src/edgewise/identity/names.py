"""Who is who: trust domains, SPIFFE IDs, and what each kind of identity may ask for.

One trust domain for each region (``<region>.<org>``) and one for the hub (``hub.<org>``),
because X.509 name constraints can hold a CA to a domain but not to a path: a relay that is
broken into cannot make certificates for another region (research: err 47 of OpenSSL).

Laws: a name is only ever valid in the trust domain of its role; users and the hub live in
the hub's, nodes and relays in their region's; nothing is allowed that is not written here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from edgewise.model.errors import BadUsage, Forbidden
from edgewise.model.names import SpiffeId, is_name

HUB: Final = "hub"
"""The first label of the hub's own trust domain; no region may be called so."""

LONGEST_ID: Final = 2048
"""Bytes of a SPIFFE ID (SPIFFE-ID specification, section 2.3)."""

RouteKind = Literal["open", "sync", "content", "renew", "workloads", "relay", "operator"]
"""``open``: join, rejoin, roots, health, webhooks. The rest needs a certificate."""

_WHO: Final[dict[RouteKind, frozenset[str]]] = {
    "sync": frozenset({"node"}),
    "content": frozenset({"node", "relay", "user", "hub"}),
    "renew": frozenset({"node", "relay", "user"}),
    "workloads": frozenset({"node"}),
    "relay": frozenset({"relay"}),
    "operator": frozenset({"user", "hub"}),
}


@dataclass(frozen=True, slots=True)
class Organisation:
    """An organisation's names. Its name and its regions are DNS labels."""

    name: str

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise BadUsage(
                f"organisation {self.name!r} is not a DNS label",
                hint="use a-z, 0-9 and '-', at most 63 characters",
            )

    def domain(self, region: str) -> str:
        """The trust domain of a region. Raises BadUsage for a name that cannot be one."""
        if not is_name(region) or region == HUB:
            raise BadUsage(
                f"region {region!r} cannot be used",
                hint="use a-z, 0-9 and '-', at most 63 characters, and not 'hub'",
            )
        return f"{region}.{self.name}"

    @property
    def hub_domain(self) -> str:
        """The trust domain of the hub and the operators."""
        return f"{HUB}.{self.name}"

    @property
    def hub(self) -> SpiffeId:
        """The hub."""
        return SpiffeId(self.hub_domain, "/hub")

    def user(self, name: str) -> SpiffeId:
        """An operator."""
        return SpiffeId(self.hub_domain, f"/user/{_checked(name)}")

    def relay(self, region: str, name: str) -> SpiffeId:
        """A relay."""
        return SpiffeId(self.domain(region), f"/relay/{_checked(name)}")

    def node(self, region: str, name: str) -> SpiffeId:
        """A node."""
        return SpiffeId(self.domain(region), f"/node/{_checked(name)}")

    def app(self, domain: str, path: str) -> SpiffeId:
        """A workload of the trust domain ``domain``. Raises Forbidden for any other path."""
        steps = path.split("/")
        try:
            found = SpiffeId(domain, path)
        except ValueError as error:
            raise Forbidden(f"{path[:200]!r} is no SPIFFE path: {error}") from error
        if found.role != "app" or not found.name or {".", ".."} & set(steps):
            raise Forbidden(f"{path[:200]!r} is not below /app/")
        if len(str(found)) > LONGEST_ID or self.region_of(found) in (None, HUB):
            raise Forbidden(f"{str(found)[:200]!r} is no workload of a region of {self.name}")
        return found

    def region_of(self, peer: SpiffeId) -> str | None:
        """The peer's region, ``hub`` for the hub's domain, None for another organisation."""
        region, dot, rest = peer.trust_domain.partition(".")
        return region if dot and rest == self.name and is_name(region) else None

    def owns(self, peer: SpiffeId) -> bool:
        """Whether this ID is well formed for its role and in the right trust domain."""
        region = self.region_of(peer)
        match peer.role:
            case "hub":
                return region == HUB and peer.name == ""
            case "user":
                return region == HUB and is_name(peer.name)
            case "node" | "relay":
                return region is not None and region != HUB and is_name(peer.name)
            case _:
                return False


def well_placed(peer: SpiffeId) -> bool:
    """Whether this ID's role may exist in its trust domain.

    Every server asks this before it looks at the role: a relay's CA can sign any path in its
    own region's domain, ``/user/root`` and ``/hub`` among them. Those mean nothing there.
    """
    _, dot, organisation = peer.trust_domain.partition(".")
    return bool(dot) and is_name(organisation) and Organisation(organisation).owns(peer)


@dataclass(frozen=True, slots=True)
class Station:
    """Where a request arrives: the hub (region ``hub``), or a relay of one region."""

    organisation: Organisation
    region: str = HUB


def authorise(kind: RouteKind, peer: SpiffeId | None, at: Station) -> None:
    """Raise Forbidden, saying why, unless ``peer`` may use routes of this kind here."""
    if kind == "open":
        return
    if peer is None:
        raise Forbidden("this needs a client certificate", hint="join first, with a token")
    if not at.organisation.owns(peer):
        raise Forbidden(
            f"{peer} is not an identity of organisation {at.organisation.name}",
            hint="was this node joined to another hub?",
        )
    if peer.role not in _WHO[kind]:
        allowed = " and ".join(sorted(_WHO[kind]))
        raise Forbidden(f"{peer} may not do this; it is for: {allowed}")
    region = at.organisation.region_of(peer)
    if at.region != HUB and region not in (at.region, HUB):
        raise Forbidden(
            f"{peer} is of another region than this relay ({at.region})",
            hint="give the node a token of this region, or the URL of its own relay",
        )


def is_server(peer: SpiffeId) -> bool:
    """Whether nodes may take this peer for the hub or a relay at first contact.

    The root alone is not enough: every node's certificate chains to it.
    """
    return peer.role in ("hub", "relay")


def upstream_of(own: SpiffeId, hub_id: str, peer: SpiffeId) -> bool:
    """Whether ``peer`` may stand above ``own``: the hub, or a relay of the same region."""
    return str(peer) == hub_id or (
        peer.role == "relay" and peer.trust_domain == own.trust_domain and own.role == "node"
    )


def sibling_of(own: SpiffeId, peer: SpiffeId) -> bool:
    """Whether ``peer`` is another relay of the relay ``own``'s region."""
    return peer.role == "relay" and peer.trust_domain == own.trust_domain and peer != own


def _checked(name: str) -> str:
    if not is_name(name):
        raise BadUsage(
            f"{name!r} cannot be a name", hint="use a-z, 0-9 and '-', at most 63 characters"
        )
    return name
