"""From what a node has to what it needs: what is missing, and whether disk and link allow it.

Pure. Which way the missing contents come is chosen in ``ways``; the caller performs steps and
never asks why they were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, NamedTuple

from edgewise.delivery.ways import Choice
from edgewise.model.errors import NeedsPerson, TryLater, Untrusted
from edgewise.protocol.content import Attributes, Entry

RESERVE: Final = 64 << 20
"""Bytes that a fetch leaves free for the apps' own data and logs."""
BLOCK: Final = 4096
"""What a small file takes on the disk."""
AT_ONCE: Final = 8
"""Objects that travel at the same time: their packed bytes lie beside what they become."""
LINK_LOOK: Final = timedelta(minutes=5)
"""How long until a metered link is looked at again."""
NO_DELTA: Final = 64 << 10
"""Bytes that may come whole over a metered link where only deltas are allowed: what a delta
does not pay for."""


class Kept(NamedTuple):
    """A file that is here, as its name says."""

    sha256: str
    key: str
    """``Attributes.key``."""
    xattrs: tuple[tuple[str, bytes], ...] | None
    """None: not known here, and not wanted."""
    size: int


@dataclass(frozen=True, slots=True)
class Copy:
    """The content is here with other attributes."""

    entry: Entry
    have: str
    """``Attributes.key`` of what is here."""


@dataclass(frozen=True, slots=True)
class Whole:
    """The content travels as one packed object, and is kept with each of these attributes."""

    entry: Entry
    variants: tuple[Attributes, ...]


Step = Copy | Whole


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What to do, and what it costs at most."""

    steps: tuple[Step, ...]
    check: tuple[Kept, ...]
    """Files that are here: verify each before it is used, and plan again if one fails."""
    fetch_bytes: int
    """Unpacked bytes that travel; packed they are at most about 1 % more, mostly far less."""
    disk_bytes: int
    """Space taken by what is new."""
    passing_bytes: int
    """Space taken meanwhile: objects as they travel, until they are unpacked."""
    inodes: int
    """Files, directories and links made at most."""


def plan_fetch(entries: Iterable[Entry], kept: Callable[[str], tuple[str, ...]]) -> FetchPlan:
    """Steps that bring every file of ``entries`` here.

    ``kept`` tells under which keys a digest is kept. Raises Untrusted when two entries give
    one digest different sizes.
    """
    wanted: dict[str, dict[str, Entry]] = {}
    others = disk = 0
    for entry in entries:
        if entry.kind == "file":
            if (by_key := wanted.get(entry.sha256)) is None:
                wanted[entry.sha256] = {entry.key: entry}
            else:
                by_key[entry.key] = entry
        else:
            others += 1
            disk += BLOCK if entry.kind == "dir" else 0
    steps: list[Step] = []
    check: list[Kept] = []
    travel = new = 0
    sizes: list[int] = []
    for sha256, by_key in wanted.items():
        have = kept(sha256)
        first, *more = by_key.values()
        if more and any(entry.size != first.size for entry in more):
            raise Untrusted(f"object {sha256[:12]} has two sizes in one release")
        lacking = [entry for key, entry in by_key.items() if key not in have]
        if len(lacking) < len(by_key):
            check += [Kept(sha256, k, e.xattrs, e.size) for k, e in by_key.items() if k in have]
        if not lacking:
            continue
        new += len(lacking)
        disk += len(lacking) * _on_disk(first.size)
        if have:
            if len(lacking) == len(by_key):
                check.append(Kept(sha256, have[0], None, first.size))
            source = next((key for key in by_key if key in have), have[0])
            steps += [Copy(entry, source) for entry in lacking]
        else:
            steps.append(Whole(first, tuple(entry.attributes for entry in lacking)))
            travel += first.size
            sizes.append(_on_disk(first.size))
    passing = sum(sorted(sizes)[-AT_ONCE:])
    return FetchPlan(tuple(steps), tuple(check), travel, disk, passing, others + new)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def check_space(
    plan: FetchPlan, free: int, inodes: int, *, reserve: int = RESERVE, scratch: int = 0
) -> None:
    """Raises NeedsPerson, before the first byte travels, when the disk is too small: ``free``
    bytes and ``inodes`` are left on it, ``scratch`` are taken by deltas while they are applied.
    """
    if plan.inodes > inodes:
        raise NeedsPerson(
            f"the release has up to {plan.inodes:,} new files and directories;"
            f" the disk takes {inodes:,} more (inodes)",
            hint="delete small files on the node's state disk, or make it with more inodes",
        )
    taken = plan.disk_bytes + plan.passing_bytes + scratch
    needed = taken + reserve
    if plan.disk_bytes and free < needed:
        raise NeedsPerson(
            f"the release needs {taken:,} bytes and {reserve:,} in reserve; {free:,} are free",
            hint=f"free {needed - free:,} bytes on the node's state disk",
        )


def packed_total(sizes: Mapping[str, int], entries: Iterable[Entry], *, ratio: float = 1.0) -> int:
    """Packed bytes of everything; where a packed size is not known, ``ratio`` of the other."""
    unique = {entry.sha256: entry.size for entry in entries if entry.kind == "file"}
    return sum(sizes.get(sha256, int(size * ratio)) for sha256, size in unique.items())


Metered = Literal["Allow", "DeltasOnly", "Never"]
"""What may travel over a link that costs by the byte."""


def check_link(choice: Choice, policy: Metered, *, metered: bool) -> None:
    """Raises TryLater, before the contents travel, where the link is too dear for them."""
    if not metered or policy == "Allow" or not choice.total:
        return
    if policy == "Never":
        raise TryLater(
            f"the link is metered and the fleet's policy is Never: {choice.total:,} bytes wait",
            wait=LINK_LOOK,
            hint="they come over the next link that is not; see `edgewise agent link`",
        )
    whole = choice.bytes.get("whole", 0) + choice.bytes.get("pack", 0)
    if whole > NO_DELTA:
        raise TryLater(
            f"the link is metered, and {whole:,} bytes would have to come without a delta",
            wait=LINK_LOOK,
            hint="they come over the next link that is not; see `edgewise agent link`",
        )
