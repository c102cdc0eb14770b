"""Where deltas and packs are: the list that a channel names, so that the hub's key vouches for it.

A delta brings the files of one tree from those of another; a **pack** is a delta from nothing.
The list only says how bytes may come cheaper. What they must be is said by the tree, which a
builder signed: a wrong list costs a node time, never its integrity.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edgewise.model.names import Digest
from edgewise.protocol import limits


def delta_path(sha256: str) -> str:
    """Where a delta lies below the content root; immutable, cacheable for ever."""
    return f"deltas/{sha256[:2]}/{sha256[2:]}.ewd"


class DeltaRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One ``.ewd`` file (docs/internals/delta.md). Sizes are bytes."""

    sha256: str
    """Of its head, which has the digest of every part, and so its name."""
    head: int
    """The head, from the file's start."""
    lead: int
    """Head and first part, which holds the new tree's manifest: what is asked for first."""
    size: int
    """The whole file."""
    tree: str
    """The tree that it leads to."""
    base: str = ""
    """The tree whose files it needs; empty for a pack."""
    scratch: int = 0
    """Disk that applying all of it takes beside the new files."""

    def __post_init__(self) -> None:
        for digest in (self.sha256, self.tree, *([self.base] if self.base else [])):
            Digest(digest)
        sizes = 0 < self.head < self.lead <= self.size <= limits.DELTA
        if not sizes or self.lead > limits.DELTA_LEAD or self.scratch < 0:
            raise ValueError(f"delta {self.sha256[:12]} has sizes that cannot be")


class DeltaList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The deltas and packs that lead to the trees of a fleet's releases; an object."""

    deltas: tuple[DeltaRef, ...]
    """Sorted by (tree, base)."""
    documents: tuple[str, ...] = ()
    """Small documents of these releases, as they are (UTF-8 JSON): parts, and manifests of
    small trees. They save a request each; a node keeps each under the digest of its bytes, so
    what is wrong here is just not found. Those that most nodes need, ``DOCUMENTS`` at most."""
    schema: Literal[1] = 1

    def __post_init__(self) -> None:
        if len(self.deltas) > limits.DELTAS:
            raise ValueError(f"a list names at most {limits.DELTAS} deltas")
        if sum(map(len, self.documents)) > limits.DOCUMENTS:
            raise ValueError(f"a list carries at most {limits.DOCUMENTS} bytes of documents")
