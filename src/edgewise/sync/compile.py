"""A commit to releases. Pure and deterministic: same content, same digests, anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from edgewise.model.documents import (
    DeviceList,
    FederatedTrustDomain,
    Fleet,
    RolloutPolicy,
    Secret,
    WorkloadIdentity,
    Workspace,
)
from edgewise.model.documents.federation import FederatedTrustDomainSpec
from edgewise.model.documents.joining import JoinSpec
from edgewise.model.names import Digest
from edgewise.model.quantity import Share
from edgewise.model.rules import RolloutRules
from edgewise.protocol import codec, limits
from edgewise.protocol.content import Artifact, Release, variant_key
from edgewise.sync import parts
from edgewise.sync.fleet_parts import Bench, Built, FleetParts, artifact_rules
from edgewise.sync.governing import bindings
from edgewise.sync.matching import (
    PLATFORM_LABEL,
    Candidate,
    Members,
    Placement,
    assign_stages,
    bad_platforms,
    inventory,
    place,
    selector_hint,
    with_joined,
)
from edgewise.sync.mismatch import Finding
from edgewise.sync.parse import ParseCache, Report, Sourced, left_alone, parse_revision
from edgewise.sync.policy import SAFE_DEFAULT, rules_of
from edgewise.sync.ports import (
    Compiled,
    CompiledFleet,
    CompileFailed,
    Inputs,
    JoinedNode,
    Member,
    Snapshot,
)
from edgewise.sync.references import Catalogue, catalogue, check_references
from edgewise.sync.yaml_text import Flaw


def compile_workspace(
    snapshot: Snapshot, inputs: Inputs, cache: ParseCache, previous: Compiled | None
) -> Compiled:
    """Every fleet of the commit. Raises CompileFailed with all mistakes, in file order.

    ``previous`` is only asked how many nodes would lose their fleet; it changes no digest.
    """
    making = _Compile(snapshot, inputs.joined, inputs.artifacts, cache, inputs.signers)
    return making.run(previous, inputs.trust)


def check_workspace(
    snapshot: Snapshot,
    artifacts: Mapping[tuple[str, str], Artifact] | None,
    cache: ParseCache,
    previous: Compiled | None = None,
) -> Compiled:
    """As ``compile_workspace`` for the repo alone; without a list of artifacts, whether they
    are published is not checked. Raises CompileFailed."""
    return _Compile(snapshot, (), artifacts, cache).run(previous, "hub")


Trust = Literal["hub", "builder"]


@dataclass(frozen=True, slots=True)
class _Policy:
    """The rules of a fleet, and the document they stand in (None for the default)."""

    rules: RolloutRules
    source: Sourced | None


class _Compile:
    def __init__(
        self,
        snapshot: Snapshot,
        joined: tuple[JoinedNode, ...],
        artifacts: Mapping[tuple[str, str], Artifact] | None,
        cache: ParseCache,
        signers: Mapping[tuple[str, str], frozenset[str]] | None = None,
    ) -> None:
        self._snapshot = snapshot
        self._signers = signers
        self._joined = joined
        self._artifacts = artifacts
        self._cache = cache
        self._report = Report(snapshot.files)
        self._warnings = Report(snapshot.files)

    def run(self, previous: Compiled | None, hub_trust: Trust) -> Compiled:
        revision = parse_revision(self._snapshot.files, self._cache, self._report)
        kinds = catalogue(revision.documents, self._report)
        workspaces = kinds.get("Workspace", {})
        if not workspaces or not revision.complete:
            raise CompileFailed(self._report.problems())
        check_references(kinds, revision.broken, self._report)
        root = next(iter(workspaces.values()))
        bench = Bench(kinds, root, self._artifacts, self._cache, self._report, self._signers)
        trust = _stricter(hub_trust, root)
        placement, later = self._place(kinds, revision.documents, trust)
        self._warn_selectors(kinds)
        self._warn_left_alone(root)
        fleets: dict[str, CompiledFleet] = {}
        for name, where in sorted(kinds.get("Fleet", {}).items()):
            compiled = self._fleet(bench, where, placement.members[name], later)
            if compiled is not None:
                fleets[name] = compiled
        if len(self._report):
            raise CompileFailed(self._report.problems())
        placed = {node for fleet in fleets.values() for node in fleet.members}
        return Compiled(
            revision=self._snapshot.revision,
            fleets=fleets,
            unplaced=tuple(sorted(n.name for n in self._joined if n.name not in placed)),
            not_acted_on=_not_acted_on(revision.documents),
            secrets=_secrets(kinds),
            held=_held(root, fleets, self._before(previous)),
            warnings=self._warnings.problems(),
            trust=trust,
            join=_join(root),
            artifacts=artifact_rules(root),
            device_lists=_device_lists(kinds),
            federated=_federated(kinds),
            bindings=bindings(kinds.get("RoleBinding", {})),
        )

    def _before(self, previous: Compiled | None) -> Compiled | None:
        """The same commit takes nothing away: nodes that went meanwhile were forgotten."""
        same = previous is not None and previous.revision == self._snapshot.revision
        return None if same else previous

    # Who is where

    def _place(
        self, kinds: Catalogue, documents: Iterable[Sourced], trust: str
    ) -> tuple[Placement, Mapping[str, Members]]:
        """Members that take part in compiling, and those that may join in afterwards."""
        described = tuple(d for d in documents if d.parsed.kind in ("Node", "NodeSet"))
        fleets = tuple(fleet for _, fleet in sorted(kinds.get("Fleet", {}).items()))
        results = self._cache.results
        joined = results.get(("joined",))
        if joined != self._joined:
            joined = results.put(("joined",), self._joined)
        key = ("placement", described, fleets, trust)
        known = results.get(key)
        if known is not None and known[0] is joined:
            return known[1], known[2]
        before = len(self._report)
        placement, later = self._place_anew(described, fleets, trust)
        if len(self._report) == before:
            results.put(key, (joined, placement, later))
        return placement, later

    def _place_anew(
        self, described: tuple[Sourced, ...], fleets: tuple[Sourced, ...], trust: str
    ) -> tuple[Placement, Mapping[str, Members]]:
        in_repo = inventory(described, self._report)
        together = with_joined(in_repo, self._joined)
        for platform, node in bad_platforms(together.values()).items():
            message = f"label {PLATFORM_LABEL} of node {node} is no platform: {platform!r}"
            where = next((d for d in described if node in _names(d)), None)
            if where is not None:
                hint = "it takes linux-amd64, linux-arm64 or linux-arm-v7"
                self._report.at(where, Finding(("spec",), message, hint, platform))
        if trust == "builder":
            placement = place(fleets, in_repo, self._report)
            others = {n: c for n, c in together.items() if not c.in_repo}
            later = place(fleets, others, self._report).members
        else:
            placement, later = place(fleets, together, self._report), {}
        return (
            Placement(
                {name: self._same(m) for name, m in placement.members.items()}, placement.unplaced
            ),
            later,
        )

    def _same(self, members: Members) -> Members:
        """The object of the last compile when nobody came, went or changed."""
        key = ("members", members.fleet)
        known: Members | None = self._cache.results.get(key)
        if known is not None and known.nodes == members.nodes:
            return known
        self._cache.results.put(key, members)
        return members

    # One fleet

    def _fleet(
        self, bench: Bench, where: Sourced, members: Members, later: Mapping[str, Members]
    ) -> CompiledFleet | None:
        fleet = where.parsed.value
        if not isinstance(fleet, Fleet):
            return None
        before = len(self._report)
        policy = self._policy(bench.kinds, fleet)
        built = FleetParts(bench, where, fleet, members).build()
        for part in built:
            self._check_platforms(part, members)
        stages = self._stages(where, members, policy)
        self._warn(bench, where, fleet, members)
        if len(self._report) > before:
            return None
        release = Release(
            fleet.metadata.name, tuple(b.ref for b in built), parts.node_settings(fleet.spec)
        )
        return self._release(where, release, built, (members, later, policy, stages))

    def _release(
        self,
        where: Sourced,
        release: Release,
        built: list[Built],
        who: tuple[Members, Mapping[str, Members], _Policy, Mapping[str, str]],
    ) -> CompiledFleet | None:
        members, later, policy, stages = who
        data = codec.encode(release)
        if len(data) > limits.RELEASE:
            message = f"the release has {len(data):,} bytes, at most {limits.RELEASE:,}"
            hint = "use labels in templates instead of node.name"
            self._report.at(where, Finding(("spec",), message, hint))
            return None
        digest = Digest.of(data).sha256
        more = later.get(release.fleet)
        key = ("fleet", where, digest, members, more, policy.source)
        known: CompiledFleet | None = self._cache.results.get(key)
        if known is not None:
            return known
        selected = _selections(release, members.nodes)
        joined_later = _fitting(release, more.nodes) if more else {}
        stages = {**stages, **self._later_stages(release.fleet, policy, more, joined_later)}
        documents = {d: b for part in built for d, b in part.documents.items()}
        fleet = where.parsed.value
        compiled = CompiledFleet(
            name=release.fleet,
            release=digest,
            documents={**dict(sorted(documents.items())), digest: data},
            members={n: m for n, m in {**selected, **joined_later}.items() if n in stages},
            rules=policy.rules,
            stages=stages,
            trees={t.sha256: t.size for part in built for t in part.trees.values()},
            suspended=isinstance(fleet, Fleet) and fleet.spec.suspend,
        )
        self._cache.results.put(key, compiled)
        return compiled

    @staticmethod
    def _later_stages(
        fleet: str, policy: _Policy, more: Members | None, fitting: Mapping[str, Member]
    ) -> dict[str, str]:
        if more is None:
            return {}
        nodes = [n for n in more.nodes if n.name in fitting]
        return assign_stages(fleet, policy.rules.stages, nodes)[0]

    def _policy(self, kinds: Catalogue, fleet: Fleet) -> _Policy:
        ref = fleet.spec.rollout_policy_ref
        where = kinds.get("RolloutPolicy", {}).get(ref.name) if ref else None
        if where is None or not isinstance(where.parsed.value, RolloutPolicy):
            return _Policy(SAFE_DEFAULT, None)
        return _Policy(rules_of(where.parsed.value.spec), where)

    def _stages(self, where: Sourced, members: Members, policy: _Policy) -> dict[str, str]:
        key = ("stages", members, policy.source)
        known = self._cache.results.get(key)
        if known is None:
            known = assign_stages(members.fleet, policy.rules.stages, members.nodes)
            self._cache.results.put(key, known)
        stages, left_out = known
        if left_out:
            source = policy.source or where
            message = (
                f"the stages leave out {len(left_out)} of {len(members.nodes)} nodes of fleet "
                f"{members.fleet!r}, such as {left_out[0]}"
            )
            hint = "end with a stage that has neither selector nor limit"
            self._report.at(source, Finding(("spec", "stages"), message, hint, left_out[0]))
        self._warn_stages(policy, members, stages)
        return dict(stages)

    def _check_platforms(self, part: Built, members: Members) -> None:
        if not part.trees:
            return
        for node in members.nodes:
            if not node.platform or node.platform in part.trees:
                continue
            if part.ref.choose(node.name, node.labels):
                artifact = part.source.parsed.spec.get("artifact", {})
                message = (
                    f"artifact {artifact.get('ref')} {artifact.get('version')} has no tree for "
                    f"{node.platform}, the platform of node {node.name}"
                )
                hint = (
                    f"it has {', '.join(sorted(part.trees))}; build with "
                    f"--platform {node.platform} and publish a new version"
                )
                self._report.at(
                    part.source, Finding(("spec", "artifact"), message, hint, node.platform)
                )
                return

    # Probably not meant

    def _warn_selectors(self, kinds: Catalogue) -> None:
        """A program alone says nothing of who runs it, and with which library."""
        for where in kinds.get("WorkloadIdentity", {}).values():
            value = where.parsed.value
            if not isinstance(value, WorkloadIdentity):
                continue
            if all(
                text.startswith(("unix:path:", "unix:sha256:")) for text in value.spec.selectors
            ):
                name = value.metadata.name
                message = f"WorkloadIdentity {name!r} selects a program, whoever runs it"
                hint = "every user can start it with a library of their own; add unix:user, "
                hint += "systemd:unit or edgewise:app"
                self._warnings.at(where, Finding(("spec", "selectors"), message, hint))

    def _warn_left_alone(self, root: Sourced) -> None:
        """A document in a folder that nobody reads does nothing, and nobody is told."""
        workspace = root.parsed.value
        if not isinstance(workspace, Workspace):
            return
        for path in left_alone(self._snapshot.files, workspace):
            folder = path.rpartition("/")[0] or "."
            message = f"this file is not read: {folder} is not in the Workspace's spec.paths"
            hint = "add it to spec.paths of edgewise.yaml, or move the file"
            self._warnings.on(path, Flaw(1, 1, message, hint))

    def _warn(self, bench: Bench, where: Sourced, fleet: Fleet, members: Members) -> None:
        if not members.nodes:
            everybody = [n for m in self._all_members(bench) for n in m.nodes]
            hint = (
                selector_hint(fleet.spec.selector, everybody)
                if everybody
                else ("`edgewise node token` lets a node join, or list it in a NodeSet")
            )
            message = f"fleet {fleet.metadata.name!r} selects no node"
            self._warnings.at(where, Finding(("spec", "selector"), message, hint))
            return
        for index, overlay in enumerate(fleet.spec.overlays):
            if not any(overlay.selector.matches(n.labels) for n in members.nodes):
                message = f"overlay {overlay.name!r} applies to no node of the fleet"
                hint = selector_hint(overlay.selector, members.nodes)
                path = ("spec", "overlays", index, "selector")
                self._warnings.at(where, Finding(path, message, hint))

    def _all_members(self, bench: Bench) -> list[Members]:
        found = []
        for name in bench.kinds.get("Fleet", {}):
            members: Members | None = self._cache.results.get(("members", name))
            if members is not None:
                found.append(members)
        return found

    def _warn_stages(self, policy: _Policy, members: Members, stages: Mapping[str, str]) -> None:
        if policy.source is None or not members.nodes:
            return
        counts: dict[str, int] = {}
        for stage in stages.values():
            counts[stage] = counts.get(stage, 0) + 1
        for index, rule in enumerate(policy.rules.stages):
            count = counts.get(rule.name, 0)
            path = ("spec", "stages", index)
            if count == 0 and rule.selector.keys:
                message = f"stage {rule.name!r} has no node of fleet {members.fleet!r}"
                hint = selector_hint(rule.selector, members.nodes)
                self._warnings.at(policy.source, Finding(path, message, hint))
            elif count == 0 and rule.min_targets:
                message = f"stage {rule.name!r} is left without a node of fleet {members.fleet!r}"
                hint = "a rollout waits there until one joins; minTargets: 0 lets it pass"
                self._warnings.at(policy.source, Finding((*path, "name"), message, hint))
            elif 0 < count < rule.min_targets:
                message = (
                    f"stage {rule.name!r} waits for minTargets {rule.min_targets}, but has "
                    f"{count} nodes of fleet {members.fleet!r}"
                )
                hint = "it will wait for ever; lower minTargets or select more nodes"
                self._warnings.at(policy.source, Finding((*path, "minTargets"), message, hint))


def _names(where: Sourced) -> set[str]:
    value = where.parsed.value
    if hasattr(value.spec, "nodes"):
        return {row.name for row in value.spec.nodes}
    return {value.metadata.name}


def _stricter(hub: Trust, workspace: Sourced) -> Trust:
    """Git cannot weaken what the hub was started with, nor the hub what git asks for."""
    value = workspace.parsed.value
    asked = value.spec.trust if isinstance(value, Workspace) else "hub"
    return "builder" if "builder" in (hub, asked) else "hub"


def _selections(release: Release, nodes: Iterable[Candidate]) -> dict[str, Member]:
    """What each node runs, as one digest; equal choices are hashed once."""
    refs = [(r, r.by, r.variants, r.nodes) for r in release.parts]
    hashed: dict[tuple[str, ...], str] = {}
    members = {}
    for node in nodes:
        choice = []
        for _, by, variants, alone in refs:
            digest = alone.get(node.name) if alone else None
            choice.append(digest or variants[variant_key(by, node.labels)])
        chosen = tuple(choice)
        selection = hashed.get(chosen)
        if selection is None:
            data = codec.encode(
                [(r.kind, r.name, d) for (r, *_), d in zip(refs, chosen, strict=True) if d]
            )
            selection = hashed[chosen] = hashlib.sha256(data).hexdigest()
        members[node.name] = Member(node.name, node.labels, selection, node.held)
    return members


def _fitting(release: Release, nodes: Iterable[Candidate]) -> dict[str, Member]:
    """Nodes that took no part in compiling but find a variant of every part."""
    fitting = [
        node
        for node in nodes
        if all(ref.choose(node.name, node.labels) is not None for ref in release.parts)
    ]
    return _selections(release, fitting)


def _not_acted_on(documents: Iterable[Sourced]) -> tuple[str, ...]:
    return tuple(
        f"{where.where} {field}".rstrip()
        for where in documents
        for field in where.parsed.not_acted_on
    )


def _secrets(kinds: Catalogue) -> dict[str, bytes]:
    found = {}
    for _, where in sorted(kinds.get("Secret", {}).items()):
        secret = where.parsed.value
        if isinstance(secret, Secret) and secret.spec.encryption == "age":
            data = parts.ciphertext(secret)
            found[Digest.of(data).sha256] = data
    return found


def _join(workspace: Sourced) -> JoinSpec:
    value = workspace.parsed.value
    return value.spec.join if isinstance(value, Workspace) else JoinSpec()


def _device_lists(kinds: Catalogue) -> tuple[DeviceList, ...]:
    found = (where.parsed.value for _, where in sorted(kinds.get("DeviceList", {}).items()))
    return tuple(value for value in found if isinstance(value, DeviceList))


def _federated(kinds: Catalogue) -> tuple[FederatedTrustDomainSpec, ...]:
    found = (w.parsed.value for _, w in sorted(kinds.get("FederatedTrustDomain", {}).items()))
    return tuple(value.spec for value in found if isinstance(value, FederatedTrustDomain))


def _held(
    workspace: Sourced, fleets: Mapping[str, CompiledFleet], previous: Compiled | None
) -> str:
    """Why a person must agree before nodes lose their fleet; empty when nobody must."""
    if previous is None or not isinstance(workspace.parsed.value, Workspace):
        return ""
    spec = workspace.parsed.value.spec
    before = {node for fleet in previous.fleets.values() for node in fleet.members}
    after = {node for fleet in fleets.values() for node in fleet.members}
    lost = sorted(before - after)
    allowed = Share.parse(spec.prune_protection.max_deleted) if spec.prune else Share(count=0)
    if not lost or not allowed.exceeded_by(len(lost), len(before)):
        return ""
    rule = f"pruneProtection.maxDeleted {allowed}" if spec.prune else "prune: false"
    some = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
    return f"{len(lost)} of {len(before)} nodes would lose their fleet ({some}), more than {rule}"
