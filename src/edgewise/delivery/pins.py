"""What the channels of a relay's fleets lead to: releases, parts, trees, files, deltas. Pure.

A relay reads these documents only to know what its nodes will ask for next. It has verified
their digests; that a builder signed them is checked by the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Part, ProcessApp, Release, Tree, object_path
from edgewise.protocol.delta import DeltaList, delta_path

MOST: Final = 1_000_000
"""Paths that are remembered as pinned, about 150 bytes each: two OS images of
``limits.ENTRIES`` files. What comes after that goes by its last use alone."""

Get = Callable[[str, int], bytes | None]
"""(digest, most bytes): a kept object's content."""


@dataclass(frozen=True, slots=True)
class Reach:
    """What channels lead to, as far as it can be read here."""

    paths: frozenset[str]
    lacking: frozenset[str]
    """Digests of documents that are not here: once one comes, there is more to know."""


def roots(channels: Iterable[Channel]) -> tuple[frozenset[str], frozenset[str]]:
    """Digests of the releases and of the delta lists that channels name."""
    named = tuple(channels)
    releases = {release for c in named for release in (c.stable, c.candidate) if release}
    return frozenset(releases), frozenset(c.deltas for c in named if c.deltas)


def reach(releases: Iterable[str], lists: Iterable[str], get: Get) -> Reach:
    """Follow the documents that are here. Blocks while ``get`` reads them."""
    paths: set[str] = set()
    lacking: set[str] = set()
    waiting: list[tuple[str, Any]] = [(digest, Release) for digest in sorted(releases)]
    waiting += [(digest, DeltaList) for digest in sorted(lists)]
    seen: set[str] = set()
    while waiting and len(paths) < MOST:
        digest, kind = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        paths.add(object_path(digest))
        document = _read(digest, kind, get)
        if document is None:
            lacking.add(digest)
            continue
        waiting += _named(document)
        paths.update(_files(document))
    return Reach(frozenset(paths), frozenset(lacking))


_BOUNDS: Final[dict[Any, int]] = {
    Release: limits.RELEASE,
    Part: limits.PART,
    Tree: limits.TREE,
    DeltaList: limits.DELTA_LIST,
}


def _read(digest: str, kind: Any, get: Get) -> Any:
    try:
        data = get(digest, _BOUNDS[kind])
        return None if data is None else decode(data, kind, what="document", at_most=_BOUNDS[kind])
    except Untrusted:
        return None  # of a newer kind than this relay knows: it is served all the same


def _named(document: Any) -> list[tuple[str, Any]]:
    match document:
        case Release():
            named = (d for p in document.parts for d in (*p.variants.values(), *p.nodes.values()))
            return [(digest, Part) for digest in named]
        case ProcessApp():
            return [(ref.sha256, Tree) for ref in document.trees.values()]
        case _:
            return []


def _files(document: Any) -> Iterable[str]:
    match document:
        case Tree():
            return (object_path(e.sha256) for e in document.entries if e.sha256)
        case DeltaList():
            return (delta_path(ref.sha256) for ref in document.deltas)
        case _:
            return ()
