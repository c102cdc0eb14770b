"""Deltas in memory: plausible files without a codec, and a store without a disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from edgewise.delivery.delta_ports import DeltaMaker, DeltaStore, KeptDelta, Progress
from edgewise.model.errors import EdgewiseError, NotFound
from edgewise.protocol.delta import DeltaRef

HEAD, LEAD = 100, 200


class MemoryDeltaMaker:
    """Every delta has ``size`` bytes. What it makes of a pair is always the same."""

    def __init__(self, trees: Sequence[str], size: int = 4000) -> None:
        self.trees = set(trees)
        """Those whose objects are here."""
        self.size = size
        self.files: dict[str, bytes] = {}
        self.made: list[tuple[str, str]] = []
        """(base, tree) of every call that ended."""
        self.failing: EdgewiseError | None = None
        self.gate: asyncio.Event | None = None
        """Set: ``make`` waits for it."""
        self.running = 0
        self.started = asyncio.Event()
        self.stored = 0.0

    async def make(
        self, base: str, tree: str, *, at_most: int, progress: Progress
    ) -> DeltaRef | None:
        self.running += 1
        self.started.set()
        try:
            progress(0, 100)
            if self.gate is not None:
                await self.gate.wait()
            if self.failing is not None:
                raise self.failing
            for one in (base, tree):
                if one and one not in self.trees:
                    raise NotFound(f"object {one[:12]} is not kept here")
        finally:
            self.running -= 1
        self.made.append((base, tree))
        progress(100, 100)
        if self.size > at_most:
            return None
        head = hashlib.sha256(f"{base} {tree}".encode()).digest() * 4
        head = head[:HEAD]
        ref = DeltaRef(hashlib.sha256(head).hexdigest(), HEAD, LEAD, self.size, tree, base)
        self.files[ref.sha256] = head + bytes(self.size - HEAD)
        return ref

    def check(self, ref: DeltaRef, *, whole: bool) -> bool:
        data = self.files.get(ref.sha256, b"")
        sound = hashlib.sha256(data[: ref.head]).hexdigest() == ref.sha256
        return len(data) == ref.size and sound and not (whole and any(data[HEAD:]))

    def kept(self) -> tuple[tuple[str, float, int], ...]:
        return tuple((sha256, self.stored, len(data)) for sha256, data in self.files.items())

    def remove(self, sha256: str) -> None:
        self.files.pop(sha256, None)


class MemoryDeltas:
    """What is known of deltas."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], KeptDelta] = {}
        self._versions: list[tuple[str, str]] = []

    async def save(self, delta: KeptDelta) -> None:
        self._known[delta.tree, delta.base] = delta

    async def drop(self, pairs: Sequence[tuple[str, str]]) -> None:
        for tree, base in pairs:
            self._known.pop((tree, base), None)

    async def all(self) -> tuple[KeptDelta, ...]:
        return tuple(self._known[pair] for pair in sorted(self._known))

    async def note(self, versions: Sequence[tuple[str, str]]) -> None:
        self._versions += [one for one in versions if one not in self._versions]

    async def versions(self) -> tuple[tuple[int, str, str], ...]:
        return tuple((n, *one) for n, one in enumerate(self._versions, 1))


def _meets_its_ports(maker: MemoryDeltaMaker, store: MemoryDeltas) -> tuple[DeltaMaker, DeltaStore]:
    return maker, store
