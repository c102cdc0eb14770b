"""A step in the making: the one mutable thing inside ``waves.step``."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

import msgspec

from edgewise.rollout.states import (
    Active,
    Announce,
    AskGate,
    Course,
    Effect,
    Head,
    Moved,
    Notify,
    Outcome,
    Paused,
    RolloutPlan,
    State,
    Undo,
    WaitingForWindow,
    name_of,
    reason_of,
)
from edgewise.rollout.table import Table


class Draft:
    """What the step has decided so far."""

    def __init__(self, plan: RolloutPlan, state: State, now: datetime) -> None:
        self.plan = plan
        self.head: Head = state.head
        self.course: Course = state.course
        self.table: Table = state.table
        self.now = now
        self._effects: list[Effect] = []
        self._moved: list[Moved] = []
        self._refused: dict[str, str] = {}

    def move(self, head: Head, actor: str, reason: str = "") -> None:
        """Go to another state, and write it into the log."""
        if isinstance(self.head, WaitingForWindow):  # the policy made it wait: no time lost
            clock = self.course.clock + (self.now - self.head.since)
            self.course = msgspec.structs.replace(self.course, clock=clock)
        self.head = head
        self._moved.append(Moved(self.now, name_of(head), actor, reason or reason_of(head)))

    def note(self, actor: str, reason: str) -> None:
        """A line in the log that is not a change of state."""
        self._moved.append(Moved(self.now, name_of(self.head), actor, reason))

    def pause(self, by: str, reason: str) -> None:
        """Stop telling nodes until a person decides."""
        before = self.head
        if not isinstance(before, Active):
            return
        self.move(Paused(self.now, by, reason, before), by, reason)
        self.notify("RolloutPaused", reason)

    def refuse(self, verb: str) -> None:
        """A command that makes no sense in this state."""
        self._refused[verb] = f"rollout {self.plan.id} is {name_of(self.head)}"

    def announce(self) -> None:
        """The channel has to say something else."""
        if not any(isinstance(e, Announce) for e in self._effects):
            self._effects.append(Announce())

    def ask(self, question: AskGate) -> None:
        """Ask a gate."""
        self._effects.append(question)

    def undo(self) -> None:
        """The rollout has failed: its commit is reverted, if the policy says so."""
        if self.plan.rules.on_failure_git != "Quarantine":
            self._effects.append(Undo(name_of(self.head), reason_of(self.head)))

    def notify(
        self,
        event: Literal["RolloutPaused", "RolloutFailed", "RolloutWaits", "RolloutEnded"],
        text: str,
    ) -> None:
        """Tell people."""
        self._effects.append(Notify(event, text))

    def stage_name(self, stage: int) -> str:
        """As people know it."""
        return self.plan.stages[stage].name

    def mark(self, stage: int, **facts: object) -> None:
        """Remember when a stage began, baked or passed."""
        marked = msgspec.structs.replace(self.course.stages[stage], **facts)
        stages = self.course.stages
        stages = (*stages[:stage], marked, *stages[stage + 1 :])
        self.course = msgspec.structs.replace(self.course, stages=stages)

    def outcome(self, wake_at: datetime | None) -> Outcome:
        """Everything that was decided."""
        return Outcome(
            self.plan,
            State(self.head, self.course, self.table),
            self.table.take_changed(),
            tuple(self._effects),
            tuple(self._moved),
            wake_at,
            dict(self._refused),
        )
