"""The deltas and packs of ``edgewise bundle export``: from the hub, checked part by part."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from edgewise.model.errors import Untrusted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgewise.cli.content import Content
    from edgewise.delivery.opening import Opened
    from edgewise.protocol.content import Tree
    from edgewise.protocol.delta import DeltaRef

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Carried:
    """What a bundle has beside whole objects."""

    files: tuple[tuple[DeltaRef, IO[bytes]], ...] = ()
    left_out: frozenset[str] = frozenset()
    """Objects that they bring."""

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(ref.size for ref, _ in self.files)


def carried(
    content: Content,
    digest: str,
    trees: tuple[Mapping[str, Tree], Mapping[str, Tree]],
    objects: Mapping[str, int],
    held: ExitStack,
) -> Carried:
    """The deltas that the list ``digest`` names, open until ``held`` ends.

    ``trees`` are those that the receivers have and those of the release; ``objects`` what the
    bundle would have whole. Raises Untrusted for a file that is not what its name says.
    """
    from edgewise.delivery.bundling import left_out
    from edgewise.delivery.delta import contents
    from edgewise.protocol import limits
    from edgewise.protocol.codec import decode
    from edgewise.protocol.delta import DeltaList

    if not digest:
        return Carried()
    data = content.object(digest, limits.DELTA_LIST)
    listed = decode(data, DeltaList, what="list of deltas", at_most=limits.DELTA_LIST)
    before, after = trees
    files, opened = [], []
    for ref in listed.deltas:
        if ref.tree in after and (not ref.base or ref.base in before):
            file, one = _opened(content, ref, before, after, held)
            files.append((ref, file))
            opened.append(one)
    old = {sha256 for tree in before.values() for sha256 in contents(tree)}
    by_tree = {sha256: contents(tree).keys() & objects.keys() for sha256, tree in after.items()}
    wanted = {
        sha256: objects[sha256] for found in by_tree.values() for sha256 in found if objects[sha256]
    }
    return Carried(tuple(files), left_out(wanted, by_tree, opened, old.__contains__))


def _opened(
    content: Content,
    ref: DeltaRef,
    before: Mapping[str, Tree],
    after: Mapping[str, Tree],
    held: ExitStack,
) -> tuple[IO[bytes], Opened]:
    """One file, every part of which has the digest that its head says."""
    from edgewise.delivery.delta import open_head
    from edgewise.delivery.opening import Opened
    from edgewise.protocol.delta import delta_path

    file = held.enter_context(content.place.open(delta_path(ref.sha256), ref.size))
    head = open_head(file.read(ref.head), ref.sha256)
    delta = head.resolve(before[ref.base] if ref.base else None, after[ref.tree])
    end = ref.head
    for part in (head.manifest_part, *delta.parts):
        file.seek(part.start)
        if hashlib.sha256(file.read(part.length)).hexdigest() != part.sha256:
            raise Untrusted(
                f"delta {ref.sha256[:12]} is damaged on the hub",
                hint="the hub makes it again within a day; until then export with --whole",
            )
        end = max(end, part.start + part.length)
    whole = file.seek(0, 2) == end == ref.size
    if (head.base, head.tree) != (ref.base, ref.tree) or not whole:
        raise Untrusted(f"delta {ref.sha256[:12]} is not what the list says")
    file.seek(0)
    return file, Opened(ref, delta)
