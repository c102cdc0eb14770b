"""Which deltas a hub makes, keeps and tells of. Pure.

Laws: a delta is only made for trees of artifacts that a builder signed, and only told of for
trees of releases that a channel names; what fleets run comes before what they may have run;
whatever is not wanted any more goes, never what a published list names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from edgewise.delivery.delta_ports import KeptDelta, PublishedTree
from edgewise.model.errors import BadUsage
from edgewise.protocol import limits
from edgewise.protocol.content import Release
from edgewise.protocol.delta import DeltaRef
from edgewise.protocol.travel import TreeBytes, TreeChange

WANTED: Final = 2048
"""Deltas that are wanted at once: 200 artifacts on two platforms, from four versions and nothing;
the least useful ones are left out."""
VERSIONS: Final = 20
"""More versions back is a node that was away for long: it takes a pack."""
PACK_OBJECTS: Final = 8
"""A pack of fewer objects is a request or two less, and hardly a byte."""
DOCUMENTS: Final = 64 << 10
"""Bytes of documents in a list; packed about 8 KiB, less than two requests cost."""
DOCUMENTS_WORTH: Final = 6
"""A list without deltas is a request of its own, so it has to save more than a few."""
FEW: Final = 4
"""Variants of a part that go along: where there are more, most nodes need none of these."""
LEAST: Final = 16 << 10
"""Bytes: what takes less to fetch whole is not worth a line in the list."""
TRIES: Final = 3
RETRY_AFTER: Final = timedelta(minutes=10)
"""After the first failure; ten times as long after the second. A full disk may be emptied."""
KEPT_FOR: Final = timedelta(days=7)
"""Files that nothing wants are kept this long: nodes may be in the middle of one."""


@dataclass(frozen=True, slots=True)
class DeltaSettings:
    """`edgewise up`: which deltas the hub makes. They cost its processor and disk."""

    versions: int = 3
    """Deltas come from this many versions before, besides from what fleets run; 0: none are
    made."""
    percent: int = 60
    """A delta is published when it is at most this part of the bytes that it saves."""
    recompress: bool = True
    """Gzip files travel expanded, and nodes compress them again: fewer bytes for processor."""


DEFAULT: Final = DeltaSettings()


def delta_settings(versions: int, percent: int, *, recompress: bool = True) -> DeltaSettings:
    """Raises BadUsage for what makes no sense."""
    if not 0 <= versions <= VERSIONS:
        raise BadUsage(
            f"--delta-versions {versions} is not from 0 to {VERSIONS}", hint="0 makes no deltas"
        )
    if not 1 <= percent <= 100:
        raise BadUsage(f"--delta-percent {percent} is not from 1 to 100")
    return DeltaSettings(versions, percent, recompress)


class DeltaJob(NamedTuple):
    """A delta to make. ``base`` empty: a pack."""

    tree: str
    base: str


class Plain(NamedTuple):
    """What fetching objects whole takes."""

    bytes: int
    """Packed."""
    objects: int


def version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Orders versions that were found at once: 1.9 before 1.10."""
    pieces = re.findall(r"\d+|[^\d]+", version)
    return tuple((1, int(p), "") if p.isdecimal() else (0, 0, p) for p in pieces)


def wanted(
    published: Sequence[PublishedTree],
    stable: Collection[str],
    candidate: Collection[str],
    settings: DeltaSettings,
) -> tuple[DeltaJob, ...]:
    """Deltas and packs that should be there, the most useful first.

    ``published`` is oldest first; ``stable`` and ``candidate`` are trees of the releases that
    channels name. Each of those, and each artifact's newest version, is led to from the versions
    before it and from what fleets run.
    """
    if not settings.versions:
        return ()
    lines: dict[tuple[str, str], list[PublishedTree]] = {}
    newest: dict[str, int] = {}
    for one in published:
        lines.setdefault((one.name, one.platform), []).append(one)
        newest[one.name] = one.sequence
    ranked: dict[DeltaJob, tuple[int, ...]] = {}
    for (name, _), line in lines.items():
        for at, one in enumerate(line):
            is_newest = one.sequence == newest[name]
            if not is_newest and one.tree not in stable and one.tree not in candidate:
                continue
            urgency = 0 if one.tree in candidate else 1 if is_newest else 2
            for job, use in _leading_to(line, at, stable, settings.versions):
                rank = (urgency, use, -one.sequence)
                if job not in ranked or rank < ranked[job]:
                    ranked[job] = rank
    return tuple(sorted(ranked, key=lambda job: (ranked[job], job))[:WANTED])


def _leading_to(
    line: Sequence[PublishedTree], at: int, stable: Collection[str], versions: int
) -> Iterable[tuple[DeltaJob, int]]:
    """Each with how useful it is: what fleets run, nothing, then version by version back."""
    tree = line[at].tree
    before = dict.fromkeys(one.tree for one in reversed(line[:at]) if one.tree != tree)
    running = {one.tree for one in line if one.tree in stable and one.tree != tree}
    for base in running:
        yield DeltaJob(tree, base), 0
    yield DeltaJob(tree, ""), 1
    for back, base in enumerate(list(before)[:versions]):
        if base not in running:
            yield DeltaJob(tree, base), 2 + back


def at_most(job: DeltaJob, plain: Plain, settings: DeltaSettings) -> int:
    """Bytes that the file may have to be worth publishing; 0: it is not even worth making.

    A pack of many objects pays by its requests alone.
    """
    if plain.bytes < LEAST:
        return plain.bytes if not job.base and plain.objects >= PACK_OBJECTS else 0
    if not job.base and plain.objects >= PACK_OBJECTS:
        return plain.bytes
    return plain.bytes * settings.percent // 100


def lacking(had: Iterable[Mapping[str, int]], new: Mapping[str, int]) -> Plain:
    """What a node with the objects ``had`` fetches of ``new`` (objects to packed bytes)."""
    here = frozenset().union(*had)
    sizes = [size for sha256, size in new.items() if sha256 not in here]
    return Plain(sum(sizes), len(sizes))


def next_job(
    jobs: Iterable[DeltaJob], known: Mapping[DeltaJob, KeptDelta], now: datetime
) -> DeltaJob | None:
    """The most useful one that is not done, and not given up."""
    return next((job for job in jobs if is_due(known.get(job), now)), None)


def is_due(kept: KeptDelta | None, now: datetime) -> bool:
    """Whether a job should be done: never begun, cut off, or failed long enough ago."""
    if kept is None:
        return True
    again = retry_at(kept)
    return again is not None and again <= now


def retry_at(kept: KeptDelta) -> datetime | None:
    """When what failed is tried again; None: never, or it has not failed."""
    if kept.tries >= TRIES or kept.state not in ("Trying", "Failed"):
        return None
    if kept.state == "Trying":
        return kept.at  # the hub was stopped or killed over it
    return kept.at + (RETRY_AFTER if kept.tries <= 1 else 10 * RETRY_AFTER)


def listed(
    refs: Iterable[DeltaRef],
    stable: Collection[str],
    candidate: Collection[str],
    *,
    room: int = limits.DELTAS,
) -> tuple[DeltaRef, ...]:
    """What a channel's list names, sorted by (tree, base): what leads to its trees.

    Where there is no room for all: first to the candidate, from what the fleet runs, then
    packs; and of two alike the smaller one.
    """
    fitting = [ref for ref in refs if ref.tree in stable or ref.tree in candidate]

    def rank(ref: DeltaRef) -> tuple[bool, int, int, str]:
        use = 0 if ref.base in stable else 1 if not ref.base else 2
        return ref.tree not in candidate, use, ref.size, ref.sha256

    chosen = sorted(fitting, key=rank)[:room]
    return tuple(sorted(chosen, key=lambda ref: (ref.tree, ref.base)))


def parts_for_many(release: Release) -> tuple[str, ...]:
    """Digests of the parts that a good part of the nodes need."""
    return tuple(
        dict.fromkeys(
            digest
            for ref in release.parts
            if len(ref.variants) <= FEW
            for digest in ref.variants.values()
            if digest
        )
    )


def that_fit(documents: Iterable[bytes], room: int = DOCUMENTS) -> tuple[str, ...]:
    """Documents as texts, in this order, as long as there is room for them."""
    found: list[str] = []
    for document in documents:
        if len(document) <= room:
            room -= len(document)
            found.append(document.decode())
    return tuple(found)


def unwanted(
    known: Iterable[KeptDelta],
    jobs: Collection[DeltaJob],
    named: Collection[str],
    now: datetime,
) -> tuple[DeltaJob, ...]:
    """What is not wanted, not named by a published list (digests), and old enough to go."""
    return tuple(
        DeltaJob(one.tree, one.base)
        for one in known
        if (one.tree, one.base) not in jobs
        and (one.ref is None or one.ref.sha256 not in named)
        and now - one.at >= KEPT_FOR
    )


def weigh(
    change: TreeChange,
    sizes: Mapping[str, Mapping[str, int]],
    refs: Iterable[DeltaRef],
) -> TreeBytes:
    """Bytes that travel to a node that has the trees ``change.had`` and gets ``change.new``.

    ``sizes``: tree to its objects' packed bytes, the manifest's among them; a tree that is not
    in there weighs nothing and is said to be unknown. ``refs``: what the list would name. A node
    takes the cheapest of a delta, two in a chain, a pack, and the objects one by one.
    """
    by_tree: dict[str, list[DeltaRef]] = {}
    for ref in refs:
        by_tree.setdefault(ref.tree, []).append(ref)
    here = {sha256 for tree in change.had for sha256 in sizes.get(tree, ())}
    full: dict[str, int] = {}
    whole = travel = 0
    assumed = False
    for tree in change.new:
        objects = sizes.get(tree, {})
        full |= objects
        if tree in change.had:
            continue
        plain = sum(size for sha256, size in objects.items() if sha256 not in here)
        here |= objects.keys()
        cheapest = _cheapest(tree, frozenset(change.had), by_tree)
        whole += plain
        travel += min(plain, cheapest) if cheapest is not None else plain
        assumed = assumed or (cheapest is None and plain >= LEAST)
    unknown = tuple(t for t in (*change.had, *change.new) if t not in sizes)
    return TreeBytes(sum(full.values()), whole, travel, assumed, unknown)


def _cheapest(
    tree: str, had: frozenset[str], by_tree: Mapping[str, Sequence[DeltaRef]]
) -> int | None:
    ways: list[int] = []
    for ref in by_tree.get(tree, ()):
        if not ref.base or ref.base in had:
            ways.append(ref.size)
            continue
        ways += [ref.size + one.size for one in by_tree.get(ref.base, ()) if one.base in had]
    return min(ways, default=None)
