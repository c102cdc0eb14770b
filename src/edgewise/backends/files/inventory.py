"""Read the package databases that are in a tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from edgewise.delivery.packages import (
    PACKAGES,
    Package,
    apk_packages,
    distribution_of,
    dpkg_files,
    dpkg_packages,
    python_package,
)
from edgewise.delivery.sbom import Inventory
from edgewise.protocol.content import Tree

DATABASE: Final = 64 << 20
"""Bytes read of one database; Debian's ``status`` of 4,000 packages has 6 MiB."""
_DPKG: Final = "var/lib/dpkg/"
_APK: Final = ("lib/apk/db/installed", "usr/lib/apk/db/installed")
_OS_RELEASE: Final = ("usr/lib/os-release", "etc/os-release")


def take_inventory(tree: Tree, content: Callable[[str], Path]) -> Inventory:
    """The packages of a tree, and the files that none of them brought.

    ``content`` says where the file with a digest lies: nothing is read through a link.
    """
    reader = _Reader(tree, content)
    found = list(reader.packages())[:PACKAGES]
    owned = {path for package in found for path in package.files}
    files = {e.path: e.sha256 for e in tree.entries if e.kind == "file"}
    loose = {
        path: sha256
        for path, sha256 in files.items()
        if path not in owned and not path.startswith((_DPKG, *_APK))
    }
    return Inventory(tuple(found), loose, len(files))


class _Reader:
    def __init__(self, tree: Tree, content: Callable[[str], Path]) -> None:
        self._content = content
        self._files = {
            e.path: e.sha256 for e in tree.entries if e.kind == "file" and e.size <= DATABASE
        }

    def packages(self) -> Iterator[Package]:
        texts = (self._text(path) for path in _OS_RELEASE if path in self._files)
        distribution = next((found for text in texts if (found := distribution_of(text))), "")
        yield from self._dpkg(distribution or "debian")
        for path in _APK:
            yield from apk_packages(self._text(path), distribution or "alpine")
        for path in sorted(self._files):
            if path.endswith(".dist-info/METADATA"):
                folder = path.rpartition("/")[0]
                site = folder.rpartition("/")[0]
                record = self._text(f"{folder}/RECORD")
                if (package := python_package(self._text(path), record, site)) is not None:
                    yield package

    def _dpkg(self, distribution: str) -> Iterator[Package]:
        apart = [p for p in sorted(self._files) if p.startswith(f"{_DPKG}status.d/")]
        for path in (f"{_DPKG}status", *(p for p in apart if not p.endswith(".md5sums"))):
            for package in dpkg_packages(self._text(path), distribution):
                names = (
                    f"{_DPKG}info/{package.name}.list",
                    f"{_DPKG}info/{package.name}:{package.architecture}.list",
                    f"{path}.md5sums",
                )
                files = frozenset().union(*(dpkg_files(self._text(name)) for name in names))
                yield Package(
                    package.kind,
                    package.name,
                    package.version,
                    package.distribution,
                    package.architecture,
                    files=files,
                )

    def _text(self, path: str) -> str:
        """Empty when it is not a file of the tree."""
        if path not in self._files:
            return ""
        return self._content(self._files[path]).read_text("utf-8", errors="replace")
