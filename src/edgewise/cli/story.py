"""The story that ``edgewise demo`` tells: steps that must hold, with what they measured."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import msgspec
from rich.console import Console

from edgewise.model.errors import EdgewiseError, NeedsPerson
from edgewise.runtime.clock import Clock

T = TypeVar("T")


class Step(msgspec.Struct):
    """One step of the story as ``--json FILE`` keeps it."""

    name: str
    ok: bool
    seconds: float
    figures: dict[str, float | str] = {}
    problem: str = ""


class Report(msgspec.Struct):
    """The whole run."""

    ok: bool
    seconds: float
    steps: list[Step]


class Story:
    """Runs steps one after the other and prints what each found."""

    def __init__(self, clock: Clock, console: Console) -> None:
        self._clock = clock
        self._console = console
        self._started = clock.monotonic()
        self.steps: list[Step] = []

    async def step(self, name: str, work: Callable[[], Awaitable[dict[str, float | str]]]) -> None:
        """Do one step; a step that fails ends the story by raising what went wrong."""
        self._console.print(f"[bold]{len(self.steps) + 1}. {name}[/bold]")
        begun = self._clock.monotonic()
        try:
            figures = await work()
        except EdgewiseError as error:
            seconds = self._clock.monotonic() - begun
            hint = f" ({error.hint})" if error.hint else ""
            self.steps.append(Step(name, False, round(seconds, 2), {}, f"{error}{hint}"))
            self._console.print(f"   [red]failed[/red] after {seconds:.1f} s: {error}{hint}")
            raise
        seconds = self._clock.monotonic() - begun
        self.steps.append(Step(name, True, round(seconds, 2), figures))
        for what, value in figures.items():
            self._console.print(f"   {what.replace('_', ' ')}: [cyan]{value}[/cyan]")
        self._console.print(f"   [green]ok[/green] in {seconds:.1f} s")

    def report(self, *, finished: bool) -> Report:
        """What happened; ``finished`` is whether every step was reached."""
        ok = finished and all(step.ok for step in self.steps)
        return Report(ok, round(self._clock.monotonic() - self._started, 2), self.steps)

    def save(self, path: Path, *, finished: bool) -> None:
        """Write the report as JSON."""
        data = msgspec.json.encode(self.report(finished=finished))
        path.write_bytes(msgspec.json.format(data, indent=2) + b"\n")


async def until(
    ask: Callable[[], T | None], *, what: str, within: timedelta, every: float = 0.1
) -> T:
    """Ask (in a thread) until there is an answer.

    Raises NeedsPerson, naming ``what``, when there is none within the time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within.total_seconds()
    while (answer := await asyncio.to_thread(ask)) is None:
        if loop.time() > deadline:
            raise NeedsPerson(f"{what} did not happen within {within.total_seconds():.0f} s")
        await asyncio.sleep(every)
    return answer
