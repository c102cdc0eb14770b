"""Scan a directory into a tree."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from edgewise.delivery.trees import make_tree
from edgewise.model.errors import BadUsage
from edgewise.protocol.content import Entry, Tree


def scan(directory: Path) -> Tree:
    """The tree of ``directory``: names, modes, sizes, digests; never owners or times.

    The same content gives the same tree on every machine. Raises BadUsage for a link that
    leaves the directory, a device, socket or pipe, a setuid file, or a name that is not
    UTF-8, naming the path.
    """
    if not directory.is_dir():
        raise BadUsage(f"{directory} is not a directory", hint="name the directory to deliver")
    return make_tree(_entries(directory, ""))


def _entries(directory: Path, prefix: str) -> Iterator[Entry]:
    for item in os.scandir(directory):
        path = prefix + item.name
        if not path.isprintable() or any(0xDC80 <= ord(c) <= 0xDCFF for c in path):
            raise BadUsage(f"{path!r}: file names must be printable UTF-8", hint="rename it")
        about = item.stat(follow_symlinks=False)
        mode = stat.S_IMODE(about.st_mode)
        try:
            if stat.S_ISLNK(about.st_mode):
                yield Entry(path, "link", 0o777, target=os.readlink(item.path))
            elif stat.S_ISDIR(about.st_mode):
                yield Entry(path, "dir", mode)
                yield from _entries(Path(item.path), path + "/")
            elif stat.S_ISREG(about.st_mode):
                yield Entry(path, "file", mode, about.st_size, _digest(item.path))
            else:
                raise BadUsage(f"{path!r} is a device, socket or pipe; trees hold plain files")
        except ValueError as error:
            raise BadUsage(str(error), hint="only what is inside is delivered") from error


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
