"""What package databases in a tree say: dpkg, apk and Python's dist-info. Pure.

Sources: deb-control(5) and dpkg's ``status`` file, Alpine's ``installed`` database (apk spec
v2), the Python Packaging User Guide's core metadata and RECORD. Databases come from whoever
made the tree: what cannot be read is left out, and counts as files without a package.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

PACKAGES: Final = 20_000
"""Packages read of one tree; a full desktop has about 4,000."""


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package."""

    kind: str
    """The type of its package URL: ``deb``, ``apk``, ``pypi``."""
    name: str
    version: str
    distribution: str = ""
    """The namespace of its package URL: ``debian``, ``alpine``."""
    architecture: str = ""
    license: str = ""
    """As the database has it; not always an SPDX expression."""
    files: frozenset[str] = field(default=frozenset(), compare=False)
    """Paths in the tree that it brought, as far as known."""


def distribution_of(os_release: str) -> str:
    """The ``ID`` of an os-release(5) file; empty when it has none."""
    for line in os_release.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "ID":
            return value.strip().strip("\"'").lower()
    return ""


def dpkg_packages(status: str, distribution: str) -> Iterator[Package]:
    """Packages that a ``status`` file calls installed; their files are in other files."""
    for fields in _stanzas(status):
        name, version = fields.get("Package", ""), fields.get("Version", "")
        # distroless keeps one file a package in status.d, without a Status line.
        installed = fields.get("Status", "install ok installed").endswith(" installed")
        if name and version and installed:
            yield Package("deb", name, version, distribution, fields.get("Architecture", ""))


def dpkg_files(listed: str) -> frozenset[str]:
    """Paths of a ``.list`` or ``.md5sums`` file, relative to the tree."""
    found = set()
    for line in listed.splitlines():
        path = line if line.startswith("/") else line.partition("  ")[2]
        found |= _both_places(path.strip("/"))
    return frozenset(found)


def apk_packages(installed: str, distribution: str) -> Iterator[Package]:
    """Packages of Alpine's ``installed`` database, with their files."""
    for block in installed.split("\n\n"):
        name = version = architecture = words = folder = ""
        files: set[str] = set()
        for line in block.splitlines():
            key, _, value = line.partition(":")
            match key:
                case "P":
                    name = value
                case "V":
                    version = value
                case "A":
                    architecture = value
                case "L":
                    words = value
                case "F":
                    folder = value
                case "R":
                    files |= _both_places(f"{folder}/{value}".strip("/"))
        if name and version:
            yield Package("apk", name, version, distribution, architecture, words, frozenset(files))


def python_package(metadata: str, record: str, site: str) -> Package | None:
    """One ``.dist-info``; ``site`` is the directory in the tree that it lies in."""
    fields = next(_stanzas(metadata), {})
    name, version = fields.get("Name", ""), fields.get("Version", "")
    if not name or not version:
        return None
    words = fields.get("License-Expression") or fields.get("License", "").split("\n")[0]
    files = frozenset(_record(record, site))
    return Package("pypi", name, version, "", "", words[:200], files)


def _record(record: str, site: str) -> Iterator[str]:
    try:
        for row in csv.reader(record.splitlines()):
            if row and (path := _joined(site, row[0])):
                yield path
    except csv.Error:
        return


def _joined(site: str, path: str) -> str:
    """``../../../bin/x`` of a RECORD as a path in the tree; empty when it leaves the tree."""
    segments = [] if path.startswith("/") else [s for s in site.split("/") if s]
    for segment in path.split("/"):
        if segment == "..":
            if not segments:
                return ""
            segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    return "/".join(segments)


def _both_places(path: str) -> set[str]:
    """A path, and where it is when ``/bin``, ``/lib`` and so on are links into ``/usr``."""
    return {path, f"usr/{path}"} if path and not path.startswith("usr/") else {path}


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    """RFC 822 like paragraphs; of a field that continues, all lines."""
    fields: dict[str, str] = {}
    last = ""
    for line in _with_end(text.splitlines()):
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t":
            if last:
                fields[last] += f"\n{line.strip()}"
        else:
            last, _, value = line.partition(":")
            fields.setdefault(last, value.strip())


def _with_end(lines: Iterable[str]) -> Iterator[str]:
    yield from lines
    yield ""
