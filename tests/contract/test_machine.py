"""What every Machine does: the fake, and the real one with cgroups and with sessions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from edgewise.heal.ports import Launch, Machine, Memory
from edgewise.heal.restarts import Exit, History
from edgewise.host import processes
from edgewise.host.cgroups import Cgroups
from edgewise.host.machine import HostMachine
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import ExecProbe, ProcessApp
from edgewise.runtime.clock import SystemClock
from edgewise.testing.machine import MemoryMachine


@dataclass
class Bench:
    machine: Machine
    again: Callable[[], Machine]
    """The machine as the next agent finds it."""
    running: tuple[str, ...]
    ending: tuple[str, ...]
    directory: str
    restart: Literal["Always", "OnFailure"] = "OnFailure"

    def launch(self, command: tuple[str, ...], name: str = "web") -> Launch:
        app = ProcessApp(name=name, trees={}, command=command, restart=self.restart)
        return Launch(app, "part-1", "release-1", self.directory)


@pytest.fixture(params=["memory", "session", "cgroup"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    if request.param == "memory":
        machine = MemoryMachine(SystemClock())
        yield Bench(machine, lambda: machine, ("run",), ("exit", "3"), "/")
        return
    cgroups = Cgroups.find(tmp_path) if request.param == "cgroup" else None
    if request.param == "cgroup" and cgroups is None:
        pytest.skip("there is no writable cgroup v2 here")
    made: list[HostMachine] = []

    def make() -> HostMachine:
        made.append(HostMachine(tmp_path, SystemClock(), cgroups))
        return made[-1]

    shell = ("/bin/sh", "-c")
    yield Bench(
        make(), make, (*shell, "sleep 1000 & sleep 1000"), (*shell, "exit 3"), str(tmp_path)
    )
    for name in ("web", "other"):
        await made[-1].kill(name)
    for machine in made:
        await machine.close()
    if cgroups is not None:
        cgroups.dissolve()


async def test_an_app_that_ends_tells_its_exit_code(bench: Bench) -> None:
    process = await bench.machine.start(bench.launch(bench.ending))
    async with asyncio.timeout(10):
        assert (await bench.machine.ended(process)).code == 3


async def test_a_signal_reaches_the_app_and_its_end_shows_it(bench: Bench) -> None:
    process = await bench.machine.start(bench.launch(bench.running))
    assert process.pid > 0
    await bench.machine.signal(process, "SIGKILL")
    async with asyncio.timeout(10):
        assert (await bench.machine.ended(process)).code == 128 + 9


async def test_an_app_that_is_always_restarted_tells_its_exit_code_to_its_own_agent(
    bench: Bench,
) -> None:
    bench.restart = "Always"
    process = await bench.machine.start(bench.launch(bench.ending))
    async with asyncio.timeout(10):
        assert (await bench.machine.ended(process)).code == 3
    await bench.machine.kill("web")
    process = await bench.machine.start(bench.launch(bench.running))
    bench.machine.remember("web", Memory("part-1"))
    adopted = await bench.again().adopt("web")
    assert adopted is not None
    assert adopted.pid == process.pid


async def test_kill_leaves_nothing_and_may_be_repeated(bench: Bench) -> None:
    process = await bench.machine.start(bench.launch(bench.running))
    await bench.machine.kill("web")
    await bench.machine.kill("web")
    if bench.machine.facts().mode != "memory":
        assert not processes.alive(process.pid)
    assert await bench.machine.adopt("web") is None


async def test_the_next_agent_adopts_the_same_process(bench: Bench) -> None:
    process = await bench.machine.start(bench.launch(bench.running))
    bench.machine.remember("web", Memory("part-1"))
    if isinstance(bench.machine, HostMachine):
        await bench.machine.close()
    after = bench.again()
    assert after.known() == ("web",)
    adopted = await after.adopt("web")
    assert adopted is not None
    assert (adopted.pid, adopted.part, adopted.release) == (process.pid, "part-1", "release-1")
    await after.signal(adopted, "SIGKILL")
    async with asyncio.timeout(10):
        assert (await after.ended(adopted)).code == 128 + 9


async def test_a_program_that_is_not_there_needs_a_person(bench: Bench) -> None:
    with pytest.raises(NeedsPerson, match="web"):
        await bench.machine.start(bench.launch(("no-such-program",)))


async def test_memory_survives_the_agent_and_forget_drops_it(bench: Bench) -> None:
    memory = Memory("p", History((1.0,), 2, 3), Exit(0))
    bench.machine.remember("web", memory)
    assert bench.again().recall("web") == memory
    await bench.machine.forget("web")
    assert bench.machine.recall("web") is None
    assert bench.machine.known() == ()


async def test_two_apps_do_not_touch_each_other(bench: Bench) -> None:
    web = await bench.machine.start(bench.launch(bench.running))
    other = await bench.machine.start(bench.launch(bench.running, "other"))
    await bench.machine.kill("web")
    assert web.pid != other.pid
    bench.machine.remember("other", Memory("part-1"))
    adopted = await bench.again().adopt("other")
    assert adopted is not None
    assert adopted.pid == other.pid


async def test_a_probe_command_is_answered_and_never_raises(bench: Bench) -> None:
    launch = bench.launch(bench.running)
    good = await bench.machine.ask(launch, ExecProbe(("true",)), 5.0)
    assert good.good
    if not isinstance(bench.machine, MemoryMachine):
        bad = await bench.machine.ask(launch, ExecProbe(("sh", "-c", "echo no; exit 4")), 5.0)
        assert not bad.good
        assert "exit code 4: no" in bad.said
        late = await bench.machine.ask(launch, ExecProbe(("sleep", "100")), 0.05)
        assert "longer than" in late.said
        absent = await bench.machine.ask(launch, ExecProbe(("no-such-program",)), 5.0)
        assert not absent.good
