"""What making deltas needs from the outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from edgewise.protocol.delta import DeltaRef

Progress = Callable[[int, int], None]
"""Bytes of the new tree that are done, and bytes in all."""


class DeltaMaker(Protocol):
    """Makes deltas out of the objects that the hub keeps, and keeps them where nodes fetch.

    Implementations: backends.files.delta_files, testing.deltas.
    """

    async def make(
        self, base: str, tree: str, *, at_most: int, progress: Progress
    ) -> DeltaRef | None:
        """Make the delta from one tree to another (``base`` empty: a pack) and keep it.

        When it returns, the file is complete, checked and synced under its name. None, and
        nothing kept, when it would have more than ``at_most`` bytes. A cancelled call leaves
        no process and no file. Raises NotFound when an object is not here, NeedsPerson when
        the disk is full or making fails.
        """

    def check(self, ref: DeltaRef, *, whole: bool) -> bool:
        """Whether the file is there with its size and head; ``whole``: and with every part."""

    def kept(self) -> tuple[tuple[str, float, int], ...]:
        """(digest, epoch seconds when it was stored, bytes) of every file here."""

    def remove(self, sha256: str) -> None:
        """Idempotent."""


class PublishedTree(msgspec.Struct, frozen=True):
    """A tree of a published artifact version."""

    sequence: int
    """Grows with every version that is published."""
    name: str
    version: str
    platform: str
    tree: str


class KeptDelta(msgspec.Struct, frozen=True):
    """What became of one delta."""

    tree: str
    base: str
    """Empty: a pack."""
    state: Literal["Made", "NotWorth", "Trying", "Failed"]
    """``Trying`` outlives a hub that dies over it, so that it does not die for ever."""
    at: datetime
    plain: int = 0
    """Bytes that it saves fetching: packed objects that a node with the base lacks."""
    objects: int = 0
    """How many those are: a request each."""
    ref: DeltaRef | None = None
    tries: int = 0
    why: str = ""
    percent: int = 0
    """``NotWorth``: the setting that it was judged by."""


class DeltaStore(Protocol):
    """What is known of deltas, by (tree, base), and the order in which versions came.

    Implementations: backends.sqlite.deltas, testing.deltas.
    """

    async def save(self, delta: KeptDelta) -> None:
        """In place of what was known of the same pair."""

    async def drop(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Forget these (tree, base)."""

    async def all(self) -> tuple[KeptDelta, ...]:
        """Sorted by (tree, base)."""

    async def note(self, versions: Sequence[tuple[str, str]]) -> None:
        """These (name, version) are published; those that are new are newest, in this order."""

    async def versions(self) -> tuple[tuple[int, str, str], ...]:
        """(sequence, name, version), oldest first."""
