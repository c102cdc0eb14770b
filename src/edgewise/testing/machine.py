"""A machine on virtual time: apps that live and die as a test says.

The first word of a command says how the program behaves: ``run`` (until it is signalled),
``exit CODE [SECONDS]``, ``deaf`` (ignores every signal but a kill). Probes are answered by
``answers``; a test changes what it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from edgewise.heal.ports import Answer, Beat, Facts, Launch, Machine, Memory, Process
from edgewise.heal.restarts import Exit
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import ExecProbe, HttpProbe, TcpProbe
from edgewise.runtime.clock import Clock


@dataclass
class _Running:
    process: Process
    launch: Launch
    started: float
    exit: asyncio.Future[Exit]
    timer: asyncio.Task[None] | None = None


@dataclass
class MemoryMachine:
    """Survives the supervisor, as a real machine does: give it to the next one."""

    clock: Clock
    answers: dict[str, bool] = field(default_factory=dict)
    """App name to whether its probes are good; good by default."""
    answer: Callable[[Launch], bool] | None = None
    """Overrides ``answers``: by launch, so that one version can be bad."""
    started: list[tuple[str, str]] = field(default_factory=list)
    """(name, part) of every start, in order."""
    killed: list[str] = field(default_factory=list)
    signals: list[tuple[str, str]] = field(default_factory=list)
    hooks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    hook: Callable[[tuple[str, ...]], Answer] = lambda command: Answer(True)
    disk_full: bool = False
    beats: dict[str, Beat] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _memory: dict[str, Memory] = field(default_factory=dict)
    _exits: dict[int, Exit] = field(default_factory=dict)
    _pid: int = 100

    def facts(self) -> Facts:
        return Facts("memory", "boot-1")

    async def start(self, launch: Launch) -> Process:
        word, *rest = launch.app.command or ("",)
        if word not in ("run", "exit", "deaf"):
            raise NeedsPerson(f"app {launch.name}: there is no command {word!r}")
        self._pid += 1
        process = Process(launch.name, self._pid, launch.part, launch.release)
        exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        running = _Running(process, launch, self.clock.monotonic(), exit)
        self._running[launch.name] = running
        self.started.append((launch.name, launch.part))
        if word == "exit":
            after = timedelta(seconds=float(rest[1])) if len(rest) > 1 else timedelta()
            running.timer = asyncio.ensure_future(self._later(running, int(rest[0]), after))
        return process

    async def _later(self, running: _Running, code: int, after: timedelta) -> None:
        await self.clock.sleep(after)
        self._finish(running, Exit(code))

    def _finish(self, running: _Running, exit: Exit) -> None:
        if self._running.get(running.process.name) is running:
            del self._running[running.process.name]
        self._exits.setdefault(running.process.pid, exit)
        if not running.exit.done():
            running.exit.set_result(exit)

    def crash(self, name: str, code: int = 1) -> None:
        """Let a running app end now."""
        self._finish(self._running[name], Exit(code))

    def pid(self, name: str) -> int:
        """Of a running app; 0 when it does not run."""
        return self._running[name].process.pid if name in self._running else 0

    async def adopt(self, name: str) -> Process | None:
        running = self._running.get(name)
        if running is None:
            return None
        old = running.process
        ran_s = self.clock.monotonic() - running.started
        return Process(old.name, old.pid, old.part, old.release, ran_s)

    async def ended(self, process: Process) -> Exit:
        running = self._running.get(process.name)
        if running is None or running.process.pid != process.pid:
            return self._exits.get(process.pid, Exit(None))
        return await asyncio.shield(running.exit)

    async def signal(self, process: Process, signal: str) -> None:
        running = self._running.get(process.name)
        if running is None or running.process.pid != process.pid:
            return
        self.signals.append((process.name, signal))
        deadly = signal in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGKILL")
        if deadly and (running.launch.app.command[0] != "deaf" or signal == "SIGKILL"):
            self._finish(running, Exit(0 if signal == "SIGTERM" else 128 + 9))

    async def kill(self, name: str) -> None:
        running = self._running.get(name)
        if running is not None:
            self.killed.append(name)
            self._finish(running, Exit(128 + 9))

    async def ask(
        self, launch: Launch, check: HttpProbe | TcpProbe | ExecProbe, timeout_s: float
    ) -> Answer:
        good = self.answer(launch) if self.answer else self.answers.get(launch.name, True)
        return Answer(good, "" if good else "the test says no")

    async def run(self, launch: Launch, command: tuple[str, ...], timeout_s: float) -> Answer:
        self.hooks.append((launch.name, command))
        return self.hook(command)

    def beat(self, name: str) -> Beat:
        return self.beats.setdefault(name, Beat())

    def recall(self, name: str) -> Memory | None:
        return self._memory.get(name)

    def remember(self, name: str, memory: Memory) -> None:
        if self.disk_full:
            raise NeedsPerson("the disk is full", hint="free some space")
        self._memory[name] = memory

    def known(self) -> tuple[str, ...]:
        return tuple(sorted({*self._memory, *self._running}))

    async def forget(self, name: str) -> None:
        self._memory.pop(name, None)


def _meets_its_port(machine: MemoryMachine) -> Machine:
    return machine
