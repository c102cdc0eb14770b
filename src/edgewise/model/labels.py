"""Label selectors, exactly as Kubernetes defines them.

Source: Kubernetes API conventions, LabelSelector (matchLabels and matchExpressions
are ANDed; ``NotIn`` and ``DoesNotExist`` also match nodes that lack the key).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
_KEY = re.compile(
    r"([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
)

Labels = Mapping[str, str]


def check_labels(labels: Labels) -> None:
    """Raise ValueError, naming the key, where Kubernetes would refuse the label."""
    for key, value in labels.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"label key {key!r} is not a Kubernetes label key")
        if not _VALUE.fullmatch(value):
            raise ValueError(
                f"label {key}={value!r}: at most 63 of A-Z a-z 0-9 . _ - "
                "and alphanumeric at both ends"
            )


class Requirement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One matchExpression."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wants_values = self.operator in ("In", "NotIn")
        if wants_values != bool(self.values):
            need = "at least one value" if wants_values else "no values"
            raise ValueError(f"operator {self.operator} takes {need}")
        check_labels({self.key: ""})

    def matches(self, labels: Labels) -> bool:
        """Whether ``labels`` satisfy this requirement."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class Selector(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """All requirements must hold; an empty selector matches every node."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[Requirement, ...] = ()

    def __post_init__(self) -> None:
        check_labels(self.match_labels)

    def matches(self, labels: Labels) -> bool:
        """Whether ``labels`` satisfy every requirement."""
        return all(labels.get(k) == v for k, v in self.match_labels.items()) and all(
            r.matches(labels) for r in self.match_expressions
        )

    @property
    def keys(self) -> frozenset[str]:
        """The label keys that the answer depends on."""
        return frozenset(self.match_labels) | {r.key for r in self.match_expressions}


_TERM = re.compile(
    r"\s*(?:(?P<absent>!)\s*(?P<no>[^\s,=!()]+)"
    r"|(?P<key>[^\s,=!()]+)\s*(?:(?P<sign>==?|!=)\s*(?P<value>[^\s,=!()]*)"
    r"|\s(?P<word>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)


def parse_selector(text: str) -> Selector:
    """A selector as kubectl takes it: ``a=b,c!=d,key,!key,e in (x,y),f notin (z)``.

    Raises ValueError with the part that cannot be read.
    """
    requirements = []
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None:
            raise ValueError(
                f"selector {text[position:][:100]!r} is not like site=berlin,!retired,ring in (a,b)"
            )
        position = term.end()
        if term["absent"]:
            requirements.append(Requirement(term["no"], "DoesNotExist"))
        elif term["sign"]:
            operator: Literal["In", "NotIn"] = "NotIn" if term["sign"] == "!=" else "In"
            requirements.append(Requirement(term["key"], operator, (term["value"],)))
        elif term["word"]:
            operator = "In" if term["word"] == "in" else "NotIn"
            values = tuple(value.strip() for value in term["values"].split(","))
            requirements.append(Requirement(term["key"], operator, values))
        else:
            requirements.append(Requirement(term["key"], "Exists"))
    for requirement in requirements:
        for value in requirement.values:
            check_labels({requirement.key: value})
    return Selector({}, tuple(requirements))
