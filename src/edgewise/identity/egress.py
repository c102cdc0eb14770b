"""May this workload call that? The rules of an EgressPolicy, and nothing else. Pure.

Laws: what no rule allows is refused; the first rule that fits in every field decides; a
refusal names the rule that came nearest and the next move; an address that leads back into
the machine or its cloud's metadata is only reached where a rule names it, and the address
that was judged is the one that is connected to; mTLS is left out only where a rule says so.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from edgewise.model.names import SpiffeId
from edgewise.protocol.egress import EgressRule, EgressRules

Reason = Literal[
    "caller",
    "policy",
    "host",
    "port",
    "method",
    "path",
    "tunnel",
    "identity",
    "address",
    "dns",
    "unreachable",
    "timeout",
    "untrusted",
    "peer",
    "not-mtls",
    "rejected",
    "protocol",
    "malformed",
    "busy",
]
"""Why a request did not get through; docs/egress.md explains each with its next move."""

DECISIONS_KEPT: Final = 4096
"""Candidate lists remembered, by caller and destination; about 1 MB. All go when it is full."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAME: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")
_INWARD: Final[tuple[tuple[Network, str], ...]] = (
    (ipaddress.ip_network("127.0.0.0/8"), "a loopback address"),
    (ipaddress.ip_network("::1/128"), "a loopback address"),
    # Where clouds answer with credentials: AWS, GCP and Azure; AWS over IPv6; Alibaba.
    (ipaddress.ip_network("169.254.0.0/16"), "a link-local or metadata address"),
    (ipaddress.ip_network("fd00:ec2::254/128"), "a metadata address"),
    (ipaddress.ip_network("100.100.100.200/32"), "a metadata address"),
    (ipaddress.ip_network("fe80::/10"), "a link-local address"),
    (ipaddress.ip_network("0.0.0.0/8"), "an address of this host"),
    (ipaddress.ip_network("::/128"), "an address of this host"),
    (ipaddress.ip_network("224.0.0.0/4"), "a multicast address"),
    (ipaddress.ip_network("ff00::/8"), "a multicast address"),
    (ipaddress.ip_network("255.255.255.255/32"), "the broadcast address"),
)
"""What leads back into the machine, onto its link, or to its cloud's metadata."""
_ENCODED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Subject:
    """Who calls."""

    app: str = ""
    """The App of this node; empty for a process that belongs to none."""
    identities: tuple[str, ...] = ()
    """SPIFFE IDs that it may have, the default one first."""

    @property
    def shown(self) -> str:
        """For explanations."""
        if self.app:
            return f"app {self.app}"
        return self.identities[0] if self.identities else "a process of no app"


@dataclass(frozen=True, slots=True)
class Target:
    """What is called."""

    host: str
    """As ``canonical_host`` writes it."""
    port: int
    method: str
    path: str
    """With its query; empty for a tunnel."""
    default_port: bool = False
    """The URL was http and named no port: 443 where a rule for mTLS fits, else 80."""

    @property
    def tunnel(self) -> bool:
        return self.method == "CONNECT"


@dataclass(frozen=True, slots=True)
class Allowed:
    """It may."""

    rule: EgressRule
    port: int
    identity: str
    """SPIFFE ID to be used; empty without mTLS."""
    name: str
    """Of the rule, for people: ``out: allow[2]``."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It may not, or it did not work."""

    reason: Reason
    detail: str
    """A sentence with the values."""
    hint: str
    """The next move."""
    rule: str = ""
    """The rule that came nearest, or that let it through before it failed."""


def canonical_host(text: str) -> str | None:
    """Lower case, no final dot, addresses in their one form; None for what is no host.

    Forms that resolvers read in their own ways (``127.1``, ``0x7f.0.0.1``, ``2130706433``)
    are no hosts here.
    """
    host = text.lower().removesuffix(".")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if "%" in host or ":" not in host:
            return None
    last = host.rpartition(".")[2]
    if ":" in host or last.isdigit() or last.startswith("0x"):
        try:
            return str(_unwrapped(ipaddress.ip_address(host)))
        except ValueError:
            return None
    return host if len(host) <= 253 and _NAME.fullmatch(host) else None


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for (mapped, or NAT64 of RFC 6052)."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class _Host:
    """One rule's host, ready to be compared."""

    __slots__ = ("exact", "network", "suffix")

    def __init__(self, host: str) -> None:
        self.network: Network | None = None
        self.suffix = host[1:] if host.startswith("*.") else ""
        self.exact = host
        try:
            self.network = ipaddress.ip_network(host)
        except ValueError:
            return

    def fits(self, host: str, address: Address | None) -> bool:
        if self.network is not None:
            return address is not None and _inside(address, self.network)
        if self.suffix:
            return host.endswith(self.suffix) and len(host) > len(self.suffix)
        return host == self.exact


def _inside(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


@dataclass(frozen=True, slots=True)
class _Candidate:
    rule: EgressRule
    host: _Host
    networks: tuple[Network, ...]
    name: str


def _candidates(rules: EgressRules) -> Iterable[_Candidate]:
    for index, rule in enumerate(rules.allow):
        networks = tuple(ipaddress.ip_network(text) for text in rule.addresses)
        name = f"{rules.name}: allow[{index}] ({rule.host})"
        yield _Candidate(rule, _Host(rule.host), networks, name)


class Policy:
    """The rules of one node, ready to be asked often."""

    def __init__(self, rules: EgressRules | None) -> None:
        self.rules = rules
        self._candidates = tuple(_candidates(rules)) if rules is not None else ()
        self._kept: dict[tuple[Subject, str, str, int, bool], tuple[Allowed, ...] | Refused] = {}

    def concerns(self, app: str) -> bool:
        """Whether the policy speaks of this app; never of a process that belongs to none."""
        if self.rules is None or not app:
            return False
        return not self.rules.apps or app in self.rules.apps

    def decide(self, subject: Subject, target: Target) -> Allowed | Refused:
        """The first rule that fits, or why there is none."""
        fitting = self.fitting(subject, target)
        return fitting if isinstance(fitting, Refused) else choose(fitting, target.path)

    def fitting(self, subject: Subject, target: Target) -> tuple[Allowed, ...] | Refused:
        """Every rule that fits but for the path, in order, up to one that has no paths.

        It is the same for every path; ``choose`` takes the one for a path.
        """
        key = (subject, target.method, target.host, target.port, target.default_port)
        fitting = self._kept.get(key)
        if fitting is None:
            if len(self._kept) >= DECISIONS_KEPT:
                self._kept.clear()
            fitting = self._kept[key] = self._fitting(subject, target)
        return fitting

    def _fitting(self, subject: Subject, target: Target) -> tuple[Allowed, ...] | Refused:
        if self.rules is None:
            return Refused(
                "policy",
                "this node has no egress policy",
                "give its fleet an egressPolicyRef",
            )
        concerned = self.concerns(subject.app)
        if not concerned and not self._by_identity(subject):
            return Refused(
                "caller",
                f"policy {self.rules.name} does not concern {subject.shown}",
                "add it to the apps of the policy, or call from one of its apps",
            )
        address = _address(target.host)
        found: list[Allowed] = []
        nearest: tuple[int, Refused] | None = None
        for candidate in self._candidates:
            verdict = _judge(candidate, (subject, concerned), target, address)
            if isinstance(verdict, Allowed):
                found.append(verdict)
                if not verdict.rule.paths and not target.default_port:
                    break
            elif nearest is None or _closer(verdict, nearest):
                nearest = verdict
        if found:
            return _mtls_first(found) if target.default_port else tuple(found)
        unlisted = nearest is None or nearest[0] == 0
        if self.rules.otherwise == "Allow" and unlisted:
            anything = EgressRule("*", (target.port,), mtls=False)
            return (Allowed(anything, target.port, "", f"{self.rules.name}: otherwise"),)
        if nearest is None or unlisted:
            return Refused(
                "host",
                f"no rule of policy {self.rules.name} names {target.host}",
                f"add a rule with host: {target.host}",
                nearest[1].rule if nearest else "",
            )
        return nearest[1]

    def _by_identity(self, subject: Subject) -> bool:
        return any(
            _path(identity) in candidate.rule.identities
            for candidate in self._candidates
            for identity in subject.identities
        )

    def networks_of(self, allowed: Allowed) -> tuple[Network, ...]:
        """Where the host of this rule must resolve into; empty for anywhere that is safe."""
        for candidate in self._candidates:
            if candidate.name == allowed.name:
                return candidate.networks
        return ()


def _closer(one: tuple[int, Refused], other: tuple[int, Refused]) -> bool:
    return (one[0], one[1].rule != "") > (other[0], other[1].rule != "")


def _mtls_first(found: list[Allowed]) -> tuple[Allowed, ...]:
    return tuple(sorted(found, key=lambda a: not a.rule.mtls))


def _judge(
    candidate: _Candidate, who: tuple[Subject, bool], target: Target, address: Address | None
) -> Allowed | tuple[int, Refused]:
    """The verdict of one rule; a refusal says how far it got."""
    rule, name = candidate.rule, candidate.name
    subject, concerned = who
    if not candidate.host.fits(target.host, address):
        return 0, Refused("host", "", "", name if _alike(rule.host, target.host) else "")
    port = _port(rule, target)
    if port is None:
        ports = ", ".join(map(str, rule.ports))
        return 1, Refused(
            "port",
            f"port {target.port} of {target.host} is not allowed; the rule has {ports}",
            f"call one of its ports, or add {target.port} to ports",
            name,
        )
    identity = _identity(rule, subject)
    if identity is None or not (concerned or rule.identities):
        return 2, Refused(
            "caller",
            f"{subject.shown} may not call {target.host}:{port}",
            "add it to apps or identities of the rule",
            name,
        )
    if target.tunnel != (rule.protocol == "TCP") and (rule.mtls or rule.protocol == "TCP"):
        return 3, _wrong_way(target, port, name)
    if target.tunnel and (rule.methods or rule.paths):
        return 3, Refused(
            "tunnel",
            f"{target.host}:{port} is allowed for some methods or paths only, "
            "which cannot be seen in a tunnel",
            f"call http://{target.host}:{port}/ through the gateway",
            name,
        )
    if not target.tunnel and rule.methods and target.method not in rule.methods:
        return 4, Refused(
            "method",
            f"method {target.method} is not allowed at {target.host}:{port}; "
            f"the rule has {', '.join(rule.methods)}",
            f"add {target.method} to methods",
            name,
        )
    if rule.mtls and not identity:
        return 5, Refused(
            "identity",
            f"{subject.shown} has no identity to prove to {target.host}:{port}",
            "give the App an identity, or the process a WorkloadIdentity",
            name,
        )
    return Allowed(rule, port, identity if rule.mtls else "", name)


def _port(rule: EgressRule, target: Target) -> int | None:
    if target.default_port:
        if rule.mtls and 443 in rule.ports:
            return 443
        return 80 if not rule.mtls and 80 in rule.ports else None
    return target.port if target.port in rule.ports else None


def _identity(rule: EgressRule, subject: Subject) -> str | None:
    """The SPIFFE ID to call with; empty for none; None when the rule is for others."""
    if rule.apps and subject.app not in rule.apps:
        return None
    if rule.identities:
        return next((i for i in subject.identities if _path(i) in rule.identities), None)
    return subject.identities[0] if subject.identities else ""


def _path(identity: str) -> str:
    return "/" + identity.removeprefix("spiffe://").partition("/")[2]


def _wrong_way(target: Target, port: int, name: str) -> Refused:
    if target.tunnel:
        return Refused(
            "tunnel",
            f"{target.host}:{port} is called over mTLS, which the gateway does itself: "
            "a tunnel would hide from it who answers",
            f"call http://{target.host}:{port}/ through the gateway, "
            "or write protocol: TCP or mtls: false",
            name,
        )
    return Refused(
        "tunnel",
        f"{target.host}:{port} is allowed for tunnels only (protocol: TCP)",
        "open it with CONNECT",
        name,
    )


def _alike(rule_host: str, host: str) -> bool:
    """Whether a rule was probably meant: the same last two labels."""
    ours, theirs = rule_host.split(".")[-2:], host.split(".")[-2:]
    return ours == theirs or rule_host.removeprefix("*.") == host


def choose(fitting: tuple[Allowed, ...], path: str) -> Allowed | Refused:
    """The first of these rules that lets the path through."""
    if not fitting[0].rule.paths:
        return fitting[0]
    path = path.partition("?")[0]
    trick = _trick(path)
    for allowed in fitting:
        prefixes = allowed.rule.paths
        if not prefixes or (trick is None and any(_below(path, prefix) for prefix in prefixes)):
            return allowed
    nearest = fitting[0]
    if trick is not None:
        return Refused(
            "path",
            f"path {path[:200]!r} has {trick}, which servers read in different ways",
            "write the path without it",
            nearest.name,
        )
    return Refused(
        "path",
        f"path {path[:200]!r} is not allowed at {nearest.rule.host}:{nearest.port}; "
        f"the rule has {', '.join(nearest.rule.paths)}",
        "add its prefix to paths",
        nearest.name,
    )


def _below(path: str, prefix: str) -> bool:
    stem = prefix.rstrip("/")
    return path == prefix or path.startswith(f"{stem}/")


def _trick(path: str) -> str | None:
    """What in a path could make the far end see another one than we compared."""
    if "\\" in path or "//" in path or ";" in path:
        return "a backslash, an empty segment or a parameter"
    if "%" not in path and "/." not in path:
        return None
    plain = _ENCODED.sub(lambda m: bytes((int(m[1], 16),)), path.encode("utf-8", "replace"))
    if plain.count(b"/") != path.count("/") or b"\\" in plain or b"\0" in plain or b";" in plain:
        return "an encoded separator"
    if b"%" in plain:
        return "an encoded percent sign"
    if any(segment in (b".", b"..") for segment in plain.split(b"/")):
        return "a dot segment"
    return None


def judge_address(text: str, allowed: Allowed, networks: tuple[Network, ...]) -> Refused | None:
    """Whether an address that the host resolved to may be connected to; None if it may.

    ``networks`` are those of ``Policy.networks_of``.
    """
    literal = text.partition("%")[0]
    address = _unwrapped(ipaddress.ip_address(literal))
    own = _network_of(allowed.rule.host)
    named = networks if own is None else (*networks, own)
    inward = next(((net, what) for net, what in _INWARD if _inside(address, net)), None)
    inside = [network for network in named if _inside(address, network)]
    if inward is not None and not any(_within(network, inward[0]) for network in inside):
        what = inward[1]  # 0.0.0.0/0 does not name the loopback; 127.0.0.0/8 or less does
    elif networks and not inside:
        what = f"not in {', '.join(map(str, networks))}"
    else:
        return None
    return Refused(
        "address",
        f"{allowed.rule.host} leads to {literal}, which is {what}",
        f"if that is meant, add {literal} to addresses of the rule",
        allowed.name,
    )


def _within(network: Network, outer: Network) -> bool:
    if isinstance(network, ipaddress.IPv4Network):
        return isinstance(outer, ipaddress.IPv4Network) and network.subnet_of(outer)
    return isinstance(outer, ipaddress.IPv6Network) and network.subnet_of(outer)


def _network_of(host: str) -> Network | None:
    try:
        return ipaddress.ip_network(host)
    except ValueError:
        return None


def expected_peers(rule: EgressRule) -> frozenset[str]:
    """Trust domains whose members the far end may be; empty when its name is checked."""
    return frozenset(text.removeprefix("spiffe://").split("/")[0] for text in rule.spiffe_ids)


def is_expected(rule: EgressRule, uris: Iterable[str]) -> bool:
    """Whether a certificate with these URI names is one that the rule expects.

    X509-SVID section 2: exactly one URI name, and it is the SPIFFE ID.
    """
    found = tuple(uris)
    if len(found) != 1:
        return False
    try:
        peer = str(SpiffeId.parse(found[0]))
    except ValueError:
        return False
    if any(segment in (".", "..") for segment in peer.split("/")):
        return False
    return any(
        peer.startswith(expected[:-1]) if expected.endswith("/*") else peer == expected
        for expected in rule.spiffe_ids
    )
