"""What one document must satisfy beyond its shape, and which of it is not acted on yet."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from edgewise.model.documents import (
    ACTED_ON,
    App,
    Config,
    DeviceList,
    Document,
    Fleet,
    RoleBinding,
    RolloutPolicy,
    Secret,
    WorkloadIdentity,
    Workspace,
)
from edgewise.model.documents.app import ProcessSpec
from edgewise.model.names import is_name
from edgewise.model.roles import ADMIN_NAME
from edgewise.model.selectors import KINDS, UnknownKind, WorkloadSelector
from edgewise.sync import templates
from edgewise.sync.joining import device_findings, join_findings
from edgewise.sync.mismatch import Finding, dotted
from edgewise.sync.suggest import did_you_mean
from edgewise.sync.yaml_text import Path


def document_findings(document: Document) -> tuple[Finding, ...]:
    """Mistakes that need no other document to be seen."""
    found: list[Finding] = []
    for path, source in template_strings(document):
        if (mistake := templates.check(source)) is not None:
            found.append(of_mistake(path, source, mistake))
    if isinstance(document, App):
        found.extend(_hooks(document))
    if isinstance(document, Fleet):
        found.extend(_fleet(document))
    if isinstance(document, Workspace):
        found.extend(join_findings(document))
    if isinstance(document, DeviceList):
        found.extend(device_findings(document))
    if isinstance(document, WorkloadIdentity):
        found.extend(_selectors(document))
    if isinstance(document, RoleBinding):
        found.extend(_binding(document))
    return tuple(found)


def of_mistake(path: Path, source: str, mistake: templates.Mistake) -> Finding:
    """A template's mistake as a finding, on its own line of a multi-line text."""
    multiline = "\n" in source
    return Finding(
        path,
        f"{dotted(path)}: {mistake.message}",
        mistake.hint,
        line_offset=mistake.line if multiline else 0,
    )


def template_strings(document: Document) -> Iterator[tuple[Path, str]]:
    """Every text of a document that is rendered, with its path."""
    strings: list[tuple[Path, str]] = []
    if isinstance(document, App):
        strings += [(("spec", "env", k), v) for k, v in document.spec.env.items()]
        command = getattr(document.spec, "command", ())
        strings += [(("spec", "command", i), word) for i, word in enumerate(command)]
    elif isinstance(document, Config):
        for index, file in enumerate(document.spec.files):
            if file.template:
                strings.append((("spec", "files", index, "path"), file.path))
                strings.append((("spec", "files", index, "content"), file.content))
    elif isinstance(document, Workspace):
        strings += [(("spec", "vars", k), str(v)) for k, v in document.spec.vars.items()]
    elif isinstance(document, Fleet):
        strings += [(("spec", "vars", k), str(v)) for k, v in document.spec.vars.items()]
        for index, overlay in enumerate(document.spec.overlays):
            path: Path = ("spec", "overlays", index, "vars")
            strings += [((*path, k), str(v)) for k, v in overlay.vars.items()]
    return ((path, text) for path, text in strings if templates.is_template(text))


def _hooks(app: App) -> Iterator[Finding]:
    hooks = (("preUpdate", app.spec.hooks.pre_update), ("postUpdate", app.spec.hooks.post_update))
    for name, listed in hooks:
        for index, hook in enumerate(listed):
            if isinstance(hook.run, str):
                try:
                    words = shlex.split(hook.run)
                except ValueError as error:
                    path = ("spec", "hooks", name, index, "run")
                    yield Finding(path, f"{dotted(path)}: {error}", "close the quote")
                else:
                    if not words:
                        path = ("spec", "hooks", name, index, "run")
                        yield Finding(path, f"{dotted(path)} is blank", "name a program")


def _fleet(fleet: Fleet) -> Iterator[Finding]:
    spec = fleet.spec
    for field, listed in (
        ("apps", spec.apps),
        ("configs", spec.configs),
        ("secrets", spec.secrets),
        ("identities", spec.identities),
    ):
        seen: set[str] = set()
        for index, placed in enumerate(listed):
            if placed.ref.name in seen:
                path = ("spec", field, index, "ref", "name")
                yield Finding(path, f"{placed.ref.name!r} occurs twice in spec.{field}")
            seen.add(placed.ref.name)


def _selectors(document: WorkloadIdentity) -> Iterator[Finding]:
    """Selectors that no process could ever meet."""
    seen: dict[str, str] = {}
    for index, text in enumerate(document.spec.selectors):
        path: Path = ("spec", "selectors", index)
        try:
            selector = WorkloadSelector.parse(text)
        except UnknownKind as error:
            hint = did_you_mean(error.kind, KINDS, otherwise=f"it takes one of {', '.join(KINDS)}")
            message = f"{dotted(path)} {text[:60]!r} is of no kind that exists"
            yield Finding(path, message, hint, error.kind)
            continue
        except ValueError as error:
            yield Finding(path, str(error), value=text)
            continue
        if seen.setdefault(selector.fact, selector.value) != selector.value:
            message = f"{dotted(path)} contradicts another selector of the same kind"
            hint = "all selectors must hold; write a second WorkloadIdentity for the other process"
            yield Finding(path, message, hint, text)


def _binding(binding: RoleBinding) -> Iterator[Finding]:
    for index, subject in enumerate(binding.spec.subjects):
        path: Path = ("spec", "subjects", index, "name")
        if subject.kind == "User" and not is_name(subject.name):
            message = f"{subject.name!r} cannot be a user's name"
            hint = "users are called as `edgewise whoami` says: a-z, 0-9 and '-'"
            yield Finding(path, message, hint, subject.name)
        elif subject.kind == "User" and subject.name == ADMIN_NAME:
            message = "admin is an administrator whatever is bound to it"
            yield Finding(path, message, "remove this subject", subject.name)


def not_acted_on(document: Document) -> tuple[str, ...]:
    """Fields that are accepted and checked, but that no engine acts on yet; "" is all of it."""
    if type(document).__name__ not in ACTED_ON:
        return ("",)
    match document:
        case App():
            return _app_fields(document)
        case Fleet():
            spec = document.spec
            fields = {
                "os": spec.os,
                "accessPolicyRef": spec.access_policy_ref,
                "healPolicyRef": spec.heal_policy_ref,
            }
            return tuple(f"spec.{name}" for name, value in fields.items() if value is not None)
        case Config():
            units = [i for i, c in enumerate(document.spec.on_change) if c.unit is not None]
            return tuple(f"spec.onChange[{index}].unit" for index in units)
        case Secret():
            return ("",) if document.spec.encryption == "sops" else ()
        case RolloutPolicy():
            return _policy_fields(document)
        case _:
            return ()


def _app_fields(app: App) -> tuple[str, ...]:
    if not isinstance(app.spec, ProcessSpec):
        return ("",)
    named = ["spec.ports"] if app.spec.ports else []
    if app.spec.replicas != 1:
        named.append("spec.replicas")
    return tuple(named)


def _policy_fields(policy: RolloutPolicy) -> tuple[str, ...]:
    named = []
    for index, stage in enumerate(policy.spec.stages):
        for gate_index, gate in enumerate(stage.gates):
            if gate.metric is not None:
                named.append(f"spec.stages[{index}].gates[{gate_index}].metric")
    return tuple(named)
