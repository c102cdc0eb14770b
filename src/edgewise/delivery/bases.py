"""Which old file a new one is most like: by path, by path without digits, by name. Pure.

A wrong choice costs bytes, never correctness. What has no base by name is compared by content
where the maker reads it (``backends.files.similar``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from edgewise.protocol.content import Entry

SMALLEST: Final = 64
"""Bytes below which a base gives nothing."""
SPAN: Final = 4
"""A base found by name only is at most so many times larger or smaller."""
_DIGITS = re.compile(r"[0-9]+")
_VERSION = re.compile(r"[-_.]?[0-9].*")


def masked(path: str) -> str:
    """The path with every number replaced: versions in directory names no longer differ."""
    return _DIGITS.sub("#", path)


def stem(path: str) -> str:
    """The file's name up to a version, and its last suffix: ``libssl.so.3`` -> ``libssl``."""
    name = path.rpartition("/")[2]
    return _VERSION.sub("", name) + "|" + name.rpartition(".")[2]


class Bases:
    """The files of an old tree, to be asked for the base of a new one."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._by_path: dict[str, Entry] = {}
        self._by_masked: dict[str, list[Entry]] = defaultdict(list)
        self._by_stem: dict[str, list[Entry]] = defaultdict(list)
        for entry in entries:
            if entry.kind == "file" and entry.size > SMALLEST:
                self._by_path[entry.path] = entry
                self._by_masked[masked(entry.path)].append(entry)
                self._by_stem[stem(entry.path)].append(entry)

    def choose(self, new: Entry) -> Entry | None:
        """The base by path, masked path, or stem; None when nothing is near."""
        if (same := self._by_path.get(new.path)) is not None:
            return same
        found = self._by_masked.get(masked(new.path))
        if not found and not stem(new.path).startswith("|"):
            found = self._by_stem.get(stem(new.path))
        if not found:
            return None
        directory = masked(new.path.rpartition("/")[0])
        best = min(
            found,
            key=lambda old: (
                masked(old.path.rpartition("/")[0]) != directory,
                abs(old.size - new.size),
                old.path,
            ),
        )
        return best if new.size <= best.size * SPAN and best.size <= new.size * SPAN else None
