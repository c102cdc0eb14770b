"""Who is online: nodes that were heard within offlineAfter.

Silence is noticed by a queue of deadlines, so that a heartbeat costs a dictionary entry.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from datetime import datetime, timedelta


class Presence:
    """Online and offline for the nodes of one fleet."""

    def __init__(self, after: timedelta) -> None:
        self.after = after
        self.online: set[str] = set()
        self._heard: dict[str, datetime] = {}
        self._due: list[tuple[datetime, str]] = []

    def heard(self, node: str, at: datetime) -> bool:
        """Note the newest contact; whether the node was offline before."""
        known = self._heard.get(node)
        self._heard[node] = at
        back = node not in self.online
        if back or (known is not None and at < known):  # or the clock was ahead, and is right now
            self.online.add(node)
            heapq.heappush(self._due, (at + self.after, node))
        return back

    def silent(self, now: datetime) -> list[str]:
        """Nodes that have become offline by ``now``."""
        gone = []
        while self._due and self._due[0][0] <= now:
            _, node = heapq.heappop(self._due)
            if node not in self.online:
                continue
            deadline = self._heard[node] + self.after
            if deadline <= now:
                self.online.discard(node)
                gone.append(node)
            else:
                heapq.heappush(self._due, (deadline, node))
        return gone

    def forget(self, nodes: Iterable[str]) -> None:
        """These are no members any more."""
        for node in nodes:
            self.online.discard(node)
            self._heard.pop(node, None)

    @property
    def next_due(self) -> datetime | None:
        """When somebody may become offline."""
        return self._due[0][0] if self._due else None
