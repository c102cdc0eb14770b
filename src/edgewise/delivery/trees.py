"""From what a directory holds to a tree, and what a tree must not hold."""

from __future__ import annotations

from collections.abc import Iterable

from edgewise.model.errors import BadUsage
from edgewise.model.names import Digest
from edgewise.protocol.codec import encode
from edgewise.protocol.content import Entry, Tree, TreeRef

_SETUID_OR_SETGID = 0o6000


def make_tree(entries: Iterable[Entry]) -> Tree:
    """Sort and check. Raises BadUsage, naming the path, for what a node would refuse."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    refuse_privilege(ordered)
    try:
        return Tree(tuple(ordered))
    except ValueError as error:
        raise BadUsage(str(error)) from error


def refuse_privilege(entries: Iterable[Entry]) -> None:
    """Raises BadUsage for a setuid or setgid file: a tree gives nobody more rights."""
    for entry in entries:
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
