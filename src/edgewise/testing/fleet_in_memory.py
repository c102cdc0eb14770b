"""A fleet of simulated nodes around the real rollout engine, on a manual clock.

Each node follows its channel as the agent does: it takes the target it is told, reports
phases, and sends receipts. Faults are switches on the node.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from edgewise.model.rules import RolloutRules
from edgewise.protocol.channel import Channel
from edgewise.protocol.content import Window
from edgewise.protocol.report import Health, Observation, Receipt
from edgewise.rollout.fleet import MemberPlan, Proposal, group_of
from edgewise.rollout.on_hub import Outside, Pace, Rollouts
from edgewise.rollout.ports import NodeStates, RolloutStore
from edgewise.rollout.windows import is_open, next_open
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.rollouts import MemoryNodeStates, MemoryRollouts, Noticeboard


@dataclass
class SimulatedNode:
    """One node. ``takes`` minutes to apply; ``away`` cuts it off; ``lies`` about digests."""

    name: str
    running: str = ""
    takes: float = 1.0
    away: bool = False
    window: Window | None = None
    """When it may apply."""
    lies: bool = False
    ran: list[str] = field(default_factory=list)
    """Every release it ever started, in order."""
    health: Health = "Healthy"
    sequence: int = 0
    target: str = ""
    busy_for: float = 0.0
    waits: bool = False
    """For its window."""
    channel: Channel | None = None
    outbox: list[Receipt] = field(default_factory=list)
    failed: set[tuple[str, str]] = field(default_factory=set)
    """(release, rollout) that it tried and put back: it does not try the same again."""


class FleetInMemory:
    """The engine, its stores and the nodes of one fleet called ``shop``."""

    def __init__(
        self,
        nodes: int,
        *,
        store: RolloutStore | None = None,
        states: NodeStates | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.board = Noticeboard()
        self.store = store or MemoryRollouts()
        self.states = states or MemoryNodeStates()
        self.chance = SeededChance(7)
        self.nodes = {f"n{i}": SimulatedNode(f"n{i}") for i in range(nodes)}
        self.broken: Callable[[SimulatedNode, str], bool] = lambda node, release: False
        """Whether a release fails on a node."""
        self.engine = self._engine()

    def _engine(self) -> Rollouts:
        outside = Outside(self.store, self.states, *[self.board] * 4)
        return Rollouts(outside, self.clock, self.chance, ListLog(), Pace(coalesce=timedelta()))

    async def restart_hub(self) -> None:
        """The hub dies and starts again from what it has saved."""
        self.engine = self._engine()
        await self.engine.start()

    def proposal(
        self,
        release: str,
        rules: RolloutRules,
        stages: Callable[[str], str],
        *,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        selections: Callable[[str], str] | None = None,
    ) -> Proposal:
        """A proposal for every node; ``stages`` names the stage of each."""
        members = {
            n: MemberPlan(
                selections(n) if selections else release,
                stages(n),
                group_of(n, (labels or {}).get(n, {}), rules),
            )
            for n in self.nodes
        }
        return Proposal("shop", release, f"main@sha1:{release[:8]}", rules, members)

    async def minute(self, count: float = 1, *, step: float = 1.0) -> None:
        """Let time pass: nodes work and report, the hub decides and announces."""
        passed = 0.0
        while passed < count:
            self.clock.advance(timedelta(minutes=step))
            passed += step
            for node in self.nodes.values():
                self._live_on(node, step)
            await self.exchange()

    async def exchange(self) -> None:
        """Every connected node makes one contact; the hub decides and performs."""
        contacts, receipts = {}, []
        for node in self.nodes.values():
            if node.away:
                continue
            contacts[node.name] = (self.clock.now(), self._observe(node))
            receipts += node.outbox
            node.outbox = []
        self.engine.observe(contacts)
        await self.settle(receipts)

    async def settle(self, receipts: list[Receipt] | None = None) -> None:
        """Decide and perform until nothing is left to do now."""
        if receipts:
            waiting = asyncio.ensure_future(self.engine.receive(receipts))
            await asyncio.sleep(0)
            await self.engine.decide()
            await waiting
        for _ in range(4):
            await self.engine.decide()
            await self.engine.perform()
            await self.engine.revert()

    def _observe(self, node: SimulatedNode) -> Observation:
        phase = "Ready" if node.waits else "Applying" if node.busy_for > 0 else "Idle"
        opens = next_open(node.window, self.clock.now()) if node.waits else None
        return Observation(
            window="apply" if node.waits else "",
            opens=opens,
            running=node.running,
            target=node.target,
            phase=phase,  # type: ignore[arg-type]
            health=node.health,
        )

    def _live_on(self, node: SimulatedNode, minutes: float) -> None:
        if not node.away and self.board.channels:
            node.channel = self.board.channels[-1]
        placed = self.engine.placement(node.name)
        if node.channel is None or placed is None:
            return
        wanted = node.channel.target(placed.index, node.running)
        if (wanted, node.channel.rollout) in node.failed:
            return
        if wanted != node.target:
            node.target = wanted
            node.busy_for = node.takes if wanted not in ("", node.running) else 0.0
            node.waits = node.busy_for > 0
        node.waits = node.waits and not is_open(node.window, self.clock.now())
        if node.busy_for > 0 and not node.waits:
            node.busy_for -= minutes
            if node.busy_for <= 0:
                self._finish(node, node.channel)

    def _finish(self, node: SimulatedNode, channel: Channel) -> None:
        release = node.target
        node.ran.append(release)
        if self.broken(node, release):
            node.failed.add((release, channel.rollout))
            self._sign(node, "Failed", release, channel, "probe http failed 3 times")
            node.target = node.running
            return
        older = release == channel.stable and bool(channel.rollout or channel.quarantined)
        node.running = release
        self._sign(node, "RolledBack" if older else "Succeeded", release, channel)

    def _sign(
        self, node: SimulatedNode, outcome: str, release: str, channel: Channel, why: str = ""
    ) -> None:
        node.sequence += 1
        said = "f" * 64 if node.lies else release
        node.outbox.append(
            Receipt(
                node=node.name,
                sequence=node.sequence,
                outcome=outcome,  # type: ignore[arg-type]
                release=said,
                running=said if node.lies else node.running,
                rollout=channel.rollout,
                at=self.clock.now(),
                reason=why,
            )
        )
