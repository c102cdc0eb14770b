"""Check a directory of documents without a hub, a clone or a network. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from edgewise.protocol.api import SourceProblem
from edgewise.protocol.content import Artifact
from edgewise.sync.compile import check_workspace
from edgewise.sync.parse import ParseCache
from edgewise.sync.ports import Blob, Compiled, CompileFailed, Snapshot

Artifacts = Mapping[tuple[str, str], Artifact]


@dataclass(frozen=True, slots=True)
class Checked:
    """What `edgewise validate` prints."""

    problems: tuple[SourceProblem, ...]
    warnings: tuple[SourceProblem, ...] = ()
    not_acted_on: tuple[str, ...] = ()
    compiled: Compiled | None = None
    """Of the nodes in the repo; None when there are problems."""


def snapshot_of(files: Mapping[str, str | bytes], commit: str = "0" * 40) -> Snapshot:
    """Files as a snapshot; the blob id is the SHA-256 of the content."""
    blobs = {}
    for path, text in files.items():
        data = text.encode() if isinstance(text, str) else text
        blobs[path] = Blob(hashlib.sha256(data).hexdigest(), data)
    return Snapshot("main", commit, "", "", blobs)


def check_files(files: Mapping[str, str | bytes], artifacts: Artifacts | None = None) -> Checked:
    """Everything that can be said about these files (path to content).

    Without ``artifacts`` (name and version to artifact) it is not checked whether the ones
    that apps name are published. Templates are rendered for the nodes in the repo.
    """
    try:
        compiled = check_workspace(snapshot_of(files), artifacts, ParseCache())
    except CompileFailed as failed:
        return Checked(failed.problems)
    return Checked((), compiled.warnings, compiled.not_acted_on, compiled)


def validate_files(
    files: Mapping[str, str | bytes], artifacts: Artifacts | None = None
) -> list[SourceProblem]:
    """Only the mistakes; empty when there are none."""
    return list(check_files(files, artifacts).problems)
