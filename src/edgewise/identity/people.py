"""Who may do what: grants, and the one question that every call of a person asks.

Laws:
- Nothing is allowed that no grant allows; an API token allows no more than its owner has.
- A call that concerns the whole organisation takes a grant without limits; what concerns a
  node takes a grant that covers the node; what moves a fleet takes grants over all its nodes.
- The administrator of ``edgewise up`` has everything, whatever the bindings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from edgewise.model.errors import BadUsage
from edgewise.model.labels import Selector
from edgewise.model.names import is_name
from edgewise.model.roles import ADMIN_NAME, INCLUDED, Binding, Role

SHORTEST_PASSWORD: Final = 12
"""Characters. Length is what counts (NIST SP 800-63B, 5.1.1.2); there are no rules of kinds."""
LONGEST_PASSWORD: Final = 512
"""A bound on the work that a stranger can ask for."""
MOST_GROUPS: Final = 200
"""Groups of one person that are looked at; Entra ID stops at 200 as well."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node is, as far as grants ask."""

    labels: Mapping[str, str]
    fleet: str = ""
    """Empty: in none."""


ALL_NODES: Final = Selector()


@dataclass(frozen=True, slots=True)
class Grant:
    """One role on some nodes."""

    role: Role
    selector: Selector = ALL_NODES
    fleets: tuple[str, ...] = ()
    source: str = ""
    """The binding it comes from, for people."""

    @property
    def unlimited(self) -> bool:
        """Whether it covers every node there is or will be."""
        return not self.fleets and self.selector == ALL_NODES

    def includes(self, role: Role) -> bool:
        """Whether its role may do what ``role`` may."""
        return role in INCLUDED[self.role]

    def covers(self, place: Place) -> bool:
        """Whether it speaks about this node."""
        return (not self.fleets or place.fleet in self.fleets) and self.selector.matches(
            place.labels
        )

    def __str__(self) -> str:
        limits = [*(f"fleet {name}" for name in self.fleets), *_words(self.selector)]
        return f"{self.role} ({', '.join(limits)})" if limits else self.role


@dataclass(frozen=True, slots=True)
class Rights:
    """Everything that one caller may do."""

    grants: tuple[Grant, ...] = ()
    within: Rights | None = None
    """Of an API token: what its owner may do now."""

    def somewhere(self, role: Role) -> bool:
        """Whether there is any grant for it."""
        own = any(grant.includes(role) for grant in self.grants)
        return own and (self.within is None or self.within.somewhere(role))

    def everywhere(self, role: Role) -> bool:
        """Whether it covers the whole organisation."""
        own = any(grant.includes(role) and grant.unlimited for grant in self.grants)
        return own and (self.within is None or self.within.everywhere(role))

    def over(self, role: Role, place: Place) -> bool:
        """Whether it covers this node."""
        own = any(grant.includes(role) and grant.covers(place) for grant in self.grants)
        return own and (self.within is None or self.within.over(role, place))

    def over_fleet(self, role: Role, fleet: str, nodes: Iterable[Mapping[str, str]]) -> bool:
        """Whether it covers a fleet as a whole: by name, or each of its ``nodes`` (labels).

        A fleet without nodes is only covered by name, or by a grant over everything.
        """
        if self._names_fleet(role, fleet):
            return True
        places = [Place(labels, fleet) for labels in nodes]
        return bool(places) and all(self.over(role, place) for place in places)

    def _names_fleet(self, role: Role, fleet: str) -> bool:
        own = any(
            grant.includes(role)
            and grant.selector == ALL_NODES
            and (not grant.fleets or fleet in grant.fleets)
            for grant in self.grants
        )
        return own and (self.within is None or self.within._names_fleet(role, fleet))

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(map(str, self.grants))) or "no role"


NOBODY: Final = Rights()
EVERYTHING: Final = Rights((Grant("admin", source="the administrator of `edgewise up`"),))


def rights_of(name: str, groups: Iterable[str], bindings: Iterable[Binding]) -> Rights:
    """What the bindings give to a person of these groups."""
    if name == ADMIN_NAME:
        return EVERYTHING
    mine = frozenset(groups)
    return Rights(
        tuple(
            Grant(binding.role, binding.selector, binding.fleets, binding.name)
            for binding in bindings
            if name in binding.users or mine.intersection(binding.groups)
        )
    )


def checked_user_name(name: str) -> str:
    """Raise BadUsage for a name that no person can have; returns it."""
    if not is_name(name):
        raise BadUsage(
            f"{name[:80]!r} cannot be a user's name", hint="use a-z, 0-9 and '-', at most 63"
        )
    if name == ADMIN_NAME:
        raise BadUsage(
            "admin is the administrator that `edgewise up` makes", hint="choose another name"
        )
    return name


def checked_groups(groups: Iterable[str]) -> tuple[str, ...]:
    """Sorted, each once. Raises BadUsage for too many or too long ones."""
    found = tuple(sorted(set(groups)))
    if len(found) > MOST_GROUPS:
        raise BadUsage(f"{len(found)} groups; at most {MOST_GROUPS} are looked at")
    for group in found:
        if not group or len(group) > 200 or not group.isprintable():
            raise BadUsage(f"{group[:40]!r} is no group's name")
    return found


def check_password(password: str, name: str) -> None:
    """Raise BadUsage unless the password may be one of this person."""
    hint = "take several words, or what a password store makes"
    if len(password) < SHORTEST_PASSWORD:
        raise BadUsage(
            f"the password has {len(password)} characters, at least {SHORTEST_PASSWORD} are needed",
            hint=hint,
        )
    if len(password) > LONGEST_PASSWORD:
        raise BadUsage(f"the password is longer than {LONGEST_PASSWORD} characters")
    folded = password.casefold()
    if name.casefold() in folded and len(folded.replace(name.casefold(), "")) < SHORTEST_PASSWORD:
        raise BadUsage("the password is little more than the user's name", hint=hint)
    if len(set(folded)) < 5:
        raise BadUsage("the password repeats a few characters", hint=hint)
    if folded in _SEQUENCES or any(_is_run(folded, line) for line in _SEQUENCES):
        raise BadUsage("the password is a row of the keyboard or the alphabet", hint=hint)


_ROWS = ("abcdefghijklmnopqrstuvwxyz", "qwertyuiopasdfghjklzxcvbnm", "0123456789")
_SEQUENCES = tuple(row * 2 for row in _ROWS) + tuple(row[::-1] * 2 for row in _ROWS)


def _is_run(text: str, line: str) -> bool:
    return text in line


def _words(selector: Selector) -> list[str]:
    """As kubectl would take it."""
    words = [f"{key}={value}" for key, value in sorted(selector.match_labels.items())]
    for one in selector.match_expressions:
        values = ",".join(one.values)
        match one.operator:
            case "In":
                words.append(f"{one.key} in ({values})" if "," in values else f"{one.key}={values}")
            case "NotIn":
                words.append(f"{one.key} notin ({values})")
            case "Exists":
                words.append(one.key)
            case "DoesNotExist":
                words.append(f"!{one.key}")
    return words
