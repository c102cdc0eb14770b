"""Files of a revision to checked documents, and mistakes with file, line and column. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from edgewise.model.documents import KINDS, Document, Workspace
from edgewise.model.documents.inventory import PATHS
from edgewise.model.documents.words import API_VERSION
from edgewise.protocol.api import SourceProblem
from edgewise.sync import yaml_text
from edgewise.sync.checks import document_findings, not_acted_on
from edgewise.sync.kept import Kept
from edgewise.sync.mismatch import Finding, dotted, findings, shown
from edgewise.sync.ports import Blob
from edgewise.sync.suggest import did_you_mean

ROOT: Final = "edgewise.yaml"
FILES: Final = 5000
"""Files of one revision that are read."""
TOTAL_BYTES: Final = 64 << 20
"""Bytes of one revision that are read."""
PROBLEMS: Final = 500
"""Mistakes that are reported at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """One document that has the right shape. Two are equal only when they are the same
    object: a blob is parsed once, so that is what "unchanged" means."""

    kind: str
    name: str
    value: Document
    spec: dict[str, Any]
    """Of an App or Config: as written, for merging; never changed. Else empty."""
    index: int
    """Which document of its file."""
    line: int
    not_acted_on: tuple[str, ...] = ()
    """Fields (or "" for the document) that are accepted, not yet acted on."""


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """All of one blob. Knows no path: a blob may stand at several."""

    documents: tuple[Parsed, ...] = ()
    flaws: tuple[yaml_text.Flaw, ...] = ()
    findings: tuple[tuple[int, Finding], ...] = ()
    """(which document, mistake)"""
    broken: tuple[tuple[str, str], ...] = ()
    """Kind and name of documents that are there but have mistakes."""


@dataclass(frozen=True, slots=True)
class Revision:
    """What could be read of a revision."""

    documents: tuple[Sourced, ...] = ()
    broken: frozenset[tuple[str, str]] = frozenset()
    """Kind and name of documents that are there but have mistakes."""
    complete: bool = True
    """Whether every file could be read, so that a missing name is really missing."""


@dataclass(frozen=True, slots=True)
class Sourced:
    """A document and the file it stands in."""

    file: str
    parsed: Parsed

    @property
    def where(self) -> str:
        """``apps/hello.yaml:3 App/hello``."""
        return f"{self.file}:{self.parsed.line} {self.parsed.kind}/{self.parsed.name}"


class ParseCache:
    """Parsed files by git blob id, and whatever later steps keep between compiles."""

    def __init__(self, files: int = 20_000, results: int = 4096) -> None:
        self.files: Kept[str, ParsedFile] = Kept(files)
        self.results: Kept[tuple[object, ...], Any] = Kept(results)
        """Results of compile steps, keyed by everything they were made from."""


class Report:
    """Collects mistakes; finds their lines once at the end, file by file."""

    def __init__(self, files: Mapping[str, Blob]) -> None:
        self._files = files
        self._found: list[tuple[str, int, Finding]] = []
        self._placed: list[SourceProblem] = []

    def at(self, where: Sourced, finding: Finding) -> None:
        """A mistake in a document."""
        self._found.append((where.file, where.parsed.index, finding))

    def within(self, file: str, index: int, finding: Finding) -> None:
        """A mistake in a document that has no shape yet."""
        self._found.append((file, index, finding))

    def on(self, file: str, flaw: yaml_text.Flaw) -> None:
        """A mistake of the text."""
        self._placed.append(SourceProblem(file, flaw.line, flaw.column, flaw.message, flaw.hint))

    def __len__(self) -> int:
        return len(self._found) + len(self._placed)

    def problems(self) -> tuple[SourceProblem, ...]:
        """All of them, in file order, at most ``PROBLEMS``."""
        marks: dict[str, tuple[yaml_text.Marks, ...]] = {}
        placed = list(self._placed)
        for file, index, finding in self._found[: PROBLEMS * 2]:
            if file not in marks:
                marks[file] = yaml_text.locate(self._files[file].data)
            line, column = marks[file][index].find(finding.path, at_key=finding.at_key)
            if finding.line_offset:
                line, column = line + finding.line_offset, 1
            placed.append(
                SourceProblem(file, line, column, finding.message, finding.hint, finding.value)
            )
        placed = list(dict.fromkeys(placed))
        placed.sort(key=lambda p: (p.file, p.line, p.column, p.message))
        return tuple(placed[:PROBLEMS])


def parse_revision(files: Mapping[str, Blob], cache: ParseCache, report: Report) -> Revision:
    """Every document of the workspace, in file order; mistakes go to ``report``."""
    if ROOT not in files:
        report.on(
            ROOT,
            yaml_text.Flaw(
                1, 1, f"the repo has no {ROOT}", "`edgewise init DIR` writes a starter repo"
            ),
        )
        return Revision(complete=False)
    root = _parse_one(ROOT, files[ROOT], cache, report)
    settings = [d.value for d in root.documents if isinstance(d.value, Workspace)]
    paths = settings[0].spec.paths if settings else PATHS
    chosen = sorted(p for p in files if p != ROOT and _below(p, paths))
    if _too_much(files, chosen, report):
        return Revision(complete=False)
    parsed = [(ROOT, root), *((p, _parse_one(p, files[p], cache, report)) for p in chosen)]
    documents = tuple(Sourced(path, document) for path, f in parsed for document in f.documents)
    if not settings and not root.flaws and ("Workspace" not in dict(root.broken)):
        report.on(
            ROOT, yaml_text.Flaw(1, 1, "there is no Workspace document", "add kind: Workspace")
        )
    return Revision(
        documents,
        frozenset(name for _, f in parsed for name in f.broken),
        complete=not any(f.flaws for _, f in parsed),
    )


def left_alone(files: Mapping[str, Blob], workspace: Workspace) -> list[str]:
    """Files outside the workspace's paths that look as if they were meant to count."""
    mark = f"apiVersion: {API_VERSION}".encode()
    return sorted(
        path
        for path, blob in files.items()
        if path != ROOT
        and path.endswith((".yaml", ".yml"))
        and not _below(path, workspace.spec.paths)
        and mark in blob.data
    )


def _below(path: str, paths: Iterable[str]) -> bool:
    if not path.endswith((".yaml", ".yml")):
        return False
    return any(path.startswith(f"{folder.strip('/')}/") or folder in ("", ".") for folder in paths)


def _too_much(files: Mapping[str, Blob], chosen: list[str], report: Report) -> bool:
    total = sum(len(files[path].data) for path in chosen)
    if len(chosen) <= FILES and total <= TOTAL_BYTES:
        return False
    what = f"{len(chosen):,} files with {total:,} bytes; at most {FILES:,} with {TOTAL_BYTES:,}"
    report.on(ROOT, yaml_text.Flaw(1, 1, what, "split the organisation into several fleet repos"))
    return True


def _parse_one(path: str, blob: Blob, cache: ParseCache, report: Report) -> ParsedFile:
    if blob.refused:
        parsed = ParsedFile(flaws=(yaml_text.Flaw(1, 1, blob.refused, "split the file"),))
    else:
        parsed = cache.files.get(blob.id) or cache.files.put(blob.id, parse_file(blob.data))
    for flaw in parsed.flaws:
        report.on(path, flaw)
    for index, finding in parsed.findings:
        report.within(path, index, finding)
    return parsed


def parse_file(data: bytes) -> ParsedFile:
    """One file. Never raises: what is wrong with it is in the result."""
    text = yaml_text.read(data)
    if text.flaws:
        return ParsedFile(flaws=text.flaws)
    documents: list[Parsed] = []
    mistakes: list[tuple[int, Finding]] = []
    broken: list[tuple[str, str]] = []
    for index, value in enumerate(text.documents):
        if value is None:
            continue
        parsed, found = _document(value, index, text.lines[index])
        mistakes += [(index, finding) for finding in found[: yaml_text.FLAWS]]
        if parsed is not None:
            documents.append(parsed)
        elif isinstance(value, dict):
            metadata = value.get("metadata")
            name = metadata.get("name") if isinstance(metadata, dict) else ""
            broken.append((str(value.get("kind")), str(name)))
    return ParsedFile(tuple(documents), (), tuple(mistakes), tuple(broken))


def _document(value: Any, index: int, line: int) -> tuple[Parsed | None, tuple[Finding, ...]]:
    envelope = _envelope(value)
    if envelope is not None:
        return None, (envelope,)
    kind = value["kind"]
    try:
        document = msgspec.convert(value, KINDS[kind])
    except msgspec.ValidationError as error:
        found = findings(value, KINDS[kind])
        return None, found or (Finding((), str(error)),)
    if found := document_findings(document):
        return None, found
    parsed = Parsed(
        kind,
        document.metadata.name,
        document,
        value["spec"] if kind in ("App", "Config") else {},
        index,
        line,
        not_acted_on(document),
    )
    return parsed, ()


def _envelope(value: Any) -> Finding | None:
    """What must hold before the kind can say what else must."""
    if not isinstance(value, dict):
        return Finding((), f"the document is {shown(value)}", "it takes apiVersion, kind, metadata")
    version = value.get("apiVersion")
    if version != API_VERSION:
        message = f"apiVersion is {shown(version)}" if version else "apiVersion is missing"
        return Finding(("apiVersion",), message, f"it takes {API_VERSION}", shown(version))
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        message = f"unknown kind {shown(kind)}" if kind else "kind is missing"
        hint = did_you_mean(str(kind), KINDS, otherwise=f"it takes one of {', '.join(KINDS)}")
        return Finding(("kind",), message, hint, shown(kind))
    return None


__all__ = ["ParseCache", "Parsed", "ParsedFile", "Report", "Sourced", "dotted", "parse_file"]
