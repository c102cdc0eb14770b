"""From what a directory holds to a tree, and what a tree must not hold."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgewise.model.errors import BadUsage
from edgewise.model.names import Digest
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Entry, Top, Tree, TreeRef

_SETUID_OR_SETGID = 0o6000


def make_tree(entries: Iterable[Entry], system: Top | None = None) -> Tree:
    """Sort and check; ``system`` is the top directory of a system tree.

    Raises BadUsage, naming the path, for what a node would refuse.
    """
    ordered = tuple(sorted(entries, key=lambda entry: entry.path))
    try:
        tree = Tree(ordered, system=msgspec.UNSET if system is None else system)
    except ValueError as error:
        raise BadUsage(str(error)) from error
    if system is None:
        refuse_privilege(tree)
    return tree


def refuse_privilege(tree: Tree) -> None:
    """Raises BadUsage for a tree that would give an app more rights than its user has: a
    system tree (owners, capabilities, devices), or a setuid or setgid file."""
    if tree.system is not msgspec.UNSET:
        raise BadUsage(
            "it is a system tree, with owners, capabilities and devices; apps get plain ones",
            hint="build it without --system",
        )
    for entry in tree.entries:
        if entry.kind == "file" and entry.mode & _SETUID_OR_SETGID:
            raise BadUsage(
                f"{entry.path!r} has mode {entry.mode:04o}: setuid and setgid files"
                " are not delivered",
                hint=f"chmod u-s,g-s {entry.path}",
            )


def reference(tree: Tree) -> tuple[TreeRef, bytes]:
    """The tree's reference and its manifest's canonical bytes."""
    manifest = encode(tree)
    files = [entry for entry in tree.entries if entry.kind == "file"]
    return TreeRef(
        sha256=Digest.of(manifest).sha256, size=sum(e.size for e in files), files=len(files)
    ), manifest
