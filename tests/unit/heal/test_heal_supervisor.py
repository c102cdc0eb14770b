"""The supervisor on virtual time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from edgewise.heal.on_agent import Supervisor, supervising, worst
from edgewise.heal.ports import Beat, Launch, Process
from edgewise.protocol.content import Dependency, Probe, Probes, ProcessApp, TcpProbe
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.machine import MemoryMachine

CHECK = TcpProbe(port=1)


def launch(
    name: str = "web",
    part: str = "p1",
    command: tuple[str, ...] = ("run",),
    **fields: object,
) -> Launch:
    app = ProcessApp(name=name, trees={}, command=command, **fields)  # type: ignore[arg-type]
    return Launch(app, part, "r1", f"/apps/{name}")


class Here:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.machine = MemoryMachine(self.clock)
        self.log = ListLog()

    def supervisor(self) -> Supervisor:
        return Supervisor(self.machine, self.clock, SeededChance(), self.log)

    async def run(self, seconds: float) -> None:
        await self.clock.run_for(timedelta())  # lets what was just begun reach its sleep
        await self.clock.run_for(timedelta(seconds=seconds))

    def health(self, supervisor: Supervisor, name: str = "web") -> str:
        return {s.name: s.health for s in supervisor.statuses()}[name]


async def test_an_app_without_probes_is_healthy_once_it_runs() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(),))
        await here.run(1)
        assert here.health(supervisor) == "Healthy"
        assert supervisor.statuses()[0].pid == here.machine.pid("web")


async def test_an_app_whose_part_did_not_change_is_not_restarted() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch("a"), launch("b")))
        await here.run(1)
        pid = here.machine.pid("a")
        await supervisor.want((launch("a"), launch("b", part="p2")))
        await here.run(1)
        assert here.machine.pid("a") == pid
        assert here.machine.started == [("a", "p1"), ("b", "p1"), ("b", "p2")]


async def test_an_app_that_is_not_wanted_any_more_is_stopped_and_forgotten() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(),))
        await here.run(1)
        await supervisor.want(())
        assert here.machine.signals == [("web", "SIGTERM")]
        assert here.machine.known() == ()


async def test_an_app_that_ignores_its_stop_signal_is_killed_after_its_stop_timeout() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(command=("deaf",), stop_timeout_s=7.0),))
        await here.run(1)
        stopping = asyncio.ensure_future(supervisor.want(()))
        await here.run(6)
        assert not stopping.done()
        await here.run(2)
        await stopping
        assert here.machine.killed == ["web"]


async def test_a_crashing_app_is_restarted_with_growing_waits_and_never_given_up() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(command=("exit", "3")),))
        await here.run(60)
        early = len(here.machine.started)
        await here.run(600)
        late = len(here.machine.started) - early
        assert early >= 6
        assert 10 <= late <= 200
        status = supervisor.statuses()[0]
        assert status.health == "Degraded"
        assert "crash loop: exit code 3" in status.reason


async def test_failure_counters_are_saved_before_the_wait() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(command=("exit", "3")),))
        await here.run(0.01)
        memory = here.machine.recall("web")
        assert memory is not None
        assert memory.history.in_a_row == 1


async def test_a_full_disk_does_not_stop_a_crashed_app_from_being_restarted() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(),))
        await here.run(1)
        here.machine.disk_full = True
        here.machine.crash("web")
        await here.run(5)
        assert here.health(supervisor) == "Healthy"
        assert any(what == "not saved" for what, _ in here.log.lines)


async def test_an_agent_that_comes_back_adopts_the_apps_with_their_pids() -> None:
    here = Here()
    async with supervising(here.supervisor()) as first:
        await first.want((launch("a"), launch("b")))
        await here.run(1)
    pids = here.machine.pid("a"), here.machine.pid("b")
    async with supervising(here.supervisor()) as second:
        await second.want((launch("a"), launch("b")))
        await here.run(1)
        assert (here.machine.pid("a"), here.machine.pid("b")) == pids
        assert here.health(second, "a") == "Healthy"
        here.machine.crash("a")
        await here.run(5)
        assert here.machine.pid("a") not in (0, pids[0])


async def test_an_adopted_app_that_is_not_wanted_any_more_is_stopped() -> None:
    here = Here()
    async with supervising(here.supervisor()) as first:
        await first.want((launch("a"), launch("b")))
        await here.run(1)
    async with supervising(here.supervisor()) as second:
        await second.want((launch("b"),))
        await here.run(1)
        assert here.machine.pid("a") == 0
        assert here.machine.pid("b") != 0


async def test_liveness_that_fails_later_restarts_the_app() -> None:
    here = Here()
    probes = Probes(liveness=Probe(CHECK, period_s=10, failure_threshold=3))
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(probes=probes),))
        await here.run(100)
        assert len(here.machine.started) == 1
        here.machine.answers["web"] = False
        await here.run(35)
        assert len(here.machine.started) == 2
        here.machine.answers["web"] = True
        await here.run(30)
        assert here.health(supervisor) == "Healthy"


async def test_readiness_counts_for_health_and_restarts_nothing() -> None:
    here = Here()
    probes = Probes(readiness=Probe(CHECK, period_s=5, failure_threshold=2))
    async with supervising(here.supervisor()) as supervisor:
        here.machine.answers["web"] = False
        await supervisor.want((launch(probes=probes),))
        await here.run(30)
        assert here.health(supervisor) == "Progressing"
        here.machine.answers["web"] = True
        await here.run(6)
        assert here.health(supervisor) == "Healthy"
        here.machine.answers["web"] = False
        await here.run(12)
        assert here.health(supervisor) == "Degraded"
        assert len(here.machine.started) == 1


async def test_a_dependant_waits_until_what_it_needs_is_healthy() -> None:
    here = Here()
    probes = Probes(readiness=Probe(CHECK, period_s=5))
    here.machine.answers["db"] = False
    needs = (Dependency("db", "Healthy"),)
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch("app", depends_on=needs), launch("db", probes=probes)))
        await here.run(20)
        assert here.machine.started == [("db", "p1")]
        here.machine.answers["db"] = True
        await here.run(10)
        assert here.machine.started == [("db", "p1"), ("app", "p1")]


async def test_settle_waits_for_unbroken_health_of_min_ready() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(min_ready_s=10),))
        settling = asyncio.ensure_future(supervisor.settle(("web",)))
        await here.run(6)
        here.machine.crash("web")
        await here.run(6)
        assert not settling.done()
        await here.run(10)
        assert await settling == ""


async def test_settle_hears_of_health_that_comes_in_the_moment_it_begins_to_wait() -> None:
    here = Here()
    begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Slow(MemoryMachine):
        async def start(self, launch: Launch) -> Process:
            await begun
            return await super().start(launch)

    here.machine = Slow(here.clock)
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(min_ready_s=0.0),))
        await here.run(0)
        settling = asyncio.ensure_future(supervisor.settle(("web",)))
        begun.set_result(None)  # the app is up just after settle has looked
        await here.run(0.1)
        assert settling.done()
        assert await settling == ""


async def test_settle_names_the_app_that_loops() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(command=("exit", "7")),))
        settling = asyncio.ensure_future(supervisor.settle(("web",)))
        await here.run(10)
        assert "exit code 7" in await settling


async def test_settle_gives_up_on_an_app_that_never_becomes_healthy() -> None:
    here = Here()
    here.machine.answers["web"] = False
    probes = Probes(readiness=Probe(CHECK, period_s=5))
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(probes=probes, min_ready_s=5),))
        settling = asyncio.ensure_future(supervisor.settle(("web",)))
        await here.run(300)
        assert "not healthy within" in await settling


async def test_a_job_that_finished_well_is_left_so_even_by_the_next_agent() -> None:
    here = Here()
    job = launch("job", command=("exit", "0", "5"), restart="OnFailure")
    async with supervising(here.supervisor()) as first:
        await first.want((job,))
        await here.run(20)
        assert here.health(first, "job") == "Healthy"
        assert await first.settle(("job",)) == ""
    async with supervising(here.supervisor()) as second:
        await second.want((job,))
        await here.run(5)
        assert here.machine.started == [("job", "p1")]


async def test_an_app_that_cannot_be_started_is_tried_again() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(command=("nonsense",)),))
        await here.run(3)
        assert "cannot be started" in supervisor.statuses()[0].reason
        await supervisor.want((launch(part="p2"),))
        await here.run(1)
        assert here.health(supervisor) == "Healthy"


async def test_an_app_that_breaks_its_watchdog_promise_is_restarted() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        here.machine.beats["web"] = Beat(watchdog_s=20.0)
        await supervisor.want((launch(),))
        await here.run(25)
        assert len(here.machine.started) == 2
        assert any("WATCHDOG=1" in str(f.get("because")) for _, f in here.log.lines)


async def test_a_restart_that_was_asked_for_is_not_a_failure() -> None:
    here = Here()
    async with supervising(here.supervisor()) as supervisor:
        await supervisor.want((launch(),))
        await here.run(1)
        assert supervisor.restart("web", "its config changed")
        await here.run(1)
        assert len(here.machine.started) == 2
        assert supervisor.statuses()[0].restarts == 0
        assert not supervisor.restart("nobody", "x")


def test_the_node_is_as_healthy_as_its_worst_app() -> None:
    assert worst(()) == "Healthy"
