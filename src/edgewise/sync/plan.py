"""What a commit would change: per fleet, part and node, before anything moves. Pure.

Nodes with the same choice before and after are looked at once, so the cost follows the
number of different changes and not the size of the fleet.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec
import yaml

from edgewise.model.quantity import format_duration
from edgewise.model.rules import StageRule
from edgewise.protocol.api import FileChange, FleetPlan, Plan, SourceProblem, StagePlan
from edgewise.protocol.content import FilesConfig, Part, ProcessApp, Release, TreeRef
from edgewise.protocol.travel import TreeBytes, TreeChange
from edgewise.sync.matching import PLATFORM_LABEL
from edgewise.sync.ports import Compiled, CompiledFleet, Member

DIFF: Final = 20_000
"""Characters of one diff."""
DIFF_LINES: Final = 4000
"""Lines of one text that are compared; the comparison's cost grows faster than they do."""
CHANGES: Final = 20
"""Different diffs that are shown of one part."""
MEMBERS: Final = 50
"""Names that are shown of one stage."""
WEIGHED: Final = 1000
"""Different changes of trees that are weighed for one plan; further trees count unpacked."""
MOVING: Final = 200
"""Names that are shown of nodes that join or leave a fleet."""

Choice = tuple[tuple[str, str, str], ...]
"""(kind, name, digest) of what one node runs."""


Scales = Mapping[TreeChange, TreeBytes]
"""What travels for each change of trees, as the hub knows it."""


class _Bytes(NamedTuple):
    """Bytes to one node."""

    travels: int = 0
    full: int = 0
    assumed: bool = False
    """Whole objects were counted for want of a delta, or unpacked sizes for want of a hub."""


class Planning:
    """From one compiled commit to another; ``before`` is None when nothing runs yet.

    First say which trees matter, so that the caller can look into them, then plan.
    """

    def __init__(self, before: Compiled | None, after: Compiled) -> None:
        self._before, self._after = before, after
        self._was = _Fleets(before.fleets if before else {})
        self._now = _Fleets(after.fleets)
        self._pairs = {name: _pairs(name, self._was, self._now) for name in self._now.fleets}

    @property
    def changes(self) -> tuple[TreeChange, ...]:
        """What has to be weighed, at most ``WEIGHED``."""
        weights = _Weights(self._was, self._now, {})
        done: set[tuple[Choice, Choice, str]] = set()
        for pairs in self._pairs.values():
            for (left, right), nodes in pairs.items():
                for node in nodes:
                    platform = self._now.platform(node)
                    apps = _apps(left), _apps(right), platform
                    if apps[0] != apps[1] and apps not in done:
                        done.add(apps)
                        weights.look_at(node, platform)
        return tuple(sorted(weights.asked, key=lambda one: (one.new, one.had))[:WEIGHED])

    def plan(self, scales: Scales) -> Plan:
        """What changes. Trees that ``scales`` does not know count whole and unpacked."""
        before, after = self._before, self._after
        weights = _Weights(self._was, self._now, scales)
        names = sorted({*self._was.fleets, *self._now.fleets})
        fleets = tuple(_fleet(name, self._pairs.get(name, {}), weights) for name in names)
        return Plan(
            base=before.revision if before else "",
            head=after.revision,
            fleets=fleets,
            not_acted_on=after.not_acted_on,
            held=after.held,
            warnings=after.warnings,
            bytes=sum(fleet.bytes for fleet in fleets),
            bytes_full=sum(fleet.bytes_full for fleet in fleets),
            assumed_whole=any(fleet.assumed_whole for fleet in fleets),
        )


def plan_change(before: Compiled | None, after: Compiled, scales: Scales | None = None) -> Plan:
    """``Planning`` for callers who know what travels, or do without."""
    return Planning(before, after).plan(scales or {})


def plan_refused(base: str, head: str, problems: Sequence[SourceProblem]) -> Plan:
    """The plan of a commit that does not compile."""
    return Plan(base, head, (), problems=tuple(problems))


class _Fleets:
    """The fleets of one commit, with their documents decoded at most once."""

    def __init__(self, fleets: Mapping[str, CompiledFleet]) -> None:
        self.fleets = fleets
        self.fleet_of = {node: f for f in fleets.values() for node in f.members}
        self._releases = {
            name: msgspec.json.decode(f.documents[f.release], type=Release)
            for name, f in fleets.items()
        }
        self._parts: dict[str, Part] = {}
        self._choices: dict[tuple[str, str], Choice] = {}

    def choice(self, node: str) -> Choice:
        """What a node runs; nothing when no fleet has it."""
        fleet = self.fleet_of.get(node)
        if fleet is None:
            return ()
        member = fleet.members[node]
        key = (fleet.name, member.selection)
        if key not in self._choices:
            self._choices[key] = self._releases[fleet.name].selection(node, member.labels)
        return self._choices[key]

    def trees_of(self, node: str, platform: str = "") -> list[TreeRef]:
        """The trees of what a node runs: for its platform, or all when it has none."""
        fleet = self.fleet_of.get(node)
        if fleet is None:
            return []
        parts = [self.part(fleet, digest) for _, _, digest in _apps(self.choice(node))]
        return [tree for part in parts for tree in _trees(part, platform)]

    def platform(self, node: str) -> str:
        """As ``linux/arm64``; empty when nobody has said it."""
        fleet = self.fleet_of.get(node)
        label = fleet.members[node].labels.get(PLATFORM_LABEL, "") if fleet else ""
        return label.replace("-", "/")

    def part(self, fleet: CompiledFleet, digest: str) -> Part:
        if digest not in self._parts:
            self._parts[digest] = msgspec.json.decode(fleet.documents[digest], type=Part)
        return self._parts[digest]


def _apps(choice: Choice) -> Choice:
    """Only apps have trees."""
    return tuple(one for one in choice if one[0] == "app")


def _trees(part: Part, platform: str) -> list[TreeRef]:
    if not isinstance(part, ProcessApp):
        return []
    trees = part.trees
    return [trees[platform]] if platform in trees else list(trees.values())


class _Weights:
    """What travels: objects that a node has already, in any part, do not."""

    def __init__(self, was: _Fleets, now: _Fleets, scales: Scales) -> None:
        self.was, self.now = was, now
        self.asked: set[TreeChange] = set()
        self._scales = scales
        self._nodes: dict[tuple[Choice, Choice, str], _Bytes] = {}
        self._known: dict[TreeChange, _Bytes] = {}

    def look_at(self, node: str, platform: str) -> None:
        """Ask for everything that is weighed for a node like this one."""
        self.of_node(node, platform)
        old = set(_apps(self.was.choice(node)))
        for one in _apps(self.now.choice(node)):
            if one not in old:
                self.of_part(node, one[2], platform)

    def of_part(self, node: str, digest: str, platform: str) -> _Bytes:
        """Of one part to a node like this one."""
        fleet = self.now.fleet_of[node]
        trees = _trees(self.now.part(fleet, digest), platform)
        found = self._trees(self._had(node, platform, trees), trees, platform)
        return _with_documents(found, len(fleet.documents[digest]))

    def of_node(self, node: str, platform: str) -> _Bytes:
        """Of everything that is new to a node like this one."""
        fleet = self.now.fleet_of[node]
        left, right = self.was.choice(node), self.now.choice(node)
        old = {digest for _, _, digest in left}
        new = [one for one in right if one[2] not in old]
        documents = sum(len(fleet.documents[digest]) for _, _, digest in new)
        apps = _apps(tuple(new))
        if not apps:
            return _Bytes(documents, documents)
        key = (_apps(left), apps, platform)
        if key not in self._nodes:
            trees = [t for _, _, d in apps for t in _trees(self.now.part(fleet, d), platform)]
            had = self._had(node, platform, trees)
            self._nodes[key] = self._trees(had, trees, platform)
        return _with_documents(self._nodes[key], documents)

    def _had(self, node: str, platform: str, wanted: list[TreeRef]) -> frozenset[str]:
        if not wanted:
            return frozenset()
        return frozenset(tree.sha256 for tree in self.was.trees_of(node, platform))

    def _trees(self, had: frozenset[str], trees: list[TreeRef], platform: str) -> _Bytes:
        """Without a platform nobody knows which one is taken: the dearest."""
        fresh = {tree.sha256: tree for tree in trees if tree.sha256 not in had}
        if not platform:
            return max((self._set(had, (tree,)) for tree in fresh.values()), default=_Bytes())
        return self._set(had, tuple(fresh.values()))

    def _set(self, had: frozenset[str], trees: tuple[TreeRef, ...]) -> _Bytes:
        if not trees:
            return _Bytes()
        change = TreeChange(tuple(sorted(had)), tuple(sorted(tree.sha256 for tree in trees)))
        self.asked.add(change)
        if change not in self._known:
            weighed = self._scales.get(change)
            # A tree that the hub does not have counts as large as the artifact says.
            absent = set(change.new if weighed is None else weighed.unknown)
            more = sum(tree.size for tree in trees if tree.sha256 in absent)
            if weighed is None:
                self._known[change] = _Bytes(more, more, True)
            else:
                self._known[change] = _Bytes(
                    weighed.travels + more,
                    weighed.full + more,
                    weighed.assumed_whole or bool(weighed.unknown),
                )
        return self._known[change]


def _with_documents(found: _Bytes, documents: int) -> _Bytes:
    return _Bytes(found.travels + documents, found.full + documents, found.assumed)


@dataclass(slots=True)
class _Difference:
    """One part that goes from one digest to another on some nodes."""

    part: str
    before: str
    after: str
    nodes: int
    example: str


def _pairs(name: str, was: _Fleets, now: _Fleets) -> dict[tuple[Choice, Choice], list[str]]:
    """Nodes of a fleet whose choice changes, by both choices."""
    pairs: dict[tuple[Choice, Choice], list[str]] = {}
    for node in now.fleets[name].members:
        pair = (was.choice(node), now.choice(node))
        if pair[0] != pair[1]:
            pairs.setdefault(pair, []).append(node)
    return pairs


def _fleet(
    name: str, pairs: Mapping[tuple[Choice, Choice], list[str]], weights: _Weights
) -> FleetPlan:
    was, now = weights.was, weights.now
    old, new = was.fleets.get(name), now.fleets.get(name)
    before = set(old.members) if old else set()
    after = dict(new.members) if new else {}
    differences: dict[tuple[str, str, str], _Difference] = {}
    sums: dict[str, list[int]] = {}
    assumed = False
    for (left, right), nodes in pairs.items():
        alike = Counter((now.platform(node), new.stages[node]) for node in nodes if new)
        for (platform, stage), count in alike.items():
            each = weights.of_node(nodes[0], platform)
            sum_of = sums.setdefault(stage, [0, 0])
            sum_of[0] += each.travels * count
            sum_of[1] += each.full * count
            assumed = assumed or each.assumed
        for part, old_digest, new_digest in _differences(left, right):
            key = (part, old_digest, new_digest)
            known = differences.setdefault(key, _Difference(*key, 0, nodes[0]))
            known.nodes += len(nodes)
            known.example = min(known.example, nodes[0])
    return FleetPlan(
        fleet=name,
        before=old.release if old else "",
        after=new.release if new else "",
        nodes=len(after),
        changed_nodes=sum(len(nodes) for nodes in pairs.values()),
        changes=tuple(_changes(differences.values(), weights)),
        stages=_stages(new, sums) if new else (),
        bytes=sum(travels for travels, _ in sums.values()),
        bytes_full=sum(full for _, full in sums.values()),
        assumed_whole=assumed,
        joining=tuple(sorted(set(after) - before)[:MOVING]),
        leaving=tuple(sorted(before - set(after))[:MOVING]),
    )


def _differences(left: Choice, right: Choice) -> list[tuple[str, str, str]]:
    """(part, digest before, digest after), empty digests for what is not there."""
    old = {f"{kind}/{name}": digest for kind, name, digest in left}
    new = {f"{kind}/{name}": digest for kind, name, digest in right}
    return [
        (part, old.get(part, ""), new.get(part, ""))
        for part in sorted({*old, *new})
        if old.get(part) != new.get(part)
    ]


def _changes(differences: Iterable[_Difference], weights: _Weights) -> Iterable[FileChange]:
    """One entry for each different diff; variants that differ alike are counted together."""
    by_part: dict[str, list[_Difference]] = {}
    for difference in differences:
        by_part.setdefault(difference.part, []).append(difference)
    for _, listed in sorted(by_part.items()):
        listed.sort(key=lambda d: (-d.nodes, d.example))
        shown: dict[tuple[str, str], FileChange] = {}
        rest = 0
        for difference in listed:
            if len(shown) >= CHANGES:
                rest += difference.nodes
                continue
            change = _change(difference, weights)
            key = (change.kind, change.diff)
            if key in shown:
                change = msgspec.structs.replace(
                    shown[key],
                    nodes=shown[key].nodes + change.nodes,
                    bytes=max(shown[key].bytes, change.bytes),
                    bytes_full=max(shown[key].bytes_full, change.bytes_full),
                    assumed_whole=shown[key].assumed_whole or change.assumed_whole,
                )
            shown[key] = change
        yield from shown.values()
        if rest:
            last = listed[-1]
            note = f"# {len(listed) - CHANGES} more variants, each with a diff of its own\n"
            change = _change(last, weights)
            yield msgspec.structs.replace(change, nodes=rest, diff=(note + change.diff)[:DIFF])


def _change(difference: _Difference, weights: _Weights) -> FileChange:
    was, now, node = weights.was, weights.now, difference.example
    old = was.part(was.fleet_of[node], difference.before) if difference.before else None
    new = now.part(now.fleet_of[node], difference.after) if difference.after else None
    kind: Literal["added", "removed", "changed"] = (
        "added" if old is None else "removed" if new is None else "changed"
    )
    each = _Bytes()
    if new:
        each = weights.of_part(node, difference.after, now.platform(node))
    return FileChange(
        part=difference.part,
        kind=kind,
        nodes=difference.nodes,
        example=node,
        diff=diff_of(difference.part, old, new),
        bytes=each.travels,
        bytes_full=each.full,
        assumed_whole=each.assumed,
    )


def diff_of(name: str, old: Part | None, new: Part | None) -> str:
    """Unified diff of a part's text, file by file; at most ``DIFF`` characters."""
    left, right = _texts(name, old), _texts(name, new)
    pieces: list[str] = []
    for file in sorted({*left, *right}):
        if left.get(file) != right.get(file):
            pieces.append(_diff(file, left.get(file), right.get(file)))
    text = "".join(pieces)
    if len(text) <= DIFF:
        return text
    note = "\n... the diff goes on\n"
    return text[: DIFF - len(note)] + note


def _diff(file: str, old: str | None, new: str | None) -> str:
    left, right = (old or "").splitlines(keepends=True), (new or "").splitlines(keepends=True)
    if len(left) > DIFF_LINES or len(right) > DIFF_LINES:
        return f"--- {file}\n+++ {file}\n# {len(left)} lines before, {len(right)} after\n"
    lines = difflib.unified_diff(
        left,
        right,
        f"a/{file.lstrip('/')}" if old is not None else "/dev/null",
        f"b/{file.lstrip('/')}" if new is not None else "/dev/null",
    )
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def _texts(name: str, part: Part | None) -> dict[str, str]:
    """A part as texts that a person can compare."""
    if part is None:
        return {}
    if isinstance(part, FilesConfig):
        texts = {file.path: file.content for file in part.files}
        rules: dict[str, Any] = {
            "files": {f.path: {"mode": f"{f.mode:04o}", "owner": f.owner} for f in part.files}
        }
        if part.on_change:
            rules["onChange"] = msgspec.to_builtins(part.on_change)
        texts[name] = _yaml(rules)
        return texts
    fields: dict[str, Any] = msgspec.to_builtins(part)
    if isinstance(part, ProcessApp):
        fields["trees"] = {
            platform: f"sha256:{tree.sha256[:12]} ({tree.files} files, {tree.size} bytes)"
            for platform, tree in part.trees.items()
        }
    return {name: _yaml(fields)}


def _yaml(fields: Mapping[str, Any]) -> str:
    text: str = yaml.safe_dump(dict(fields), sort_keys=True, width=100, allow_unicode=True)
    return text


def _stages(fleet: CompiledFleet, sums: Mapping[str, Sequence[int]]) -> tuple[StagePlan, ...]:
    """``sums``: stage to the bytes that travel in it, and those without deltas."""
    members: dict[str, list[str]] = {rule.name: [] for rule in fleet.rules.stages}
    for node, stage in fleet.stages.items():
        members[stage].append(node)
    held = _held(fleet.members.values())
    return tuple(
        StagePlan(
            rule.name,
            len(members[rule.name]),
            tuple(sorted(members[rule.name])[:MEMBERS]),
            waits_for(rule, len(held.intersection(members[rule.name]))),
            *sums.get(rule.name, (0, 0)),
        )
        for rule in fleet.rules.stages
    )


def _held(members: Iterable[Member]) -> set[str]:
    return {member.name for member in members if member.held}


def waits_for(rule: StageRule, held: int = 0) -> str:
    """What must be true before the next stage, in words."""
    words = []
    if rule.approval:
        words.append("approval")
    if rule.min_targets > 1:
        words.append(f"{rule.min_targets} connected nodes")
    if rule.max_concurrent.percent != 100:
        words.append(f"at most {rule.max_concurrent} at once")
    words.append(f"{rule.success_threshold} succeed")
    if rule.bake:
        words.append(f"{format_duration(rule.bake)} of health")
    if rule.gates:
        words.append(f"gates {', '.join(gate.name for gate in rule.gates)}")
    if held:
        words.append(f"{held} held")
    return "; ".join(words)
