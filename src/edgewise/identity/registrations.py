"""Who may be what on this node: registrations against callers, and why not. Pure.

Laws: all selectors of a registration must hold; what the node's signed record does not name is
never granted, whatever the release says; the first identity is the default one, and which is
first never depends on the order in which documents were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from edgewise.identity.workload_ports import Caller
from edgewise.model.selectors import Fact, WorkloadSelector
from edgewise.protocol.content import WorkloadRegistration


class FailedSelector(msgspec.Struct, frozen=True):
    """A selector that does not hold for a caller."""

    selector: str
    found: str
    """What the caller has instead; empty for nothing."""


class Candidate(msgspec.Struct, frozen=True):
    """One registration, and what keeps a caller from it."""

    name: str
    spiffe_id: str
    failed: tuple[FailedSelector, ...] = ()
    problem: str = ""
    """Why nobody on this node can have it now; empty when somebody can."""

    @property
    def granted(self) -> bool:
        """Whether the caller may have it."""
        return not self.failed and not self.problem


@dataclass(frozen=True, slots=True)
class Registered:
    """One registration, ready to be compared."""

    registration: WorkloadRegistration
    selectors: tuple[WorkloadSelector, ...]
    broken: str = ""
    """A selector that this version of the agent does not know: then it holds for nobody."""

    @property
    def path(self) -> str:
        """Of its SPIFFE ID."""
        return self.registration.path


def read(registrations: Iterable[WorkloadRegistration]) -> tuple[Registered, ...]:
    """Those of a release, most particular first."""
    found = []
    for one in registrations:
        selectors, broken = [], ""
        for text in one.selectors:
            try:
                selectors.append(WorkloadSelector.parse(text))
            except ValueError as error:
                broken = str(error)
        if not one.selectors:
            broken = "it has no selector"
        found.append(Registered(one, tuple(selectors), broken))
    # An app's own identity comes before those that only share a path with fewer conditions.
    return tuple(
        sorted(
            found, key=lambda r: (not _is_own(r), -len(r.selectors), r.path, r.registration.name)
        )
    )


def _is_own(one: Registered) -> bool:
    return one.registration.selectors == (f"edgewise:app:{one.registration.name}",)


@dataclass(frozen=True, slots=True)
class Registrations:
    """What the release asks for and the record grants."""

    entries: tuple[Registered, ...] = ()
    granted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Path to DNS names, of the node's signed record."""
    trust_domain: str = ""

    def spiffe_id(self, path: str) -> str:
        """The whole ID."""
        return f"spiffe://{self.trust_domain}{path}"

    @property
    def facts(self) -> frozenset[Fact]:
        """Which facts of a caller any selector asks about."""
        return frozenset(s.fact for entry in self.entries for s in entry.selectors)

    def wanted(self) -> dict[str, WorkloadRegistration]:
        """SPIFFE ID to the registration by which its SVID is asked for: those that can be had."""
        return {
            self.spiffe_id(entry.path): entry.registration
            for entry in reversed(self.entries)
            if not self._problem(entry)
        }

    def entitled(self, caller: Caller) -> tuple[str, ...]:
        """SPIFFE IDs of a caller, the default one first."""
        ids = (
            self.spiffe_id(entry.path)
            for entry in self.entries
            if not self._problem(entry) and all(_holds(s, caller) for s in entry.selectors)
        )
        return tuple(dict.fromkeys(ids))

    def of(self, spiffe_id: str) -> tuple[WorkloadRegistration, ...]:
        """Registrations of one ID."""
        return tuple(e.registration for e in self.entries if self.spiffe_id(e.path) == spiffe_id)

    def explain(self, caller: Caller) -> tuple[Candidate, ...]:
        """Every registration of the node, those that nearly hold first."""
        found = [
            Candidate(
                entry.registration.name,
                self.spiffe_id(entry.path),
                tuple(
                    FailedSelector(s.text, _fact(s.fact, caller))
                    for s in entry.selectors
                    if not _holds(s, caller)
                ),
                self._problem(entry),
            )
            for entry in self.entries
        ]
        return tuple(sorted(found, key=lambda c: (len(c.failed), bool(c.problem))))

    def _problem(self, entry: Registered) -> str:
        if entry.broken:
            return f"{entry.broken}; is this agent older than the fleet repo?"
        if entry.path not in self.granted:
            return "the node's record does not name it yet; the hub signs it with the rollout"
        missing = sorted(set(entry.registration.dns) - set(self.granted[entry.path]))
        if missing:
            return f"the node's record does not allow the name {missing[0]} yet"
        return ""


def _fact(fact: Fact, caller: Caller) -> str:
    match fact:
        case "uid":
            return str(caller.uid)
        case "gid":
            return str(caller.gid)
        case "user":
            return caller.user
        case "group":
            return caller.group
        case "path":
            return caller.executable
        case "sha256":
            return caller.sha256
        case "unit":
            return caller.unit
        case "app":
            return caller.app
        case "container":
            return caller.container


def _holds(selector: WorkloadSelector, caller: Caller) -> bool:
    return _fact(selector.fact, caller) == selector.value
