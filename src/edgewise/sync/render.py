"""One part for every node of a fleet, rendered as rarely as possible. Pure.

A part is rendered through a lens that notes which labels were looked at. Nodes with equal
values of those labels get the same bytes, so they share one variant. The set of labels
starts empty; a render that looks at a new one adds it and everything starts over, so the
result does not depend on the order in which nodes come. Only what used ``node.name``, or a
variable that this very node overrides, is compiled for a node alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgewise.model.labels import Selector
from edgewise.protocol.content import variant_key
from edgewise.sync import templates
from edgewise.sync.checks import of_mistake
from edgewise.sync.matching import Candidate
from edgewise.sync.mismatch import Finding
from edgewise.sync.parse import Report, Sourced
from edgewise.sync.yaml_text import Path

VARS_DEPTH: Final = 8
"""Variables that are templates over variables that are templates ..."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Variables and where they come from; ``selector`` is None where they always hold."""

    source: Sourced
    path: Path
    vars: Mapping[str, Any]
    selector: Selector | None = None


class RenderFailed(Exception):
    """A part that cannot be rendered for a node: every mistake, and in which document."""

    def __init__(self, found: Sequence[tuple[Sourced, Finding]]) -> None:
        super().__init__(found[0][1].message)
        self.found = tuple(found)


class Lens:
    """One node as a template sees it, noting what is looked at."""

    def __init__(self, fleet: str, layers: Sequence[Layer], node: Candidate) -> None:
        self._layers = layers
        self._node = node
        self._fleet = fleet
        self._rendering: list[str] = []
        self.labels: set[str] = set()
        """Label keys that were looked at."""
        self.named = False
        """Whether the node's name was looked at."""
        self.overridden = False
        """Whether a variable that only this node has was looked at."""
        self._failed: list[tuple[Sourced, Finding]] = []
        labels = templates.Names("node.labels", self._label, lambda: node.labels)
        of_node = {"name": self._name, "labels": lambda: labels}
        of_fleet = {"name": lambda: fleet}
        self._context = {
            "node": templates.Names("node", lambda a: _call(of_node.get(a)), lambda: of_node),
            "fleet": templates.Names("fleet", lambda a: _call(of_fleet.get(a)), lambda: of_fleet),
            "vars": templates.Names("vars", self._var, self._known_vars),
        }

    def matches(self, selector: Selector) -> bool:
        """Whether the node is selected; what the answer depends on counts as looked at."""
        self.labels |= selector.keys
        return selector.matches(self._node.labels)

    def text(self, where: Sourced, path: Path, source: str) -> str:
        """A rendered text; a mistake is kept until ``done`` so that all are reported."""
        if not templates.is_template(source):
            return source
        try:
            return templates.render(source, self._context)
        except templates.Mistake as mistake:
            self._failed.append((where, of_mistake(path, source, mistake)))
        return ""

    def refuse(self, where: Sourced, finding: Finding) -> None:
        """Something else is wrong with what came out."""
        self._failed.append((where, finding))

    def done(self) -> None:
        """Raise RenderFailed when any text could not be rendered."""
        if self._failed:
            raise RenderFailed(self._failed)

    def _label(self, key: str) -> str | None:
        self.labels.add(key)
        return self._node.labels.get(key)

    def _name(self) -> str:
        self.named = True
        return self._node.name

    def _known_vars(self) -> Iterable[str]:
        return {name for layer in self._layers for name in layer.vars} | set(self._node.overrides)

    def _var(self, name: str) -> Any:
        if name in self._node.overrides:
            self.overridden = True
            return self._value(name, self._node.overrides[name])
        for layer in reversed(self._layers):
            if name in layer.vars and (layer.selector is None or self.matches(layer.selector)):
                return self._value(name, layer.vars[name])
        return None

    def _value(self, name: str, value: Any) -> Any:
        if not isinstance(value, str) or not templates.is_template(value):
            return value
        if name in self._rendering or len(self._rendering) >= VARS_DEPTH:
            chain = " -> ".join([*self._rendering, name])
            raise templates.Mistake(f"vars refer to each other: {chain}", "break the circle")
        self._rendering.append(name)
        try:
            return templates.render(value, self._context)
        except templates.Mistake as mistake:
            raise templates.Mistake(f"in vars.{name}: {mistake.message}", mistake.hint) from mistake
        finally:
            self._rendering.pop()


def _call(make: Callable[[], Any] | None) -> Any:
    return None if make is None else make()


@dataclass(frozen=True, slots=True)
class Rendered:
    """A part for a whole fleet."""

    by: tuple[str, ...]
    variants: Mapping[str, str]
    nodes: Mapping[str, str]
    documents: Mapping[str, bytes]


_ALONE: Final = "alone"
"""Stands in the table for nodes that are each rendered alone."""
_FAILED: Final = "failed"


class _Mistakes:
    """Findings of many nodes, one line each."""

    def __init__(self) -> None:
        self._first: dict[tuple[object, ...], tuple[Sourced, Finding, str, int]] = {}
        self._by_key: dict[str, tuple[tuple[Sourced, Finding], ...]] = {}

    def add(self, node: str, found: tuple[tuple[Sourced, Finding], ...], key: str) -> None:
        self._by_key[key] = found
        for where, finding in found:
            # The hint depends on what else the node has; the first node's is as good as any.
            same = (where, finding.path, finding.message, finding.line_offset)
            _, first, example, count = self._first.get(same, (where, finding, node, 0))
            self._first[same] = (where, first, example, count + 1)

    def again(self, node: str, key: str) -> None:
        self.add(node, self._by_key[key], key)

    def tell(self, report: Report) -> None:
        for where, finding, node, count in self._first.values():
            others = f" and {count - 1} more" if count > 1 else ""
            message = f"{finding.message} (node {node}{others})"
            report.at(
                where,
                Finding(finding.path, message, finding.hint, node, line_offset=finding.line_offset),
            )


def render_part(
    make: Callable[[Lens], bytes],
    lens_for: Callable[[Candidate], Lens],
    members: Sequence[Candidate],
    report: Report,
) -> Rendered:
    """``make`` gives the part's bytes for one node, or ``b""`` where the node does not get it."""
    used: frozenset[str] = frozenset()
    while True:
        attempt = _Attempt(make, lens_for, tuple(sorted(used)))
        more = attempt.run(members)
        if not more:
            attempt.mistakes.tell(report)
            return attempt.rendered()
        used |= more


class _Attempt:
    """One pass over the members with a fixed set of labels."""

    def __init__(
        self,
        make: Callable[[Lens], bytes],
        lens_for: Callable[[Candidate], Lens],
        by: tuple[str, ...],
    ) -> None:
        self._make = make
        self._lens_for = lens_for
        self._by = by
        self._table: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._documents: dict[str, bytes] = {}
        self.mistakes = _Mistakes()

    def run(self, members: Sequence[Candidate]) -> frozenset[str]:
        """Labels that were looked at and are not in the set; empty when the pass is good."""
        by, table = self._by, self._table
        for node in members:
            key = variant_key(by, node.labels)
            known = table.get(key)
            if known is not None and known is not _ALONE and not node.overrides:
                if known is _FAILED:
                    self.mistakes.again(node.name, key)
                continue
            more = self._one(node, key)
            if more:
                return more
        return frozenset()

    def _one(self, node: Candidate, key: str) -> frozenset[str]:
        lens = self._lens_for(node)
        try:
            digest = self._keep(self._make(lens))
        except RenderFailed as failed:
            digest = _FAILED
            alone = lens.named or lens.overridden
            self.mistakes.add(node.name, failed.found, f"{key}/{node.name}" if alone else key)
        if lens.overridden:
            self._nodes[node.name] = digest
        elif lens.named:
            self._table[key] = _ALONE
            self._nodes[node.name] = digest
        else:
            self._table[key] = digest
        return frozenset(lens.labels.difference(self._by))

    def _keep(self, data: bytes) -> str:
        if not data:
            return ""
        digest = hashlib.sha256(data).hexdigest()
        self._documents[digest] = data
        return digest

    def rendered(self) -> Rendered:
        """Sorted, so that equal content gives equal bytes."""
        variants = {k: v for k, v in sorted(self._table.items()) if v is not _ALONE}
        nodes = dict(sorted(self._nodes.items()))
        return Rendered(self._by, variants, nodes, self._documents)
