"""A bounded store of results that can be made again: least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Kept(Generic[K, V]):
    """At most ``bound`` entries."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._entries: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The entry, which is thereby fresh again."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> V:
        """Keep ``value``; the stalest entry goes when there are too many."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._bound:
            self._entries.popitem(last=False)
        return value

    def __len__(self) -> int:
        return len(self._entries)
