"""The cheapest way from what a node has to what it needs. Pure.

Today a file travels whole or not at all. Deltas become further alternatives in
``plan_fetch``: the caller performs steps and never asks why they were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from edgewise.model.errors import NeedsPerson, Untrusted
from edgewise.protocol.content import Entry

RESERVE: Final = 64 << 20
"""Bytes that a fetch leaves free for the apps' own data and logs."""
BLOCK: Final = 4096
"""What a small file takes on the disk."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The content is here under another mode."""

    entry: Entry
    have: int


@dataclass(frozen=True, slots=True)
class Whole:
    """The content travels as one packed object, and is kept under each of these modes."""

    entry: Entry
    modes: tuple[int, ...]


Step = Copy | Whole


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """What to do, and what it costs at most."""

    steps: tuple[Step, ...]
    check: tuple[Entry, ...]
    """Files that are here: verify each before it is used, and plan again if one fails."""
    fetch_bytes: int
    """Unpacked bytes that travel; packed they are at most about 1 % more, mostly far less."""
    disk_bytes: int
    """Space taken while and after fetching."""
    full_bytes: int
    """Unpacked bytes of everything, had nothing been here."""


def plan_fetch(entries: Iterable[Entry], modes: Callable[[str], tuple[int, ...]]) -> FetchPlan:
    """Steps that bring every file of ``entries`` here.

    ``modes`` tells under which modes a digest is kept. Raises Untrusted when two entries
    give one digest different sizes.
    """
    wanted: dict[str, dict[int, Entry]] = {}
    for entry in entries:
        if entry.kind == "file":
            wanted.setdefault(entry.sha256, {})[entry.mode] = entry
    steps: list[Step] = []
    check: list[Entry] = []
    travel = disk = full = 0
    for by_mode in wanted.values():
        first = next(iter(by_mode.values()))
        if any(entry.size != first.size for entry in by_mode.values()):
            raise Untrusted(f"object {first.sha256[:12]} has two sizes in one release")
        have = modes(first.sha256)
        lacking = tuple(mode for mode in by_mode if mode not in have)
        full += first.size
        disk += sum(_on_disk(first.size) for _ in lacking)
        check += [by_mode[mode] for mode in by_mode if mode in have]
        if have:
            if not any(mode in have for mode in by_mode):
                check.append(_with_mode(first, have[0]))
            source = next((mode for mode in by_mode if mode in have), have[0])
            steps += [Copy(by_mode[mode], source) for mode in lacking]
        else:
            steps.append(Whole(first, lacking))
            travel += first.size
            disk += _on_disk(first.size)  # its packed bytes, until it is unpacked
    return FetchPlan(tuple(steps), tuple(check), travel, disk, full)


def _with_mode(entry: Entry, mode: int) -> Entry:
    return Entry(entry.path, "file", mode, entry.size, entry.sha256)


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def check_space(plan: FetchPlan, free: int, *, reserve: int = RESERVE) -> None:
    """Raises NeedsPerson, before the first byte travels, when the disk is too small."""
    needed = plan.disk_bytes + reserve
    if plan.disk_bytes and free < needed:
        raise NeedsPerson(
            f"the release needs {plan.disk_bytes:,} bytes and {reserve:,} in reserve;"
            f" {free:,} are free",
            hint=f"free {needed - free:,} bytes on the node's state disk",
        )


def packed_total(sizes: Mapping[str, int], entries: Iterable[Entry]) -> int:
    """Packed bytes of everything; where a packed size is not known, the unpacked one."""
    unique = {entry.sha256: entry.size for entry in entries if entry.kind == "file"}
    return sum(sizes.get(sha256, size) for sha256, size in unique.items())
