"""The contents of a tree from its pack: one request where there are thousands of small files."""

from __future__ import annotations

import hashlib
from typing import IO, TYPE_CHECKING

from edgewise.model.errors import Untrusted

if TYPE_CHECKING:
    from pathlib import Path

    from edgewise.delivery.delta import Part
    from edgewise.protocol.content import Tree
    from edgewise.protocol.delta import DeltaRef

WORTH = 20
"""Contents from which on a pack is asked for: with fewer, the list costs as many requests."""
ENDING = ".plain"
"""Of a content that lies there unpacked."""
_CHUNK = 1 << 20


def unpack_into(folder: Path, file: IO[bytes], ref: DeltaRef, tree: Tree) -> frozenset[str]:
    """Write the contents that a pack brings to ``folder``, each under its digest; returns those
    that are right. What needs a gzip compressed again is left to others.

    Raises Untrusted for a pack that is not what its name says.
    """
    from edgewise.delivery.delta import open_head

    head = open_head(file.read(ref.head), ref.sha256)
    if (head.base, head.tree) != ("", ref.tree):
        raise Untrusted(f"pack {ref.sha256[:12]} is not what the list says")
    seen: set[str] = set()
    for part in head.resolve(None, tree).parts:
        file.seek(part.start)
        seen.update(_part(folder, part, file.read(part.length)))
    return frozenset(sha256 for sha256 in seen if _right(folder / f"{sha256}{ENDING}", sha256))


def _part(folder: Path, part: Part, packed: bytes) -> set[str]:
    from edgewise.delivery.delta import decode

    found = set()
    for piece, data in decode(part, packed, _nothing):
        if piece.expansion is None:
            path = folder / f"{piece.sha256}{ENDING}"
            with path.open("r+b" if path.exists() else "w+b") as file:
                file.seek(piece.offset)
                file.write(data)
            found.add(piece.sha256)
    return found


def _nothing(sha256: str, offset: int, length: int) -> bytes:
    raise Untrusted("a pack refers to old contents")


def _right(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if not right:
        path.unlink()
    return right
