"""Deltas that may help a fetch: the list that the channel names, and opened heads.

Through ports only. Laws: a file that was wrong once is not asked for again in this fetch; a
list or delta that cannot be had never stops a fetch, it only costs bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgewise.delivery.delta import Delta, Piece, open_head, parse_tree
from edgewise.delivery.downloads import By, Downloads
from edgewise.delivery.ports import NodeFiles
from edgewise.delivery.ways import Choice, Offer, OfferedPart, Prices, candidates
from edgewise.model.errors import NotFound, TryLater, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Tree, object_path
from edgewise.protocol.delta import DeltaList, DeltaRef, delta_path
from edgewise.protocol.report import Refused

OPENED: Final = 4
"""Ways opened for one tree: the nearest delta, another base, a chain, the pack."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A delta whose head and manifest are verified."""

    ref: DeltaRef
    delta: Delta
    tail: bytes = b""
    """All behind the lead, of a file that is not worth a second request."""


class Shelf:
    """The deltas of one fetch."""

    def __init__(
        self, store: NodeFiles, downloads: Downloads, prices: Prices, trees: Sequence[str]
    ) -> None:
        self._store = store
        self._downloads = downloads
        self._prices = prices
        self._here = trees
        self._refs: dict[str, DeltaRef] = {}
        self._documents: dict[str, bytes] = {}
        self._tried: set[tuple[str, ...]] = set()
        self._trees: dict[str, Tree] = {}
        self.opened: dict[str, Opened] = {}
        self.refused: dict[str, str] = {}
        """File to why it is not touched again."""

    async def load(self, digest: str) -> None:
        """Read the list of deltas; without one, everything comes whole."""
        if not digest or self._refs:
            return
        data = self._store.document(digest)
        if data is None:
            found: list[bytes] = []
            try:
                await self._downloads.object(
                    digest, limits.DELTA_LIST, lambda chunks: found.extend(chunks), "document"
                )
            except (TryLater, Untrusted) as error:
                self.refused[digest] = str(error)
                return
            data = b"".join(found)
            self._store.keep_document(digest, data)
        try:
            listed = decode(data, DeltaList, what="list of deltas", at_most=limits.DELTA_LIST)
        except Untrusted as error:
            self.refused[digest] = str(error)
            return
        self._refs = {ref.sha256: ref for ref in listed.deltas}
        for text in listed.documents:
            document = text.encode()
            self._documents[hashlib.sha256(document).hexdigest()] = document

    def document(self, sha256: str) -> bytes | None:
        """A document that came with the list; its digest matched."""
        return self._documents.get(sha256)

    def tree(self, sha256: str, manifest: bytes) -> Tree:
        """A new tree, parsed once: a large one is ten megabytes. Raises Untrusted."""
        if sha256 not in self._trees:
            self._trees[sha256] = parse_tree(manifest)
        return self._trees[sha256]

    # Opening

    def _alternatives(self, tree: str) -> list[tuple[str, ...]]:
        refs = ((ref.sha256, ref.base, ref.tree) for ref in self._refs.values())
        return [
            files
            for files in candidates(tree, self._here, refs)[:OPENED]
            if files not in self._tried and not any(file in self.refused for file in files)
        ]

    async def manifest(self, tree: str) -> bytes | None:
        """A tree's manifest by the lead of a delta or pack; None when none leads there."""
        for files in self._alternatives(tree):
            if await self._open(files):
                return self._store.document(tree)
        return None

    async def open_next(self, choice: Choice, trees: Mapping[str, Iterable[str]]) -> bool:
        """Open one more delta, where objects that would come whole may come cheaper by it.

        ``trees`` are the wanted trees with their objects. Returns whether one was tried.
        """
        whole = set(choice.whole)
        for tree, objects in trees.items():
            lacking = sum(choice.prices[sha256] for sha256 in objects if sha256 in whole)
            for files in self._alternatives(tree):
                closed = [self._refs[file] for file in files if file not in self.opened]
                price = sum(self._prices.request + ref.lead for ref in closed)
                if price < lacking:
                    await self._open(files)
                    return True
        return False

    async def _open(self, files: tuple[str, ...]) -> bool:
        self._tried.add(files)
        way: By = "chain" if len(files) > 1 else "delta"
        for file in files:
            if file in self.opened:
                continue
            try:
                await self._open_one(self._refs[file], way if self._refs[file].base else "pack")
            except (NotFound, Untrusted) as error:
                self.refuse(file, str(error))
                return False
        return True

    def refuse(self, file: str, why: str) -> None:
        """Never touch a delta again in this fetch."""
        self.refused.setdefault(file, why)
        self.opened.pop(file, None)

    def said(self) -> Iterator[Refused]:
        """What was refused, for the receipt."""
        came = self._downloads.came
        for file, why in self.refused.items():
            yield Refused(file, why, came[delta_path(file)] + came[object_path(file)])

    async def _open_one(self, ref: DeltaRef, way: By) -> None:
        old = self._store.document(ref.base) if ref.base else b""
        if old is None:
            raise NotFound(f"the manifest of tree {ref.base[:12]} is not here")
        manifest = self._store.document(ref.tree)
        data, packed = self._store.document(ref.sha256), None
        lead = b""
        if data is None:
            through = ref.size if ref.size - ref.lead <= self._prices.request else ref.lead
            if manifest is not None and through == ref.lead:
                through = ref.head
            lead = await self._downloads.small(
                delta_path(ref.sha256), ref.sha256, way, start=0, end=through
            )
            data = lead[: ref.head]
        head = open_head(data, ref.sha256)
        if (head.base, head.tree) != (ref.base, ref.tree) or head.manifest_part.start != ref.head:
            raise Untrusted(f"delta {ref.sha256[:12]} is not what the list says")
        self._store.keep_document(ref.sha256, data)
        if manifest is None:
            part = head.manifest_part
            end = part.start + part.length
            packed = lead[part.start : end]
            if len(packed) != part.length:
                packed = await self._downloads.small(
                    delta_path(ref.sha256), part.sha256, way, start=part.start, end=end
                )
            manifest = head.manifest(packed, old)
            self._store.keep_document(ref.tree, manifest)
        before = parse_tree(old) if ref.base else None
        delta = head.resolve(before, self.tree(ref.tree, manifest))
        tail = lead[ref.lead :] if len(lead) == ref.size else b""
        self.opened[ref.sha256] = Opened(ref, delta, tail)

    def offers(self, usable: Callable[[Piece], bool], has: Callable[[Piece], bool]) -> list[Offer]:
        """What the opened deltas bring, of pieces that are usable and not there already."""
        return [offer_of(opened, usable, has) for opened in self.opened.values()]


def offer_of(
    opened: Opened, usable: Callable[[Piece], bool], has: Callable[[Piece], bool]
) -> Offer:
    """A delta as choosing sees it. Of its pieces, only those that this node can use and does
    not have already count as brought."""
    parts = []
    for part in opened.delta.parts:
        pieces = [piece for piece in part.pieces if usable(piece) and not has(piece)]
        parts.append(
            OfferedPart(
                part.start,
                part.length,
                tuple(dict.fromkeys(piece.sha256 for piece in pieces)),
                tuple(dict.fromkeys(piece.base for piece in part.pieces if piece.base)),
                sum(2 * p.expansion.size for p in pieces if p.expansion and not p.offset),
                sum(piece.length for piece in part.pieces),
            )
        )
    return Offer(opened.ref.sha256, opened.ref.base, tuple(parts))
