"""Held polls: who waits for news, and whom a change concerns.

A change of a fleet's channel wakes only the nodes whose target it changes; the others see
the new channel when their hold ends, which spreads them over a minute. One loop ends the
holds, so ten thousand polls cost ten thousand heap entries and no timers of their own.

A crowd is woken in two beats: a vanguard at once, everybody else a moment later. The first
nodes have then fetched what is new while nobody stands in their way, and what they fetched
lies in the caches of relays and CDN when the crowd comes.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal

from edgewise.protocol.channel import Bitmap, Channel
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock

Outcome = Literal["woken", "ended"]

TICK: Final = timedelta(milliseconds=250)
"""How late a hold may end."""
VANGUARD: Final = 16
"""Nodes of the first beat: enough for a cache to see every platform and variant, few enough
that a hub of two cores answers them and their downloads within the pause."""
SECOND_BEAT: Final = timedelta(milliseconds=200)
"""What the crowd waits: a vanguard on a local network has fetched a small release by then,
and nobody notices it in a rollout."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Who waits, and what decides whether a channel concerns it."""

    name: str
    fleet: str = ""
    index: int = 0
    running: str = ""


class Targets:
    """``Channel.target`` for many nodes.

    Keeps the bitmaps as they are, a bit a node: a hub remembers many channels.
    """

    __slots__ = ("_candidate", "_quarantined", "_stable", "_stay", "_wave")

    def __init__(self, channel: Channel) -> None:
        self._stable = channel.stable
        candidate = channel.candidate if channel.candidate not in channel.quarantined else ""
        self._candidate = candidate
        self._wave = Bitmap(channel.wave if candidate else b"")
        self._stay = Bitmap(channel.stay)
        self._quarantined = frozenset(channel.quarantined)

    def of(self, index: int, running: str) -> str:
        """The same answer as ``Channel.target``."""
        if index in self._wave:
            return self._candidate
        if running and index in self._stay and running not in self._quarantined:
            return running
        return self._stable


class Waiters:
    """Polls that are held, at most one for each name: a newer one ends the older."""

    def __init__(self, clock: Clock, chance: Chance, hold: timedelta) -> None:
        self._clock = clock
        self._chance = chance
        self.hold_s: Final = hold.total_seconds()
        self._held: dict[str, tuple[Standing, asyncio.Future[Outcome]]] = {}
        self._fleets: dict[str, dict[str, Standing]] = {}
        self._due: list[tuple[float, int, asyncio.Future[Outcome]]] = []
        self._count = 0
        self._crowd: deque[tuple[float, str, asyncio.Future[Outcome]]] = deque()
        self._called = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    async def hold(self, standing: Standing) -> Outcome:
        """Wait until somebody wakes this name, or 0.8 to 1.0 of the hold time has passed."""
        name = standing.name
        if name in self._held:
            self._end(name, "ended")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._held[name] = (standing, future)
        self._fleets.setdefault(standing.fleet, {})[name] = standing
        self._count += 1
        spread = self.hold_s * (0.8 + 0.2 * self._chance.fraction())
        heapq.heappush(self._due, (self._clock.monotonic() + spread, self._count, future))
        try:
            return await future
        finally:
            kept = self._held.get(name)
            if kept is not None and kept[1] is future:
                self._forget(name)

    def wake(self, name: str) -> bool:
        """Answer one name's poll now; whether there was one."""
        if name not in self._held:
            return False
        self._end(name, "woken")
        return True

    def wake_each(self, names: Iterable[str]) -> int:
        """Answer these polls, a crowd in two beats; returns how many there are.

        Who is in the vanguard is drawn, so that no node is always the first to try.
        """
        held = [name for name in names if name in self._held]
        if len(held) > 2 * VANGUARD:
            first = int(self._chance.fraction() * len(held))
            held = held[first:] + held[:first]
            due = self._clock.monotonic() + SECOND_BEAT.total_seconds()
            self._crowd.extend((due, name, self._held[name][1]) for name in held[VANGUARD:])
            self._called.set()
            vanguard = held[:VANGUARD]
        else:
            vanguard = held
        for name in vanguard:
            self._end(name, "woken")
        return len(held)

    def wake_all(self) -> int:
        """Answer every poll now (relays on any change; everybody when the hub stops)."""
        names = list(self._held)
        for name in names:
            self._end(name, "woken")
        return len(names)

    def moved(self, before: Channel | None, after: Channel) -> int:
        """Wake the nodes whose target differs between two channels; returns how many."""
        waiting = self._fleets.get(after.fleet)
        if not waiting:
            return 0
        old = Targets(before) if before is not None else None
        new = Targets(after)
        concerned = [
            s.name
            for s in waiting.values()
            if old is None or old.of(s.index, s.running) != new.of(s.index, s.running)
        ]
        return self.wake_each(concerned)

    async def run(self) -> None:
        """End holds whose time is over, and wake the crowds, for ever."""
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self._end_holds())
            loops.create_task(self._wake_crowds())

    async def _wake_crowds(self) -> None:
        while True:
            await self._called.wait()
            left = self._crowd[0][0] - self._clock.monotonic() if self._crowd else 0.0
            if left > 0:
                await self._clock.sleep(timedelta(seconds=left))
            now = self._clock.monotonic()
            while self._crowd and self._crowd[0][0] <= now:
                _, name, future = self._crowd.popleft()
                # Somebody who came back meanwhile knows already.
                if (kept := self._held.get(name)) is not None and kept[1] is future:
                    self._end(name, "woken")
            if not self._crowd:
                self._called.clear()

    async def _end_holds(self) -> None:
        while True:
            await self._clock.sleep(TICK)
            now = self._clock.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, future = heapq.heappop(self._due)
                if not future.done():
                    future.set_result("ended")
            if len(self._due) > 2 * len(self._held) + 1000:
                self._due = [entry for entry in self._due if not entry[2].done()]
                heapq.heapify(self._due)

    def _end(self, name: str, outcome: Outcome) -> None:
        future = self._held[name][1]
        self._forget(name)
        if not future.done():
            future.set_result(outcome)

    def _forget(self, name: str) -> None:
        standing, _ = self._held.pop(name)
        fleet = self._fleets[standing.fleet]
        fleet.pop(name, None)
        if not fleet:
            del self._fleets[standing.fleet]
