"""Which objects a document names, directly. Pure; the callers walk."""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Artifact, Part, ProcessApp, Release, Tree, TreeRef


class Named(msgspec.Struct, frozen=True):
    """What one document names: further documents by kind, and plain contents."""

    parts: frozenset[str] = frozenset()
    trees: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()


def named_by_target(path: str, content: bytes) -> Named:
    """What an artifact or release names. Raises Untrusted for a document that is neither,
    or does not belong at ``path``."""
    folder, _, rest = path.partition("/")
    if folder == "artifacts":
        artifact = decode(content, Artifact, what=path, at_most=limits.PART)
        if rest != f"{artifact.name}/{artifact.version}.json":
            raise Untrusted(f"{path} holds artifact {artifact.name} {artifact.version}")
        evidence = frozenset(one.sha256 for one in artifact.all_evidence)
        return Named(trees=_trees(artifact.trees), files=evidence)
    if folder == "releases":
        release = decode(content, Release, what=path, at_most=limits.RELEASE)
        return Named(
            parts=frozenset(
                digest
                for ref in release.parts
                for digest in (*ref.variants.values(), *ref.nodes.values())
                if digest
            )
        )
    raise Untrusted(f"a builder may sign artifacts and releases, not {path}")


def named_by_part(content: bytes) -> Named:
    """What a part names."""
    kind: Any = Part
    part = decode(content, kind, what="part", at_most=limits.PART)
    return Named(trees=_trees(part.trees)) if isinstance(part, ProcessApp) else Named()


def named_by_tree(content: bytes) -> Named:
    """What a tree names."""
    tree = decode(content, Tree, what="tree", at_most=limits.TREE)
    return Named(files=frozenset(e.sha256 for e in tree.entries if e.kind == "file"))


def objects_of_tree(sha256: str, content: bytes) -> dict[str, int]:
    """Digest and bytes of everything that a node fetches for a tree, its manifest included."""
    tree = decode(content, Tree, what="tree", at_most=limits.TREE)
    files = {e.sha256: e.size for e in tree.entries if e.kind == "file"}
    return {sha256: len(content), **files}


def _trees(trees: dict[str, TreeRef]) -> frozenset[str]:
    return frozenset(ref.sha256 for ref in trees.values())
