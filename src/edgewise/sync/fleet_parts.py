"""The parts of one fleet: documents, overlays and templates put together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgewise.model.documents import (
    App,
    Config,
    EgressPolicy,
    Fleet,
    OSImage,
    Secret,
    WorkloadIdentity,
    Workspace,
)
from edgewise.model.documents.app import AnyAppSpec, ProcessSpec
from edgewise.model.documents.content import ConfigSpec
from edgewise.model.documents.fleet import Placed
from edgewise.model.documents.inventory import ArtifactRules
from edgewise.model.labels import Selector
from edgewise.model.names import Digest
from edgewise.protocol import codec, limits
from edgewise.protocol.content import Artifact, NotActedOn, PartRef, ProcessApp, TreeRef
from edgewise.sync import parts
from edgewise.sync.artifact_rules import lacks
from edgewise.sync.matching import Candidate, Members
from edgewise.sync.merge import merged
from edgewise.sync.mismatch import Finding, dotted, findings
from edgewise.sync.parse import ROOT, ParseCache, Report, Sourced
from edgewise.sync.references import Catalogue
from edgewise.sync.render import Layer, Lens, Rendered, render_part
from edgewise.sync.suggest import did_you_mean
from edgewise.sync.yaml_text import Path


@dataclass(frozen=True, slots=True)
class Patch:
    """What one overlay changes in one document."""

    path: Path
    """Where the patch stands in the Fleet."""
    selector: Selector
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Built:
    """One part, rendered for the fleet."""

    ref: PartRef
    documents: Mapping[str, bytes]
    trees: Mapping[str, TreeRef]
    """Platform to tree, for a process app."""
    source: Sourced


@dataclass(frozen=True, slots=True)
class Bench:
    """What building parts works with."""

    kinds: Catalogue
    workspace: Sourced
    artifacts: Mapping[tuple[str, str], Artifact] | None
    """None: whether artifacts are published is not checked (`edgewise validate`)."""
    cache: ParseCache
    report: Report
    signers: Mapping[tuple[str, str], frozenset[str]] | None = None
    """(name, version) to the builder keys that signed an artifact's provenance; None: who
    signed is not judged."""


def artifact_rules(workspace: Sourced) -> ArtifactRules:
    """What the Workspace asks of artifacts."""
    value = workspace.parsed.value
    return value.spec.artifacts if isinstance(value, Workspace) else ArtifactRules()


class FleetParts:
    """Builds the parts of one fleet; what did not change comes from the cache."""

    def __init__(self, bench: Bench, where: Sourced, fleet: Fleet, members: Members) -> None:
        self._bench = bench
        self._where = where
        self._fleet = fleet
        self._members = members
        self._layers = _layers(bench.workspace, where, fleet)
        self._unfit: set[Path] = set()
        """Patches that were reported already."""

    def build(self) -> list[Built]:
        """Every part whose document exists, sorted by kind and name."""
        self._check_patches()
        spec = self._fleet.spec
        built = [self._kept("App", placed) for placed in spec.apps]
        built += [self._kept("Config", placed) for placed in spec.configs]
        built += [self._kept("Secret", placed) for placed in spec.secrets]
        built += [self._kept("WorkloadIdentity", placed) for placed in spec.identities]
        built.append(self._os_image())
        built.append(self._egress())
        return sorted((b for b in built if b), key=lambda b: (b.ref.kind, b.ref.name))

    def _kept(self, kind: str, placed: Placed) -> Built | None:
        source = self._bench.kinds.get(kind, {}).get(placed.ref.name)
        if source is None:
            return None
        artifact = self._artifact(source)
        key = (
            "part",
            source,
            self._where,
            self._bench.workspace,
            self._members,
            codec.encode(artifact) if artifact else b"",
        )
        results, report = self._bench.cache.results, self._bench.report
        known: Built | None = results.get(key)
        if known is not None:
            return known
        before = len(report)
        match source.parsed.value:
            case App():
                built = self._app(source, placed, artifact)
            case Config():
                built = self._config(source, placed)
            case Secret() as secret:
                built = self._secret(source, placed, secret)
            case WorkloadIdentity() as identity:
                built = self._identity(source, placed, identity)
            case other:
                raise TypeError(f"a fleet cannot hold {other!r}")
        if len(report) == before:
            results.put(key, built)
        return built

    def _artifact(self, source: Sourced) -> Artifact | None:
        value = source.parsed.value
        known = self._bench.artifacts
        if known is None or not isinstance(value, App) or not isinstance(value.spec, ProcessSpec):
            return None
        ref = value.spec.artifact
        if (artifact := known.get((ref.ref, ref.version))) is not None:
            if artifact.system is True:
                message = f"artifact {ref.ref} {ref.version} is an operating system, no app"
                hint = "apps get plain trees: build one without --system"
                finding = Finding(("spec", "artifact", "ref"), message, hint, ref.ref)
                self._bench.report.at(source, finding)
                return None
            if artifact.shape is not msgspec.UNSET:
                message = f"artifact {ref.ref} {ref.version} is an image ({artifact.shape}), no app"
                hint = "nodes take images as docs/images.md says; apps get directories"
                finding = Finding(("spec", "artifact", "ref"), message, hint, ref.ref)
                self._bench.report.at(source, finding)
                return None
            self._check_platforms(source, value.spec, artifact)
            self._check_evidence(source, artifact)
            return artifact
        versions = sorted(version for name, version in known if name == ref.ref)
        publish = f"`edgewise artifact publish {ref.ref} {ref.version}` publishes it"
        if versions:
            message = f"artifact {ref.ref} has no published version {ref.version}"
            finding = Finding(
                ("spec", "artifact", "version"),
                message,
                f"{publish}; {did_you_mean(ref.version, versions)}",
                ref.version,
            )
        else:
            message = f"artifact {ref.ref!r} is not published"
            near = did_you_mean(ref.ref, {name for name, _ in known}, otherwise=" ").strip()
            hint = f"{publish}; {near}" if near else publish
            finding = Finding(("spec", "artifact", "ref"), message, hint, ref.ref)
        self._bench.report.at(source, finding)
        return None

    def _check_platforms(self, source: Sourced, spec: ProcessSpec, artifact: Artifact) -> None:
        for index, platform in enumerate(spec.platforms):
            if platform not in artifact.trees:
                message = f"artifact {artifact.name} {artifact.version} has no tree for {platform}"
                hint = f"it has {', '.join(sorted(artifact.trees))}; build and publish {platform}"
                self._bench.report.at(
                    source, Finding(("spec", "platforms", index), message, hint, platform)
                )

    def _check_evidence(self, source: Sourced, artifact: Artifact) -> None:
        signers = self._bench.signers
        known = (artifact.name, artifact.version)
        signed_by = None if signers is None else signers.get(known, frozenset())
        rules = artifact_rules(self._bench.workspace)
        for lack, hint in lacks(rules, artifact, signed_by):
            message = f"artifact {artifact.name} {artifact.version} {lack}; {ROOT} asks for it"
            finding = Finding(("spec", "artifact", "ref"), message, hint, artifact.name)
            self._bench.report.at(source, finding)

    def _lens(self, node: Candidate) -> Lens:
        return Lens(self._fleet.metadata.name, self._layers, node)

    def _render(self, make: Callable[[Lens], bytes]) -> Rendered:
        return render_part(make, self._lens, self._members.nodes, self._bench.report)

    def _built(self, kind: str, name: str, source: Sourced, rendered: Rendered) -> Built:
        for data in rendered.documents.values():
            if len(data) > limits.PART:
                message = f"{source.parsed.kind} {source.parsed.name} has {len(data):,} bytes"
                hint = f"a part has at most {limits.PART:,}; put large files into an artifact"
                self._bench.report.at(source, Finding(("spec",), message, hint))
        ref = PartRef(
            kind,  # type: ignore[arg-type]  # one of the literals, by the callers
            name,
            rendered.by,
            dict(rendered.variants),
            dict(rendered.nodes),
        )
        return Built(ref, rendered.documents, {}, source)

    # Apps

    def _app(self, source: Sourced, placed: Placed, artifact: Artifact | None) -> Built:
        patches = self._patches("apps", placed.ref.name)
        name = placed.ref.name
        trees = artifact.trees if artifact else {}
        specs = _Variations(source, AnyAppSpecBox, patches)

        def make(lens: Lens) -> bytes:
            if not lens.matches(placed.selector):
                return b""
            spec: AnyAppSpec = specs.of(lens).spec
            at = specs.origin(self._where)
            env = {k: lens.text(*at(("spec", "env", k)), v) for k, v in spec.env.items()}
            words = getattr(spec, "command", ())
            command = tuple(
                lens.text(*at(("spec", "command", i)), word) for i, word in enumerate(words)
            )
            lens.done()
            if not isinstance(spec, ProcessSpec):
                return codec.encode(parts.other_app(name, spec, env, command))
            part: ProcessApp = parts.process_app(name, spec, trees, self._fleet.metadata.name)
            needs = tuple(d for d in part.depends_on if self._runs(d.name, lens))
            part = msgspec.structs.replace(part, env=env, command=command, depends_on=needs)
            return codec.encode(part)

        acted_on = isinstance(source.parsed.value, App) and isinstance(
            source.parsed.value.spec, ProcessSpec
        )
        kind, shown = ("app", name) if acted_on else ("other", f"App/{name}")
        built = self._built(kind, shown, source, self._render(make))
        return Built(built.ref, built.documents, trees, source)

    def _runs(self, app: str, lens: Lens) -> bool:
        """Whether the node of the lens really runs the app: nothing waits for one that it
        does not get, or whose type is not acted on yet."""
        source = self._bench.kinds.get("App", {}).get(app)
        if source is None or source.parsed.spec.get("type") != "process":
            return False
        placed = [p for p in self._fleet.spec.apps if p.ref.name == app]
        return any(lens.matches(p.selector) for p in placed)

    # Configs

    def _config(self, source: Sourced, placed: Placed) -> Built:
        patches = self._patches("configs", placed.ref.name)
        name = placed.ref.name
        specs = _Variations(source, ConfigSpecBox, patches)
        apps = {app.ref.name for app in self._fleet.spec.apps}
        self._check_on_change(source, apps)

        def make(lens: Lens) -> bytes:
            if not lens.matches(placed.selector):
                return b""
            spec: ConfigSpec = specs.of(lens).spec
            part = parts.files_config(name, spec)
            at = specs.origin(self._where)
            files = []
            for index, (file, said) in enumerate(zip(part.files, spec.files, strict=True)):
                if said.template:
                    path: Path = ("spec", "files", index)
                    place = lens.text(*at((*path, "path")), file.path)
                    if ".." in place.split("/"):
                        lens.refuse(source, Finding((*path, "path"), f"path {place!r} has '..'"))
                    text = lens.text(*at((*path, "content")), file.content)
                    file = msgspec.structs.replace(file, path=place, content=text)
                files.append(file)
            lens.done()
            return codec.encode(msgspec.structs.replace(part, files=tuple(files)))

        return self._built("config", name, source, self._render(make))

    def _check_on_change(self, source: Sourced, apps: set[str]) -> None:
        value = source.parsed.value
        if not isinstance(value, Config):
            return
        for index, change in enumerate(value.spec.on_change):
            if change.app is not None and change.app not in apps:
                fleet = self._fleet.metadata.name
                message = f"onChange speaks of app {change.app!r}, which fleet {fleet!r} has not"
                path: Path = ("spec", "onChange", index, "app")
                hint = did_you_mean(change.app, apps)
                self._bench.report.at(source, Finding(path, message, hint, change.app))

    # Secrets and the OS image

    def _secret(self, source: Sourced, placed: Placed, secret: Secret) -> Built:
        digest = Digest.of(parts.ciphertext(secret)).sha256
        part = parts.sealed_secret(secret, digest)
        data = codec.encode(part)

        def make(lens: Lens) -> bytes:
            return data if lens.matches(placed.selector) else b""

        acted_on = not isinstance(part, NotActedOn)
        name = placed.ref.name
        kind, shown = ("secret", name) if acted_on else ("other", f"Secret/{name}")
        return self._built(kind, shown, source, self._render(make))

    def _identity(self, source: Sourced, placed: Placed, identity: WorkloadIdentity) -> Built:
        data = codec.encode(parts.workload_identity(placed.ref.name, identity.spec))

        def make(lens: Lens) -> bytes:
            return data if lens.matches(placed.selector) else b""

        return self._built("identity", placed.ref.name, source, self._render(make))

    def _os_image(self) -> Built | None:
        if self._fleet.spec.os is None:
            return None
        ref = self._fleet.spec.os.image_ref
        source = self._bench.kinds.get("OSImage", {}).get(ref.name)
        if source is None or not isinstance(source.parsed.value, OSImage):
            return None
        channel = source.parsed.value.spec.channels.get(ref.channel)
        if channel is None:
            return None
        body = {
            "channel": ref.channel,
            "version": channel.version,
            **{v.platform: v.digest for v in channel.variants},
        }
        data = codec.encode(NotActedOn(ref.name, "OSImage", body))
        return self._built("other", f"OSImage/{ref.name}", source, self._render(lambda _: data))

    def _egress(self) -> Built | None:
        ref = self._fleet.spec.egress_policy_ref
        source = self._bench.kinds.get("EgressPolicy", {}).get(ref.name) if ref else None
        if source is None or not isinstance(source.parsed.value, EgressPolicy):
            return None
        policy = source.parsed.value
        self._check_egress_apps(source, policy)
        data = codec.encode(parts.egress_rules(policy))
        return self._built("egress", source.parsed.name, source, self._render(lambda _: data))

    def _check_egress_apps(self, source: Sourced, policy: EgressPolicy) -> None:
        """A policy speaks of apps of the repo (several fleets may share it); a rule, of apps
        that its policy concerns."""
        exist = set(self._bench.kinds.get("App", {}))
        concerned = {ref.name for ref in policy.spec.apps}
        named: list[tuple[Path, str, set[str], str]] = [
            (("spec", "apps", i, "name"), ref.name, exist, "there is no App")
            for i, ref in enumerate(policy.spec.apps)
        ]
        what = "the policy does not concern app" if concerned else "there is no App"
        for index, rule in enumerate(policy.spec.allow):
            for i, ref in enumerate(rule.apps):
                path: Path = ("spec", "allow", index, "apps", i, "name")
                named.append((path, ref.name, concerned or exist, what))
        for path, name, known, what in named:
            if name not in known:
                hint = did_you_mean(name, known)
                self._bench.report.at(source, Finding(path, f"{what} {name!r}", hint, name))

    # Overlays

    def _patches(self, field: str, name: str) -> tuple[Patch, ...]:
        found = []
        for index, overlay in enumerate(self._fleet.spec.overlays):
            for place, body in enumerate(getattr(overlay, field)):
                if body.get("name") == name:
                    change = {k: v for k, v in body.items() if k != "name"}
                    path: Path = ("spec", "overlays", index, field, place)
                    if path in self._unfit:
                        continue
                    found.append(Patch(path, overlay.selector, change))
        return tuple(found)

    def _check_patches(self) -> None:
        """Every patch alone must fit its document; then all together fit too, field by field."""
        fields = (("apps", "App", AnyAppSpecBox), ("configs", "Config", ConfigSpecBox))
        for index, overlay in enumerate(self._fleet.spec.overlays):
            for field, kind, box in fields:
                placed = {p.ref.name for p in getattr(self._fleet.spec, field)}
                for place, body in enumerate(getattr(overlay, field)):
                    path: Path = ("spec", "overlays", index, field, place)
                    finding = self._check_patch(body, path, (kind, box, placed))
                    if finding is not None:
                        self._unfit.add(path)
                        self._bench.report.at(self._where, finding)

    def _check_patch(
        self, body: Mapping[str, Any], path: Path, about: tuple[str, type[Any], set[str]]
    ) -> Finding | None:
        kind, box, placed = about
        name = body.get("name")
        if not isinstance(name, str):
            return Finding(path, f"{dotted(path)}.name is missing", f"name the {kind} to change")
        if name not in placed:
            message = f"the fleet has no {kind} {name!r} to change"
            return Finding((*path, "name"), message, did_you_mean(name, placed), name)
        source = self._bench.kinds.get(kind, {}).get(name)
        if source is None:
            return None
        change = {k: v for k, v in body.items() if k != "name"}
        if change.get("type", source.parsed.spec.get("type")) != source.parsed.spec.get("type"):
            return Finding((*path, "type"), "an overlay cannot change the type", "add another App")
        wrong = findings({"spec": merged(source.parsed.spec, change)}, box)
        if not wrong:
            return None
        first = wrong[0]
        inner = first.path[1:]
        message = f"with this overlay, {kind} {name}: {first.message}"
        return Finding((*path, *inner), message, first.hint, first.value, at_key=first.at_key)


class AnyAppSpecBox(msgspec.Struct):
    """An App's spec, for conversion."""

    spec: AnyAppSpec


class ConfigSpecBox(msgspec.Struct):
    """A Config's spec, for conversion."""

    spec: ConfigSpec


class _Variations:
    """A document's spec under every set of overlays that occurs."""

    def __init__(self, source: Sourced, box: type[Any], patches: tuple[Patch, ...]) -> None:
        self._source = source
        self._box = box
        self._patches = patches
        self._made: dict[tuple[int, ...], Any] = {}
        self._active: tuple[int, ...] = ()

    def of(self, lens: Lens) -> Any:
        self._active = tuple(i for i, p in enumerate(self._patches) if lens.matches(p.selector))
        if self._active not in self._made:
            spec: Any = self._source.parsed.spec
            for index in self._active:
                spec = merged(spec, self._patches[index].body)
            try:
                self._made[self._active] = msgspec.convert({"spec": spec}, self._box)
            except msgspec.ValidationError as error:
                lens.refuse(self._source, Finding(("spec",), f"with the overlays: {error}"))
                lens.done()
        return self._made[self._active]

    def origin(self, fleet: Sourced) -> Callable[[Path], tuple[Sourced, Path]]:
        """Where a field of the merged spec was written: in an overlay or in the document."""

        def at(path: Path) -> tuple[Sourced, Path]:
            for index in reversed(self._active):
                patch = self._patches[index]
                if _holds(patch.body, path[1:]):
                    return fleet, (*patch.path, *path[1:])
            return self._source, path

        return at


def _holds(body: Any, path: Path) -> bool:
    for step in path:
        if isinstance(body, dict) and step in body:
            body = body[step]
        elif isinstance(body, list) and isinstance(step, int) and step < len(body):
            body = body[step]
        else:
            return False
    return True


def _layers(workspace: Sourced, where: Sourced, fleet: Fleet) -> tuple[Layer, ...]:
    layers = []
    if isinstance(workspace.parsed.value, Workspace):
        layers.append(Layer(workspace, ("spec", "vars"), workspace.parsed.value.spec.vars))
    layers.append(Layer(where, ("spec", "vars"), fleet.spec.vars))
    for index, overlay in enumerate(fleet.spec.overlays):
        path: Path = ("spec", "overlays", index, "vars")
        layers.append(Layer(where, path, overlay.vars, overlay.selector))
    return tuple(layers)
