"""The supervisor: keeps the wanted apps running, and knows how each of them is.

One task for each app. What to stop and start is planned by ``order``, when to start again
is decided by ``restarts``, what answers mean by ``probes``; here it is only done. Cancelling
the supervisor never touches an app: the next agent adopts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from edgewise.heal import order, probes, restarts
from edgewise.heal.ports import Launch, Machine, Memory, Process
from edgewise.heal.restarts import Exit, History, RestartRules
from edgewise.model.errors import EdgewiseError
from edgewise.protocol.content import ProcessApp
from edgewise.protocol.report import AppStatus, Health
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

_WORST: tuple[Health, ...] = (
    "Missing",
    "Degraded",
    "Progressing",
    "Unknown",
    "Suspended",
    "Healthy",
)
_GRACE_S = 15.0
"""Added to what the probes allow before an app that is not healthy counts as failed."""


def worst(statuses: Iterable[AppStatus]) -> Health:
    """The node's health: that of its worst app; Healthy when it has none."""
    return min((s.health for s in statuses), key=_WORST.index, default="Healthy")


@dataclass
class _App:
    """One supervised app."""

    launch: Launch
    history: History = field(default_factory=History)
    process: Process | None = None
    watch: probes.Watch | None = None
    started: float = 0.0
    """Monotonic time at which its process began."""
    health: Health = "Progressing"
    reason: str = "starting"
    healthy_since: float | None = None
    done: Exit | None = None
    task: asyncio.Task[None] | None = None
    kick: asyncio.Event = field(default_factory=asyncio.Event)
    kick_why: str = ""

    @property
    def name(self) -> str:
        return self.launch.name


class Supervisor:
    """Make it with ``supervising``, which gives its tasks a parent."""

    def __init__(
        self,
        machine: Machine,
        clock: Clock,
        chance: Chance,
        log: Log,
        *,
        rules: RestartRules | None = None,
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._chance = chance
        self._log = log
        self._rules = rules or RestartRules()
        self._apps: dict[str, _App] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._turn = asyncio.Lock()
        self._news = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called when a status changed."""

    def work_under(self, tasks: asyncio.TaskGroup) -> None:
        """Where app tasks live from now on; their failure is the failure of the group."""
        self._tasks = tasks

    async def let_go(self) -> None:
        """Stop supervising. The apps go on."""
        self._tasks = None
        tasks = [app.task for app in self._apps.values() if app.task is not None]
        self._apps.clear()
        if tasks:
            await _cancel(*tasks)

    # What is wanted

    async def want(self, launches: tuple[Launch, ...]) -> frozenset[str]:
        """Stop what is not wanted, start what is; leave alone what did not change.

        Returns the names that it started; they come up on their own. Repeating it is
        harmless.
        """
        begun: set[str] = set()
        async with self._turn:
            wanted = {launch.name: launch for launch in launches}
            adopted = await self._adopt()
            running = {name: app.launch.part for name, app in self._apps.items()}
            running |= {name: process.part for name, process in adopted.items()}
            for step in order.plan(running, {n: (w.part, w.app) for n, w in wanted.items()}):
                match step:
                    case order.Stop(name, why):
                        self._log.decision("stop", app=name, because=why)
                        await self._stop(name, adopted.pop(name, None), forget=name not in wanted)
                    case order.Start(name, why):
                        self._log.decision("start", app=name, because=why)
                        self._supervise(_App(wanted[name]))
                        begun.add(name)
            for name, process in adopted.items():
                self._log.event("adopted", app=name, pid=process.pid)
                started = self._clock.monotonic() - process.ran_s
                self._supervise(_App(wanted[name], process=process, started=started))
            for name, launch in wanted.items():
                # Unchanged apps restart, if they must, from the release that is active now.
                self._apps[name].launch = launch
            self._tell()
        return frozenset(begun)

    async def _adopt(self) -> dict[str, Process]:
        """What an earlier agent left running."""
        found: dict[str, Process] = {}
        for name in self._machine.known():
            if name not in self._apps:
                process = await self._machine.adopt(name)
                if process is not None:
                    found[name] = process
        return found

    def _supervise(self, app: _App) -> None:
        if self._tasks is None:
            raise RuntimeError("the supervisor is used outside of `supervising`")
        memory = self._machine.recall(app.name)
        if memory is not None and memory.part == app.launch.part:
            app.history = memory.history
            app.done = memory.done if app.process is None else None
        self._apps[app.name] = app
        app.task = self._tasks.create_task(self._live(app), name=f"app {app.name}")

    async def _stop(self, name: str, process: Process | None, *, forget: bool) -> None:
        app = self._apps.pop(name, None)
        if app is None:
            if process is None:
                return
            app = _App(_left_over(process), process=process)
        if app.task is not None:
            await _cancel(app.task)
        await self._end(app)
        if forget:
            await self._machine.forget(name)

    async def stop_all(self) -> None:
        """Stop every app, dependants first. For ``--stop-apps`` and tests."""
        async with self._turn:
            names = order.start_order(a.launch.app for a in self._apps.values())
            for name in reversed(names):
                await self._stop(name, None, forget=False)

    # For configs, secrets and people

    def restart(self, name: str, why: str) -> bool:
        """Restart one app without counting it as a failure. False when there is no such app."""
        app = self._apps.get(name)
        if app is None:
            return False
        app.kick_why = why
        app.kick.set()
        return True

    async def signal(self, name: str, signal: str) -> bool:
        """Signal one app. False when it does not run."""
        app = self._apps.get(name)
        if app is None or app.process is None:
            return False
        await self._machine.signal(app.process, signal)
        return True

    # How they are

    def statuses(self) -> tuple[AppStatus, ...]:
        """All apps, by name."""
        return tuple(
            AppStatus(
                name=app.name,
                health=app.health,
                restarts=app.history.restarts,
                reason=app.reason[:500],
                pid=app.process.pid if app.process else 0,
            )
            for _, app in sorted(self._apps.items())
        )

    def releases_in_use(self) -> frozenset[str]:
        """Releases from whose directories processes still run: they must not be removed."""
        used = {app.process.release for app in self._apps.values() if app.process}
        return frozenset(used | {app.launch.release for app in self._apps.values()})

    async def settle(self, names: tuple[str, ...]) -> str:
        """Wait until each has been healthy, unbroken, for its ``min_ready_s``.

        Returns "" then, else why not: one of them loops, is done badly, or is not healthy
        in the time that its probes allow.
        """
        apps = [self._apps[name] for name in names if name in self._apps]
        allowed = _GRACE_S + sum(probes.patience_s(a.launch.app.probes) for a in apps)
        allowed += 3 * max((a.launch.app.min_ready_s for a in apps), default=0.0)
        deadline = self._clock.monotonic() + allowed
        while True:
            waits: list[float] = []
            now = self._clock.monotonic()
            for app in apps:
                if problem := self._problem(app):
                    return problem
                if app.done is None:
                    since = now if app.healthy_since is None else app.healthy_since
                    ready_at = since + app.launch.app.min_ready_s
                    if app.healthy_since is None or ready_at > now + 1e-6:
                        waits.append(deadline if app.healthy_since is None else ready_at)
            if not waits:
                return ""
            if now >= deadline:
                late = "; ".join(f"{a.name}: {a.health}, {a.reason}" for a in apps if a.reason)
                return f"not healthy within {allowed:.0f} s: {late or 'it keeps changing'}"
            await self._news_or(min(deadline, *waits) - now)

    def _problem(self, app: _App) -> str:
        if app.done is not None and restarts.failed(app.done):
            return f"app {app.name}: {app.done.says()}, and its restart policy leaves it so"
        if restarts.crash_looping(app.history, self._clock.now().timestamp(), self._rules):
            return (
                f"app {app.name} ended {len(app.history.failures)} times: {app.reason}; "
                f"see its log in apps/{app.name}/log"
            )
        return ""

    async def _news_or(self, seconds: float) -> None:
        """Until a status changed, or so many seconds went by."""
        timer = asyncio.ensure_future(self._clock.sleep(timedelta(seconds=seconds)))
        # The event of now: a task that asks for it later would miss what happens before.
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({timer, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(timer, news)

    async def _next_news(self) -> None:
        await self._news.wait()

    # One app

    async def _live(self, app: _App) -> None:
        while app.done is None:
            if app.process is None and not await self._begin(app):
                continue
            exit = await self._watch(app)
            ran_s = self._clock.monotonic() - app.started
            if app.kick.is_set():
                self._log.decision("restart", app=app.name, because=app.kick_why)
                app.kick.clear()
                continue
            await self._after(app, exit, ran_s)
        good = not restarts.failed(app.done)
        self._show(app, "Healthy" if good else "Degraded", f"finished: {app.done.says()}")

    async def _begin(self, app: _App) -> bool:
        """Start its process, after what it depends on. False: it failed, and was counted."""
        await self._dependencies(app)
        app.kick.clear()
        self._show(app, "Progressing", "starting")
        self._remember(app)
        try:
            app.process = await self._machine.start(app.launch)
        except EdgewiseError as error:
            await self._machine.kill(app.name)
            await self._after(app, Exit(why=f"cannot be started: {error}"), 0.0)
            return False
        app.started = self._clock.monotonic()
        self._log.event("started", app=app.name, pid=app.process.pid)
        return True

    async def _dependencies(self, app: _App) -> None:
        for needed in app.launch.app.depends_on:
            while (other := self._apps.get(needed.name)) is not None:
                finished = other.done is not None and not restarts.failed(other.done)
                up = other.process is not None
                if finished or (up and (needed.condition == "Started" or _healthy(other))):
                    break
                self._show(app, "Progressing", f"waits for {needed.name}")
                await self._next_news()

    async def _watch(self, app: _App) -> Exit:
        """Until its process ends, or has to be ended."""
        if app.process is None:
            raise RuntimeError(f"app {app.name} is watched without a process")
        app.watch = probes.begin(app.launch.app.probes)
        self._judge(app)
        ended = asyncio.ensure_future(self._machine.ended(app.process))
        complaint = asyncio.ensure_future(self._complaint(app))
        kicked = asyncio.ensure_future(app.kick.wait())
        try:
            await asyncio.wait({ended, complaint, kicked}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                exit = ended.result()
                await self._machine.kill(app.name)  # what it forked must not outlive it
            else:
                exit = Exit(why=complaint.result() if complaint.done() else app.kick_why)
                self._show(app, "Degraded", exit.why)
                await self._end(app)
        finally:
            await _cancel(ended, complaint, kicked)
        app.process = None
        return exit

    async def _after(self, app: _App, exit: Exit, ran_s: float) -> None:
        """Count an end, save the count, then wait before the next start."""
        now = self._clock.now().timestamp()
        app.history = restarts.after(app.history, exit, now=now, ran_s=ran_s, rules=self._rules)
        if not restarts.restarts_after(exit, app.launch.app.restart):
            app.done = exit
            self._remember(app)
            return
        self._remember(app)
        wait = restarts.wait_before(app.history, self._rules, self._chance.fraction())
        looping = restarts.crash_looping(app.history, now, self._rules)
        self._log.decision("restart", app=app.name, because=exit.says(), wait_s=round(wait, 2))
        text = f"{exit.says()}; starts again (restart {app.history.restarts})"
        self._show(app, "Degraded", ("crash loop: " if looping else "") + text)
        sleeping = asyncio.ensure_future(self._clock.sleep(timedelta(seconds=wait)))
        kicked = asyncio.ensure_future(app.kick.wait())
        try:
            await asyncio.wait({sleeping, kicked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(sleeping, kicked)

    async def _end(self, app: _App) -> None:
        """Ask its process to stop, wait as long as it may take, then kill the whole tree."""
        if app.process is not None:
            await self._machine.signal(app.process, app.launch.app.stop_signal)
            ended = asyncio.ensure_future(self._machine.ended(app.process))
            limit = timedelta(seconds=app.launch.app.stop_timeout_s)
            timer = asyncio.ensure_future(self._clock.sleep(limit))
            try:
                await asyncio.wait({ended, timer}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _cancel(ended, timer)
        await self._machine.kill(app.name)
        app.process = None

    async def _complaint(self, app: _App) -> str:
        """Ask the probes as they fall due; returns why the process must be ended."""
        rules = app.launch.app.probes
        due: dict[probes.Which, float] = {}
        while True:
            if app.watch is None:
                raise RuntimeError(f"app {app.name} is probed without a watch")
            now = self._clock.monotonic()
            asked = probes.active(rules, app.watch)
            for which in asked:
                rule = probes.probe(rules, which)
                due.setdefault(which, now + (rule.initial_delay_s if rule else 0.0))
            next_due = min((due[w] for w in asked), default=now + 3600.0)
            beat = self._machine.beat(app.name)
            if beat.watchdog_s:
                limit = max(beat.last, app.started) + beat.watchdog_s
                if now >= limit:
                    return f"watchdog: no WATCHDOG=1 for {beat.watchdog_s:g} s"
                next_due = min(next_due, limit)
            elif not asked:
                next_due = now + 60.0  # it may still opt in to the watchdog
            if next_due > now:
                await self._clock.sleep(timedelta(seconds=next_due - now))
                continue
            for which in asked:
                if due[which] <= now and (why := await self._ask(app, which)):
                    return why
                rule = probes.probe(rules, which)
                if due[which] <= now and rule is not None:
                    due[which] = now + rule.period_s

    async def _ask(self, app: _App, which: probes.Which) -> str:
        rule = probes.probe(app.launch.app.probes, which)
        if rule is None or app.watch is None:
            return ""
        answer = await self._machine.ask(app.launch, rule.check, rule.timeout_s)
        app.watch, verdict = probes.answered(
            app.launch.app.probes, app.watch, which, good=answer.good, said=answer.said
        )
        self._judge(app)
        return f"{which} probe failed: {answer.said}" if verdict == "restart" else ""

    # Showing and remembering

    def _judge(self, app: _App) -> None:
        """Health from what the probes said."""
        if app.watch is None:
            return
        complaint = app.watch.complaint
        if app.watch.ready:
            self._show(app, "Healthy", complaint)
        elif app.healthy_since is not None or app.health == "Degraded":
            self._show(app, "Degraded", complaint or "not ready again yet")
        else:
            self._show(app, "Progressing", complaint or "waits for its probes")

    def _show(self, app: _App, health: Health, reason: str) -> None:
        if health != "Healthy":
            app.healthy_since = None
        elif app.healthy_since is None:
            app.healthy_since = self._clock.monotonic()
        if (health, reason) != (app.health, app.reason):
            app.health, app.reason = health, reason
            self._tell()

    def _tell(self) -> None:
        self.on_change()
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _remember(self, app: _App) -> None:
        """Save the counters. A full disk must not stop the app from being restarted."""
        try:
            self._machine.remember(app.name, Memory(app.launch.part, app.history, app.done))
        except EdgewiseError as error:
            self._log.event("not saved", "error", app=app.name, problem=str(error))


def _healthy(app: _App) -> bool:
    return app.health == "Healthy"


def _left_over(process: Process) -> Launch:
    """For an adopted process that nobody wants: it is stopped by the default rules."""
    app = ProcessApp(name=process.name, trees={}, command=())
    return Launch(app, process.part, process.release, "")


async def _cancel(*waits: asyncio.Future[Any]) -> None:
    """Cancel, and wait until that is done. What they raise is read by who awaits results."""
    for waiting in waits:
        waiting.cancel()
    await asyncio.wait(waits)


@asynccontextmanager
async def supervising(supervisor: Supervisor) -> AsyncIterator[Supervisor]:
    """Give the supervisor's tasks a parent; leaving cancels them and leaves apps running."""
    async with asyncio.TaskGroup() as tasks:
        supervisor.work_under(tasks)
        try:
            yield supervisor
        finally:
            await supervisor.let_go()
