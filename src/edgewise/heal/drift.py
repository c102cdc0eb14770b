"""What must be written, removed or reported so that a node's files are as its configs say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgewise.protocol.content import ConfigFile, FilesConfig, OnChange


@dataclass(frozen=True, slots=True)
class Wanted:
    """One file as a config wants it."""

    config: str
    file: ConfigFile

    @property
    def sha256(self) -> str:
        """Of its content."""
        return hashlib.sha256(self.file.content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Found:
    """What lies at a path."""

    kind: Literal["absent", "file", "other"]
    sha256: str = ""
    mode: int = 0
    owned_right: bool = True
    """Its owner and group are those that were asked for."""


class Written(msgspec.Struct, frozen=True):
    """A file that the agent wrote, remembered until it is removed again."""

    config: str
    sha256: str
    original: bool = False
    """What lay there before us is kept until the release is confirmed."""


@dataclass(frozen=True, slots=True)
class Write:
    wanted: Wanted
    why: Literal["new", "changed", "drifted"]
    content: bool
    """The bytes differ, not only mode or owner."""


@dataclass(frozen=True, slots=True)
class Remove:
    path: str
    restore: bool
    """Put back what lay there before us."""


def wanted_files(configs: Iterable[FilesConfig]) -> dict[str, Wanted]:
    """By path. Two configs with one path are refused by the compiler; here the last wins."""
    return {file.path: Wanted(config.name, file) for config in configs for file in config.files}


def plan(
    wanted: Mapping[str, Wanted], found: Mapping[str, Found], written: Mapping[str, Written]
) -> tuple[Write | Remove, ...]:
    """Steps in order of path; removals last, so that nothing is missing in between."""
    steps: list[Write | Remove] = []
    for path, want in sorted(wanted.items()):
        have = found.get(path, Found("absent"))
        content = have.kind != "file" or have.sha256 != want.sha256
        if not content and have.mode == want.file.mode and have.owned_right:
            continue
        ours = written.get(path)
        if ours is None:
            why: Literal["new", "changed", "drifted"] = "new"
        else:
            why = "drifted" if ours.sha256 == want.sha256 else "changed"
        steps.append(Write(want, why, content))
    for path, ours in sorted(written.items()):
        if path not in wanted:
            steps.append(Remove(path, ours.original))
    return tuple(steps)


def reactions(configs: Iterable[FilesConfig], changed: Iterable[str]) -> tuple[OnChange, ...]:
    """The ``onChange`` rules that changed paths call for, each once, in order."""
    paths = tuple(changed)
    called: list[OnChange] = []
    for config in configs:
        own = {file.path for file in config.files}
        for rule in config.on_change:
            hit = any(_below(p, prefix) for p in paths if p in own for prefix in rule.paths)
            if hit and rule not in called:
                called.append(rule)
    return tuple(called)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix.rstrip("/") + "/")
