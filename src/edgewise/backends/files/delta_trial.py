"""How one new content comes cheapest from one old content: tried, in a process of its own.

What was found is kept in a cache folder by the pair of digests, so that many deltas which
share pairs (1.0 -> 1.2, 1.1 -> 1.2) share the search, which is most of the work.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal, NamedTuple

import zstandard

from edgewise.backends.files.copies import Copy, keep, search
from edgewise.backends.files.program_alignment import aligned
from edgewise.backends.files.program_references import programs
from edgewise.protocol import limits

TINY: Final = 600
"""Bytes of a packed file below which no better way is looked for."""
_ELF: Final = b"\x7fELF"
_TRIAL_LEVEL = 3
_PER_COPY: Final = 3
"""What a copy's numbers take when packed, for the estimate."""
_RAW = zstandard.DICT_TYPE_RAWCONTENT
_DULL: Final = 40
"""Times that a content packs by itself, from which on there is nothing to search for."""

Way = Literal["prefix", "bsdiff", "solid"]


class Pair(NamedTuple):
    """One question."""

    new: Path
    old: Path
    name: str
    """Of the pair in the cache: both digests, and whether they are expanded."""


def packed_with(new: bytes, prefix: bytes, level: int) -> bytes:
    """One zstd frame with ``prefix`` as raw content before it."""
    known = zstandard.ZstdCompressionDict(prefix, dict_type=_RAW) if len(prefix) >= 8 else None
    reach = max(10, min(24, (len(new) + len(prefix)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level,
        window_log=reach,
        enable_ldm=reach > 21,
        source_size=len(new),
        dict_size=len(prefix),
    )
    return zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(new)


def tried(pair: Pair, cache: Path) -> Way:
    """The way, after leaving copies in the cache where it is bsdiff."""
    kept = cache / pair.name
    try:
        os.utime(kept)
    except FileNotFoundError:
        pass
    else:
        found: Way = "bsdiff" if kept.stat().st_size else "prefix"
        return found
    way, copies = _try(pair, pair.new.read_bytes(), pair.old.read_bytes())
    if way != "solid":
        keep(kept, copies)
    return way


def _try(pair: Pair, new: bytes, old: bytes) -> tuple[Way, list[Copy]]:
    fits = len(new) <= limits.PART_OUTPUT and len(old) <= limits.PART_BASE // 2
    if len(new) < TINY:
        return "prefix", []
    elf = new[:4] == _ELF == old[:4]
    if fits:
        by_prefix = len(packed_with(new, old, _TRIAL_LEVEL))
        if by_prefix < TINY and not elf:
            return "prefix", []
        alone = len(zstandard.compress(new, _TRIAL_LEVEL))
        if not elf and by_prefix > 0.97 * alone:
            return "solid", []
    else:
        by_prefix = len(new)
        alone = len(zstandard.compress(new, _TRIAL_LEVEL))
    if alone * _DULL < len(new):
        return ("prefix" if by_prefix < alone else "solid"), []
    copies = list(search(new, old))
    both = programs(pair.old, pair.new)
    if both is not None:
        copies = aligned(*both, copies)
    differences = b"".join(copy.difference for copy in copies)
    inserts = b"".join(copy.insert for copy in copies)
    by_copies = len(zstandard.compress(differences, _TRIAL_LEVEL)) + _PER_COPY * len(copies)
    by_copies += len(zstandard.compress(inserts, _TRIAL_LEVEL))
    if min(by_copies, by_prefix) > 0.97 * alone:
        return "solid", []
    # LZMA packs differences better than the estimate says, most so for programs: and of their
    # differences little is left when references are put right.
    if fits and by_prefix <= by_copies * (0.5 if both else 0.9 if elf else 1.0):
        return "prefix", []
    return "bsdiff", copies
