"""Small rollouts to play with: a plan in a line, events by node number, time in minutes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec

from edgewise.model.quantity import Share
from edgewise.model.rules import RolloutRules, StageRule
from edgewise.protocol.report import Observation, Receipt
from edgewise.rollout import waves
from edgewise.rollout.states import (
    AskGate,
    Command,
    Event,
    Heard,
    Offline,
    Online,
    Outcome,
    PlannedNode,
    Received,
    RolloutPlan,
    name_of,
    reason_of,
)

NEW, OLD = "b" * 64, "a" * 64
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def stage(name: str = "all", **knobs) -> StageRule:
    return StageRule(name, **knobs)


def percent(value: float) -> Share:
    return Share(percent=value)


def plan(
    *sizes: int,
    stages: tuple[StageRule, ...] = (),
    groups: dict[int, str] | None = None,
    previous: str = OLD,
    start: dict[int, str] | None = None,
    **rules,
) -> RolloutPlan:
    """Stages of these sizes; nodes are numbered through."""
    stages = stages or tuple(StageRule(f"stage-{i}") for i in range(len(sizes)))
    nodes, index = [], 0
    for at, size in enumerate(sizes):
        for _ in range(size):
            group = (groups or {}).get(index, f"g{index}")
            kind = (start or {}).get(index, "Queued")
            nodes.append(PlannedNode(index, f"n{index}", at, group, kind))
            index += 1
    compiled = RolloutRules(stages=stages, **{"failure_threshold": percent(100), **rules})
    return RolloutPlan(
        "r1", "shop", "main@sha1:1", NEW, previous, compiled, stages, T0, tuple(nodes)
    )


class Play:
    """A rollout under test, with a clock that moves only when told."""

    def __init__(self, plan: RolloutPlan, *, online: bool = True) -> None:
        self.plan = plan
        self.now = T0
        self.state = waves.begin(plan)
        self.effects: list = []
        self.log: list = []
        self.sequence = 0
        self.last: Outcome | None = None
        if online:
            self.do(*(Online(n.index) for n in plan.nodes))

    def do(self, *events: Event) -> Play:
        out = waves.step(self.plan, self.state, events, self.now)
        self.plan, self.state, self.last = out.plan, out.state, out
        self.effects += out.effects
        self.log += out.transitions
        return self

    def wait(self, minutes: float) -> Play:
        """Let time pass, waking when the machine asked to be woken."""
        end = self.now + timedelta(minutes=minutes)
        while self.last is not None and self.last.wake_at and self.last.wake_at <= end:
            self.now = max(self.now, self.last.wake_at)
            before = self.last.wake_at
            self.do()
            assert self.last.wake_at is None or self.last.wake_at > before, "no busy loop"
        self.now = end
        return self.do()

    def receipt(self, index: int, outcome: str = "Succeeded", **fields) -> Received:
        self.sequence += 1
        defaults = {
            "release": NEW,
            "running": NEW if outcome == "Succeeded" else OLD,
            "rollout": self.plan.id,
        }
        made = Receipt(f"n{index}", self.sequence, outcome, at=self.now, **{**defaults, **fields})
        return Received(index, made)

    def good(self, *indexes: int) -> Play:
        return self.do(*(self.receipt(i) for i in indexes))

    def bad(self, *indexes: int) -> Play:
        return self.do(*(self.receipt(i, "Failed", reason="probe failed") for i in indexes))

    def back(self, *indexes: int) -> Play:
        made = (self.receipt(i, "RolledBack", release=OLD, running=OLD) for i in indexes)
        return self.do(*made)

    def heard(self, *indexes: int, **seen) -> Play:
        observation = Observation(**seen) if seen else None
        return self.do(*(Heard(i, self.now, observation) for i in indexes))

    def offline(self, *indexes: int) -> Play:
        return self.do(*(Offline(i) for i in indexes))

    def online(self, *indexes: int) -> Play:
        return self.do(*(Online(i) for i in indexes))

    def command(self, verb: str, actor: str = "alice") -> Play:
        return self.do(Command(verb, actor, "because"))

    @property
    def head(self) -> str:
        return name_of(self.state.head)

    @property
    def reason(self) -> str:
        return reason_of(self.state.head)

    @property
    def table(self):
        return self.state.table

    @property
    def wave(self) -> set[int]:
        return set(self.table.wave)

    def node(self, index: int) -> str:
        return self.table.rows[index].state

    def asked(self) -> list[AskGate]:
        return [e for e in self.effects if isinstance(e, AskGate)]


__all__ = ["NEW", "OLD", "T0", "Play", "msgspec", "percent", "plan", "replace", "stage"]
