"""Which fleet gets which node, and which stage. Pure.

Labels in the repo win over labels that a node joined with. The fleet with the highest
priority wins; a tie is a mistake. A node belongs to the first stage that takes it;
``limit`` takes the first of the selected nodes in an order that is stable for ever
(a hash of fleet and node), and leaves the others to later stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from edgewise.model.documents import Fleet, Node, NodeSet
from edgewise.model.labels import Labels, Selector
from edgewise.model.names import Platform
from edgewise.model.rules import StageRule
from edgewise.sync.mismatch import Finding
from edgewise.sync.parse import Report, Sourced
from edgewise.sync.ports import JoinedNode
from edgewise.sync.suggest import did_you_mean

PLATFORM_LABEL: Final = "edgewise.dev/platform"
"""``linux-amd64``, ``linux-arm-v7``: label values cannot hold a slash."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as the repo and its join describe it together."""

    name: str
    labels: Labels
    held: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    platform: str = ""
    """Empty: not known yet."""
    in_repo: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """The nodes of one fleet by name, in order. Unchanged members are the same object."""

    fleet: str
    nodes: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Who is where."""

    members: Mapping[str, Members]
    unplaced: tuple[str, ...]


def inventory(documents: Iterable[Sourced], report: Report) -> dict[str, Candidate]:
    """The nodes of the repo by name. A node that occurs twice is a mistake."""
    nodes: dict[str, Candidate] = {}
    first: dict[str, Sourced] = {}
    for where in documents:
        value = where.parsed.value
        if isinstance(value, NodeSet):
            defaults = value.spec.defaults.labels
            for index, row in enumerate(value.spec.nodes):
                if row.name in nodes:
                    path = ("spec", "nodes", index, "name")
                    report.at(where, _twice(path, row.name, first[row.name]))
                    continue
                labels = {**defaults, **row.labels}
                platform = _platform(labels)
                nodes[row.name] = Candidate(row.name, labels, row.hold, platform=platform)
                first[row.name] = where
        elif isinstance(value, Node):
            name = value.metadata.name
            if name in nodes:
                report.at(where, _twice(("metadata", "name"), name, first[name]))
                continue
            labels = value.metadata.labels
            overrides = value.spec.overrides.vars
            nodes[name] = Candidate(name, labels, value.spec.hold, overrides, _platform(labels))
            first[name] = where
    return nodes


def _twice(path: tuple[str | int, ...], name: str, first: Sourced) -> Finding:
    return Finding(path, f"node {name!r} is described twice", f"first in {first.where}", name)


def _platform(labels: Labels) -> str:
    return labels.get(PLATFORM_LABEL, "").replace("-", "/")


def with_joined(
    nodes: Mapping[str, Candidate], joined: Iterable[JoinedNode]
) -> dict[str, Candidate]:
    """The repo's nodes and those that joined; the repo's labels win."""
    together = dict(nodes)
    for node in joined:
        known = nodes.get(node.name)
        if known is None:
            platform = node.platform or _platform(node.labels)
            together[node.name] = Candidate(
                node.name, node.labels, platform=platform, in_repo=False
            )
            continue
        labels = {**node.labels, **known.labels}
        platform = node.platform or known.platform
        together[node.name] = Candidate(node.name, labels, known.held, known.overrides, platform)
    return together


def bad_platforms(nodes: Iterable[Candidate]) -> dict[str, str]:
    """Platform that is none to an example node."""
    bad: dict[str, str] = {}
    for node in nodes:
        if node.platform and node.platform not in bad:
            try:
                Platform(node.platform)
            except ValueError:
                bad[node.platform] = node.name
    return bad


def place(fleets: Sequence[Sourced], nodes: Mapping[str, Candidate], report: Report) -> Placement:
    """Every node to its fleet. A tie of priorities is reported once for each pair of fleets."""
    specs = [(f, f.parsed.value.spec) for f in fleets if isinstance(f.parsed.value, Fleet)]
    keys = sorted({key for _, spec in specs for key in spec.selector.keys})
    decided: dict[tuple[str | None, ...], Sourced | None] = {}
    ties: set[tuple[str, str]] = set()
    members: dict[str, list[Candidate]] = {f.parsed.name: [] for f in fleets}
    unplaced = []
    for name in sorted(nodes):
        node = nodes[name]
        values = tuple([node.labels.get(key) for key in keys])
        if values not in decided:
            takers = [(spec.priority, f) for f, spec in specs if spec.selector.matches(node.labels)]
            decided[values] = _winner(takers, name, ties, report)
        winner = decided[values]
        if winner is None:
            unplaced.append(name)
        else:
            members[winner.parsed.name].append(node)
    return Placement({f: Members(f, tuple(found)) for f, found in members.items()}, tuple(unplaced))


def _winner(
    takers: list[tuple[int, Sourced]], node: str, ties: set[tuple[str, str]], report: Report
) -> Sourced | None:
    if not takers:
        return None
    highest = max(priority for priority, _ in takers)
    first = [fleet for priority, fleet in takers if priority == highest]
    if len(first) > 1:
        pair = (first[0].parsed.name, first[1].parsed.name)
        if pair not in ties:
            ties.add(pair)
            report.at(
                first[1],
                Finding(
                    ("spec", "selector"),
                    f"fleets {pair[0]!r} and {pair[1]!r} both select node {node!r} "
                    f"with priority {highest}",
                    "give one of them a higher spec.priority, or narrow a selector",
                    node,
                ),
            )
    return first[0]


def selector_hint(selector: Selector, nodes: Iterable[Candidate]) -> str:
    """Why a selector may match nothing: the nearest key or value that some node has."""
    listed = list(nodes)
    known_keys = {key for node in listed for key in node.labels}
    for key, wanted in _wanted(selector):
        if key not in known_keys:
            return f"no node has the label {key!r}: {did_you_mean(key, known_keys)}"
        values = {node.labels[key] for node in listed if key in node.labels}
        if wanted and not values & set(wanted):
            return f"no node has {key}={wanted[0]}: {did_you_mean(wanted[0], values)}"
    return "every label exists, but no node has all of them"


def _wanted(selector: Selector) -> list[tuple[str, tuple[str, ...]]]:
    exact = [(key, (value,)) for key, value in selector.match_labels.items()]
    some = [(r.key, r.values) for r in selector.match_expressions if r.operator in ("In", "Exists")]
    return exact + some


def assign_stages(
    fleet: str, stages: Sequence[StageRule], members: Sequence[Candidate]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Node to stage, and the nodes that no stage takes. Held nodes take no one's place."""
    order = sorted(members, key=lambda n: (n.held, _draw(fleet, n.name)))
    stage_of: dict[str, str] = {}
    left = order
    for stage in stages:
        selected = [n for n in left if stage.selector.matches(n.labels)]
        taken = {n.name for n in selected[: stage.limit.of(len(selected))]}
        stage_of.update(dict.fromkeys(taken, stage.name))
        left = [n for n in left if n.name not in taken]
    ordered = {n.name: stage_of[n.name] for n in members if n.name in stage_of}
    return ordered, tuple(sorted(n.name for n in left))


def _draw(fleet: str, node: str) -> bytes:
    return hashlib.sha256(f"{fleet}/{node}".encode()).digest()
