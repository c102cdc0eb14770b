"""The nodes of one rollout, with the indexes that make a step cost what it changes.

``put`` is the only way to change a row; it keeps every count right. Nothing here decides
anything: ``waves`` does.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime

from edgewise.model.quantity import Share
from edgewise.protocol.api import NodeState
from edgewise.protocol.channel import Bitmap
from edgewise.rollout.states import IN_FLIGHT, PlannedNode, RolloutPlan, Row


class Table:
    """Rows by node index. Built from a plan (and saved rows) in O(nodes)."""

    def __init__(self, plan: RolloutPlan, saved: Mapping[int, Row] | None = None) -> None:
        saved = saved or {}
        self.planned = {n.index: n for n in plan.nodes}
        self.rows: dict[int, Row] = {}
        self.counts: list[dict[NodeState, int]] = [{} for _ in plan.stages]
        self.attempted = 0
        """Nodes told, or failed without having been told (offline: Failed)."""
        self.failed = 0
        self.unknown = 0
        self.in_flight = 0
        self.in_window: set[int] = set()
        """Those in flight that wait for their update window."""
        self.online: set[int] = set()
        self.unhealthy: set[int] = set()
        self.changed: dict[int, Row] = {}
        self._members: list[set[int]] = [set() for _ in plan.stages]
        self._down: dict[str, int] = {}
        self._size: dict[str, int] = {}
        self._of_group: dict[str, list[int]] = {}
        self._ready: list[int] = []
        self._is_ready: set[int] = set()
        self._ready_of: dict[int, int] = {}
        self._parked: dict[str, list[int]] = {}
        self._freed: set[str] = set()
        """Groups where a node is up again since the budget was last looked at."""
        self._allowed: Share | None = None
        self._timers: list[tuple[datetime, int]] = []
        self._wave = bytearray()
        self._waiting_back = bytearray()
        self._returning = False
        for node in plan.nodes:
            self._size[node.group] = self._size.get(node.group, 0) + 1
            self._of_group.setdefault(node.group, []).append(node.index)
            self._put(node.index, saved.get(node.index) or _first_row(node))

    # Rows.

    def put(self, index: int, row: Row) -> None:
        """Replace one row and remember that it has to be saved."""
        if self.rows[index] == row:
            return
        self.changed[index] = row
        self._put(index, row)

    def _put(self, index: int, row: Row) -> None:
        before = self.rows.get(index)
        if before is not None:
            self._count(index, before, -1)
        self.rows[index] = row
        self._count(index, row, 1)
        moves = row.told and not row.back and row.state != "Held"
        _set_bit(self._wave, index, moves)
        _set_bit(self._waiting_back, index, row.back and row.state == "Queued")

    def _count(self, index: int, row: Row, by: int) -> None:
        while len(self.counts) <= row.stage:
            self.counts.append({})
            self._members.append(set())
        counts = self.counts[row.stage]
        counts[row.state] = counts.get(row.state, 0) + by
        (self._members[row.stage].add if by > 0 else self._members[row.stage].discard)(index)
        if row.state in IN_FLIGHT:
            self.in_flight += by
            if row.waits is not None:
                (self.in_window.add if by > 0 else self.in_window.discard)(index)
        if not row.back:
            self.attempted += by * (row.told or row.state == "Failed")
            self.failed += by * (row.state == "Failed")
            self.unknown += by * (row.state == "Unknown")
        if self._is_down(index, row):
            group = self.planned[index].group
            self._down[group] = self._down.get(group, 0) + by
            if by < 0:
                self._freed.add(group)

    def members(self, stage: int) -> list[int]:
        """Indexes of the nodes of ``stage``, in order."""
        return sorted(self._members[stage]) if stage < len(self._members) else []

    def stage_counts(self, stage: int) -> dict[NodeState, int]:
        """How many nodes of ``stage`` are in which state, without zeros."""
        return (
            {s: n for s, n in self.counts[stage].items() if n} if stage < len(self.counts) else {}
        )

    def degraded(self, stage: int) -> int:
        """Succeeded nodes of ``stage`` that say they are not healthy now."""
        return sum(
            1
            for i in self.unhealthy
            if (row := self.rows.get(i)) is not None
            and row.stage == stage
            and row.state == "Succeeded"
        )

    # Contact and health.

    def set_online(self, index: int, online: bool) -> None:
        """Connection is not saved: it is learnt again after a restart."""
        (self.online.add if online else self.online.discard)(index)

    def set_unhealthy(self, index: int, unhealthy: bool) -> None:
        """Health is not saved either."""
        if unhealthy == (index in self.unhealthy):
            return
        row, group = self.rows[index], self.planned[index].group
        was = self._is_down(index, row)
        (self.unhealthy.add if unhealthy else self.unhealthy.discard)(index)
        if was != self._is_down(index, row):
            self._down[group] = self._down.get(group, 0) + (1 if unhealthy else -1)
            self._freed.add(group)  # a sick node may itself be repaired

    def turn_round(self) -> None:
        """The way back begins: from now on only nodes at work count as down.

        A node that is sick on its own, or silent, must not keep its neighbours on a release
        that is known to be bad.
        """
        self._returning = True
        self._down = {}
        for index, row in self.rows.items():
            if self._is_down(index, row):
                group = self.planned[index].group
                self._down[group] = self._down.get(group, 0) + 1
        self._freed = set(self._parked)

    def _is_down(self, index: int, row: Row) -> bool:
        """Unavailable because of us: at work, silent since, failed where it stands, or sick.

        On the way back only nodes at work count, so that a rollback always ends.
        """
        if row.state in IN_FLIGHT:
            return True
        if self._returning or row.state in ("Held", "Skipped") or row.back:
            return False
        if row.told and (row.state == "Unknown" or (row.state == "Failed" and not row.restored)):
            return True
        return index in self.unhealthy

    # Whose turn it is.

    def make_ready(self, index: int) -> None:
        """It may be told as soon as the limits allow."""
        if index not in self._is_ready:
            self._is_ready.add(index)
            stage = self.rows[index].stage
            self._ready_of[stage] = self._ready_of.get(stage, 0) + 1
            heapq.heappush(self._ready, index)

    def unready(self, index: int) -> None:
        """It may not be told any more; its place in the queue is dropped when it comes up."""
        if index in self._is_ready:
            self._is_ready.discard(index)
            self._ready_of[self.rows[index].stage] -= 1

    def clear_ready(self) -> None:
        """Forget the queue: another one is being made."""
        self._ready.clear()
        self._is_ready.clear()
        self._ready_of.clear()
        self._parked.clear()

    @property
    def ready(self) -> int:
        """How many wait for their turn, those held up by the budget included."""
        return len(self._is_ready)

    def ready_in(self, stage: int) -> int:
        """How many of ``stage`` wait for their turn."""
        return self._ready_of.get(stage, 0)

    def take(self, at_most: int, allowed: Share | None) -> Iterator[int]:
        """Nodes whose turn it is, lowest index first, within the disruption budget.

        The caller puts each in flight before it asks for the next.
        """
        self._unpark(allowed)
        while at_most > 0 and self._ready:
            index = heapq.heappop(self._ready)
            if index not in self._is_ready:
                continue
            group = self.planned[index].group
            if not self._has_room(group, allowed) and not self._is_down(index, self.rows[index]):
                self._parked.setdefault(group, []).append(index)
                continue
            self.unready(index)
            at_most -= 1
            yield index

    def _unpark(self, allowed: Share | None) -> None:
        groups = self._freed if allowed == self._allowed else set(self._parked)
        self._freed, self._allowed = set(), allowed
        for group in groups:
            for index in self._parked.pop(group, ()):
                heapq.heappush(self._ready, index)

    def _has_room(self, group: str, allowed: Share | None) -> bool:
        return allowed is None or self._down.get(group, 0) < allowed.of(self._size.get(group, 0))

    def blocked_by(self, allowed: Share | None) -> str:
        """A group that holds nodes up, in words; empty when none does."""
        for group, waiting in self._parked.items():
            if any(i in self._is_ready for i in waiting) and not self._has_room(group, allowed):
                down = [
                    self.planned[i].name
                    for i in self._of_group[group]
                    if self._is_down(i, self.rows[i])
                ]
                return f"group {group or 'all'} may not lose more nodes while {down[0]} is down"
        return ""

    def next_opening(self) -> datetime | None:
        """When the first of the windows that are waited for opens. O(nodes that wait)."""
        opens = (self.rows[i].opens for i in self.in_window)
        return min((at for at in opens if at is not None), default=None)

    # Time.

    def remind(self, due: datetime, index: int) -> None:
        """Bring this node up again at ``due``."""
        heapq.heappush(self._timers, (due, index))

    def due(self, now: datetime) -> Iterator[int]:
        """Nodes whose reminder has come; each once per reminder."""
        while self._timers and self._timers[0][0] <= now:
            yield heapq.heappop(self._timers)[1]

    @property
    def next_due(self) -> datetime | None:
        """When the next reminder comes."""
        return self._timers[0][0] if self._timers else None

    # What the channel says.

    @property
    def wave(self) -> Bitmap:
        """The nodes that move to the target."""
        return Bitmap(bytes(self._wave))

    @property
    def waiting_back(self) -> Bitmap:
        """The nodes that keep what they run until it is their turn to return."""
        return Bitmap(bytes(self._waiting_back))

    def take_changed(self) -> dict[int, Row]:
        """The rows put since the last call."""
        changed, self.changed = self.changed, {}
        return changed

    def indexes(self, states: Iterable[NodeState]) -> list[int]:
        """Nodes in one of these states, in order. O(nodes): for rare moments and views."""
        wanted = frozenset(states)
        return sorted(i for i, row in self.rows.items() if row.state in wanted)


def _first_row(node: PlannedNode) -> Row:
    return Row(node.start, node.stage, told=node.told, reason=node.reason)


def _set_bit(bits: bytearray, index: int, value: bool) -> None:
    byte = index // 8
    if byte >= len(bits):
        if not value:
            return
        bits.extend(bytes(byte + 1 - len(bits)))
    if value:
        bits[byte] |= 1 << index % 8
    else:
        bits[byte] &= ~(1 << index % 8)
