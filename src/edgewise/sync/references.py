"""What needs more than one document to be checked: names, references, circles. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgewise.model.documents import App, Fleet, OSImage, RoleBinding, WorkloadIdentity
from edgewise.sync.mismatch import Finding
from edgewise.sync.parse import ROOT, Report, Sourced
from edgewise.sync.parts import default_path
from edgewise.sync.suggest import did_you_mean
from edgewise.sync.yaml_text import Path

Catalogue = Mapping[str, Mapping[str, Sourced]]
"""Kind to name to document."""

POLICIES = (
    ("rolloutPolicyRef", "rollout_policy_ref", "RolloutPolicy"),
    ("accessPolicyRef", "access_policy_ref", "AccessPolicy"),
    ("healPolicyRef", "heal_policy_ref", "HealPolicy"),
    ("egressPolicyRef", "egress_policy_ref", "EgressPolicy"),
)


def catalogue(documents: Iterable[Sourced], report: Report) -> Catalogue:
    """Documents by kind and name. A name that a kind uses twice is a mistake."""
    kinds: dict[str, dict[str, Sourced]] = {}
    for where in documents:
        names = kinds.setdefault(where.parsed.kind, {})
        name = where.parsed.name
        if name in names:
            message = f"{where.parsed.kind} {name!r} is described twice"
            hint = f"first in {names[name].where}"
            report.at(where, Finding(("metadata", "name"), message, hint, name))
            continue
        names[name] = where
        if where.parsed.kind == "Workspace" and (where.file != ROOT or len(names) > 1):
            message = f"a Workspace belongs into {ROOT}, and there is one"
            report.at(where, Finding(("kind",), message, "remove this document"))
    return kinds


def check_references(kinds: Catalogue, broken: frozenset[tuple[str, str]], report: Report) -> None:
    """Every name that a document uses must exist; ``broken`` ones do, with mistakes."""
    for where in kinds.get("Fleet", {}).values():
        if isinstance(where.parsed.value, Fleet):
            _check_fleet(where, where.parsed.value, kinds, broken, report)
    for where in kinds.get("RoleBinding", {}).values():
        if isinstance(where.parsed.value, RoleBinding):
            _check_binding(where, where.parsed.value, kinds, broken, report)
    _check_circles(kinds.get("App", {}), report)
    _check_paths(kinds, report)


def _check_paths(kinds: Catalogue, report: Report) -> None:
    """One document for each SPIFFE ID: who may have it is read in one place."""
    first: dict[str, Sourced] = {}
    for kind in ("App", "WorkloadIdentity"):
        for where in kinds.get(kind, {}).values():
            path, at = _workload_path(where)
            if path and first.setdefault(path, where) is not where:
                other = first[path]
                message = (
                    f"{path} is the SPIFFE ID of {other.parsed.kind} {other.parsed.name!r} too"
                )
                hint = f"first in {other.where}; name its processes there, or choose another path"
                report.at(where, Finding(at, message, hint, path))


def _workload_path(where: Sourced) -> tuple[str, Path]:
    value = where.parsed.value
    if isinstance(value, WorkloadIdentity):
        return value.spec.spiffe_id, ("spec", "spiffeID")
    if isinstance(value, App) and value.spec.identity is not None:
        return value.spec.identity.spiffe_id or "", ("spec", "identity", "spiffeID")
    return "", ()


def _check_binding(
    where: Sourced,
    binding: RoleBinding,
    kinds: Catalogue,
    broken: frozenset[tuple[str, str]],
    report: Report,
) -> None:
    known = kinds.get("Fleet", {})
    for index, name in enumerate(binding.spec.fleets):
        if name not in known and ("Fleet", name) not in broken:
            path: Path = ("spec", "fleets", index)
            message = f"there is no Fleet {name!r}"
            report.at(where, Finding(path, message, did_you_mean(name, known), name))


def _check_fleet(
    where: Sourced,
    fleet: Fleet,
    kinds: Catalogue,
    broken: frozenset[tuple[str, str]],
    report: Report,
) -> None:
    spec = fleet.spec
    wanted: list[tuple[str, str, Path]] = []
    for field, kind, placed in (
        ("apps", "App", spec.apps),
        ("configs", "Config", spec.configs),
        ("secrets", "Secret", spec.secrets),
        ("identities", "WorkloadIdentity", spec.identities),
    ):
        wanted += [
            (kind, p.ref.name, ("spec", field, i, "ref", "name")) for i, p in enumerate(placed)
        ]
    for key, attribute, kind in POLICIES:
        if (ref := getattr(spec, attribute)) is not None:
            wanted.append((kind, ref.name, ("spec", key, "name")))
    if spec.os is not None:
        wanted.append(("OSImage", spec.os.image_ref.name, ("spec", "os", "imageRef", "name")))
    for kind, name, path in wanted:
        known = kinds.get(kind, {})
        if name not in known and (kind, name) not in broken:
            hint = did_you_mean(name, known)
            report.at(where, Finding(path, f"there is no {kind} {name!r}", hint, name))
    _check_channel(where, fleet, kinds, report)
    _check_dependencies(where, fleet, kinds, report)
    _check_selected_apps(where, fleet, kinds, report)
    _check_ingress(where, fleet, kinds, report)


def _check_ingress(where: Sourced, fleet: Fleet, kinds: Catalogue, report: Report) -> None:
    """A port of a node leads to one app."""
    taken: dict[int, str] = {}
    for index, placed in enumerate(fleet.spec.apps):
        document = kinds.get("App", {}).get(placed.ref.name)
        value = document.parsed.value if document else None
        for rule in value.spec.ingress if isinstance(value, App) else ():
            first = taken.setdefault(rule.port, placed.ref.name)
            if first != placed.ref.name:
                message = f"ingress port {rule.port} of {placed.ref.name!r} is that of {first!r}"
                path: Path = ("spec", "apps", index, "ref", "name")
                report.at(where, Finding(path, message, "choose another port", placed.ref.name))


def _check_selected_apps(where: Sourced, fleet: Fleet, kinds: Catalogue, report: Report) -> None:
    """``edgewise:app:`` speaks of apps of the same fleet, and no path is taken by an app."""
    here = {placed.ref.name for placed in fleet.spec.apps}
    taken = _default_paths(fleet, kinds)
    for index, placed in enumerate(fleet.spec.identities):
        document = kinds.get("WorkloadIdentity", {}).get(placed.ref.name)
        if document is None or not isinstance(document.parsed.value, WorkloadIdentity):
            continue
        spec = document.parsed.value.spec
        if spec.spiffe_id in taken:
            message = (
                f"{spec.spiffe_id} of WorkloadIdentity {placed.ref.name!r} is the SPIFFE ID of "
                f"App {taken[spec.spiffe_id]!r} in this fleet"
            )
            path: Path = ("spec", "identities", index, "ref", "name")
            report.at(where, Finding(path, message, "choose another path", placed.ref.name))
        for place, text in enumerate(spec.selectors):
            app = text.removeprefix("edgewise:app:")
            if app != text and app not in here:
                message = f"{text} selects an app that fleet {fleet.metadata.name!r} does not have"
                at: Path = ("spec", "selectors", place)
                report.at(document, Finding(at, message, did_you_mean(app, here), text))


def _default_paths(fleet: Fleet, kinds: Catalogue) -> dict[str, str]:
    """``/app/<fleet>/<app>`` of apps that name no path of their own."""
    found = {}
    for placed in fleet.spec.apps:
        where = kinds.get("App", {}).get(placed.ref.name)
        value = where.parsed.value if where else None
        if isinstance(value, App) and value.spec.identity and not value.spec.identity.spiffe_id:
            found[default_path(fleet.metadata.name, placed.ref.name)] = placed.ref.name
    return found


def _check_channel(where: Sourced, fleet: Fleet, kinds: Catalogue, report: Report) -> None:
    if fleet.spec.os is None:
        return
    ref = fleet.spec.os.image_ref
    image = kinds.get("OSImage", {}).get(ref.name)
    if image is None or not isinstance(image.parsed.value, OSImage):
        return
    channels = image.parsed.value.spec.channels
    if ref.channel not in channels:
        message = f"OSImage {ref.name!r} has no channel {ref.channel!r}"
        path: Path = ("spec", "os", "imageRef", "channel")
        report.at(where, Finding(path, message, did_you_mean(ref.channel, channels), ref.channel))


def _check_dependencies(where: Sourced, fleet: Fleet, kinds: Catalogue, report: Report) -> None:
    """dependsOn and onChange speak of apps of the same fleet."""
    here = {placed.ref.name for placed in fleet.spec.apps}
    apps = kinds.get("App", {})
    for name in sorted(here & set(apps)):
        app = apps[name].parsed.value
        if not isinstance(app, App):
            continue
        for index, dependency in enumerate(app.spec.depends_on):
            if dependency.name not in here:
                path: Path = ("spec", "dependsOn", index, "name")
                message = (
                    f"App {name!r} depends on {dependency.name!r}, "
                    f"which fleet {fleet.metadata.name!r} does not have"
                )
                hint = did_you_mean(dependency.name, here - {name})
                report.at(apps[name], Finding(path, message, hint, dependency.name))


def _check_circles(apps: Mapping[str, Sourced], report: Report) -> None:
    needs = {
        name: [d.name for d in where.parsed.value.spec.depends_on]
        for name, where in apps.items()
        if isinstance(where.parsed.value, App)
    }
    finished: set[str] = set()
    for start in sorted(needs):
        circle = _circle(start, needs, finished)
        if circle:
            finished.update(circle)
            message = f"dependsOn goes in a circle: {' -> '.join([*circle, circle[0]])}"
            path: Path = ("spec", "dependsOn")
            report.at(apps[circle[0]], Finding(path, message, "remove one of them", circle[0]))


def _circle(start: str, needs: Mapping[str, list[str]], finished: set[str]) -> list[str]:
    """The first circle reached from ``start``; without recursion, since chains may be long."""
    trail: list[str] = []
    stack: list[tuple[str, bool]] = [(start, False)]
    while stack:
        name, leaving = stack.pop()
        if leaving:
            trail.pop()
            finished.add(name)
        elif name in trail:
            return trail[trail.index(name) :]
        elif name not in finished and name in needs:
            trail.append(name)
            stack.append((name, True))
            stack.extend((n, False) for n in reversed(needs[name]))
    return []
