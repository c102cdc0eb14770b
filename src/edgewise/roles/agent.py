"""The agent: everything that lives on a node, put together.

Resident: standard library, msgspec and sqlite3-free files only; cryptography lives in the
worker. Ending the agent leaves every app running, unless ``stop_apps`` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from edgewise import __version__
from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.files.scrubbing import PIECE, scrub
from edgewise.heal.on_agent import Supervisor, supervising
from edgewise.host import processes
from edgewise.host.body import NodeBody, Organs
from edgewise.host.cgroups import Cgroups
from edgewise.host.files import ConfigFiles, Place
from edgewise.host.link import is_metered
from edgewise.host.machine import HostMachine, RunRecord
from edgewise.host.memory import NodeFile
from edgewise.host.notify import tell_parent
from edgewise.host.secrets import SecretFiles
from edgewise.host.worker import WorkerProcess
from edgewise.identity import card as cards
from edgewise.identity.card import Card
from edgewise.model.errors import BadUsage, EdgewiseError, NeedsPerson, TryLater, behind
from edgewise.model.names import Platform
from edgewise.net.tls import small_tls_buffers
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.installed import Installed
from edgewise.protocol.join import Token
from edgewise.protocol.media import ORDER
from edgewise.protocol.sync import SyncReply
from edgewise.protocol.tasks import JoinTask
from edgewise.roles.agent_egress import NodeEgress
from edgewise.roles.agent_ingress import NodeIngress
from edgewise.roles.agent_workloads import NodeWorkloads, socket_of
from edgewise.roles.node_certificate import CertificateKeeper, Upstream, happens, read_card
from edgewise.rollout.node import phase_of, target_release
from edgewise.rollout.on_agent import About, NodeRollout, Parts
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance, SystemChance
from edgewise.runtime.clock import Clock, SystemClock
from edgewise.runtime.credentials import CredentialFiles, keys_at_rest, write_private
from edgewise.runtime.hidden import hidden
from edgewise.runtime.log import Level, Log, StreamLog

LOG_LOOK: Final = timedelta(seconds=60)
"""How often logs are measured."""
SCRUB_PAUSE: Final = timedelta(seconds=25)
"""Between pieces: 860 MiB a day, an operating system once a day, 0.02 % of a slow core."""
SCRUB_ROUND: Final = timedelta(days=1)
"""A smaller store is not read more often than that."""
_ORDER_BYTES: Final = 2 * limits.SYNC_REPLY
"""An order and its metadata, in base64."""
ATTEST_SPREAD: Final = timedelta(seconds=10)
"""Over which a site that comes back from a power cut spreads its first quotes."""


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """How one agent runs."""

    state: Path
    """The node's state directory."""
    root: Path = Path("/")
    """Prefix for the absolute paths of configs and secrets: many agents on one machine."""
    ready: Path | None = None
    """Written, with the pid, once the agent supervises and listens."""
    stop_apps: bool = False
    """Stop the apps when the agent is stopped. They go on by default."""
    cgroup: Path | None = None
    """Directory for the apps' cgroups; found by itself when None."""
    sessions: bool = False
    """Do without cgroups although there are some."""
    token: str = ""
    """Join with it when this machine has no identity yet."""
    name: str = ""
    """The node's name when it joins; the host name by default. A machine that joins by its
    proof alone is named by the fleet repo."""
    tpm: str = ""
    """Join with the enrolment key in this TPM (``/dev/tpmrm0``), and its proof."""
    factory_cert: Path | None = None
    """Join with this factory certificate ..."""
    factory_key: Path | None = None
    """... and its key."""
    workload_socket: Path | None = None
    """Where the Workload API listens; below the state directory by default."""
    json_log: bool = False


def run(settings: AgentSettings) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code of model.errors."""
    clock = SystemClock()
    log = StreamLog(clock, "agent", as_json=settings.json_log)
    try:
        asyncio.run(_Agent(settings, clock, SystemChance(), log).serve())
    except EdgewiseError as error:
        return _ended(error, log)
    except BaseExceptionGroup as group:
        if (found := behind(group)) is None:
            raise
        return _ended(found, log)
    return 0


async def keep_content(state: Path, clock: Clock, chance: Chance, log: Log) -> None:
    """Read all that is kept, slowly, once a day: what rotted is said, and comes anew with the
    next update. A round begins anywhere, so that all gets its turn although the agent often
    starts."""
    while True:
        began = clock.monotonic()
        await clock.sleep(SCRUB_PAUSE)
        paid = 0
        for step in scrub(state, int(256 * chance.fraction())):
            if step.damaged:
                log.event("kept content is damaged", "error", object=step.damaged)
            paid += step.bytes
            if paid >= PIECE:
                paid = 0
                await clock.sleep(SCRUB_PAUSE)
        await clock.sleep(SCRUB_ROUND - timedelta(seconds=clock.monotonic() - began))


def host_name() -> str:
    """What a node is called when nobody says otherwise."""
    return os.uname().nodename.split(".")[0].lower()


def _ended(error: EdgewiseError, log: Log) -> int:
    log.event("stopped", "error", problem=str(error), hint=error.hint)
    return error.exit_code


@dataclass(frozen=True, slots=True)
class _ForApps:
    """What the node does for its apps beside running them."""

    workloads: NodeWorkloads
    egress: NodeEgress
    ingress: NodeIngress

    def heard(self, installed: Installed | None) -> None:
        """Identities first: the gateway and the ingress ask for them."""
        self.workloads.heard(installed)
        self.egress.follow(installed)
        self.ingress.follow(installed)


class _Agent:
    def __init__(self, settings: AgentSettings, clock: Clock, chance: Chance, log: Log) -> None:
        self._settings = replace(settings, state=settings.state.resolve())
        self._clock = clock
        self._chance = chance
        self._log = log
        self._stop = asyncio.Event()
        self._media = asyncio.Event()

    async def serve(self) -> None:
        """The agent's whole life."""
        small_tls_buffers()
        state = self._settings.state
        state.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._media.set)
        worker = WorkerProcess(state)
        machine = self._machine()
        supervisor = Supervisor(machine, self._clock, self._chance, self._log)
        try:
            async with supervising(supervisor):
                for_apps = self._for_apps(machine, worker)
                body = self._body(supervisor, machine, worker, for_apps)
                await self._live(body, supervisor, machine, worker, for_apps)
                if self._settings.stop_apps:
                    await supervisor.stop_all()
        finally:
            worker.close()
            await machine.close()
        self._log.event("stopped", apps_stopped=self._settings.stop_apps)

    def _machine(self) -> HostMachine:
        state, settings = self._settings.state, self._settings
        cgroups = None if settings.sessions else Cgroups.find(state, settings.cgroup)
        machine = HostMachine(state, self._clock, cgroups)
        try:
            machine.listen()
        except OSError as error:
            raise NeedsPerson(
                f"another agent runs on {state}", hint="stop it first, or give --state"
            ) from error
        facts = machine.facts()
        self._log.event("machine", mode=facts.mode, limits=list(facts.limits))
        return machine

    def _for_apps(self, machine: HostMachine, worker: WorkerProcess) -> _ForApps:
        state = self._settings.state
        socket = socket_of(state, self._settings.workload_socket)
        outside = (self._clock, self._chance, self._log)
        workloads = NodeWorkloads(state, socket, machine.app_of, worker, outside)
        egress = NodeEgress(
            state,
            workloads.svids,
            lambda: workloads.facts,
            self._clock,
            self._log,
            cgroups=machine.cgroups,
        )
        machine.more_environment = lambda app: {
            **workloads.environment(app),
            **egress.environment(app),
        }
        machine.keep_cgroups = lambda: egress.held
        ingress = NodeIngress(
            state, workloads.svids, lambda: workloads.trust_domain, self._clock, self._log
        )
        return _ForApps(workloads, egress, ingress)

    def _body(
        self,
        supervisor: Supervisor,
        machine: HostMachine,
        worker: WorkerProcess,
        for_apps: _ForApps,
    ) -> NodeBody:
        state, root = self._settings.state, self._settings.root
        root.mkdir(parents=True, exist_ok=True)
        place = Place(root)
        return NodeBody(
            Organs(
                supervisor=supervisor,
                machine=machine,
                configs=ConfigFiles(state, place),
                secrets=SecretFiles(state, place),
                open_sealed=worker.open_sealed,
                releases=state / "releases",
                log=self._log,
                heard=for_apps.heard,
                worried=for_apps.workloads.problem,
            )
        )

    async def _live(
        self,
        body: NodeBody,
        supervisor: Supervisor,
        machine: HostMachine,
        worker: WorkerProcess,
        for_apps: _ForApps,
    ) -> None:
        await self._join(worker)
        upstream = Upstream(self._settings.state, self._clock, worker)
        workloads = for_apps.workloads
        workloads.joined(upstream.card.id.trust_domain, lambda: upstream.client)
        about = About(
            name=upstream.card.name,
            platform=str(Platform.of_machine(os.uname().sysname, os.uname().machine)),
            version=__version__,
            boot_id=machine.facts().boot_id,
            zone=_zone(),
            mode=machine.facts().mode,
        )
        rollout = NodeRollout(
            about,
            Parts(
                line=upstream,
                crypto=worker,
                releases=NodeStore(self._settings.state),
                body=body,
                memory=NodeFile(self._settings.state),
                clock=self._clock,
                chance=self._chance,
                log=self._log,
            ),
        )
        supervisor.on_change = workloads.svids.on_change = rollout.changed
        rollout.recorded = workloads.recorded
        workloads.recorded(rollout.record)
        upstream.on_trust = workloads.svids.trusting
        rollout.trusting, rollout.issuer = upstream.retrusted, upstream.card.root

        def renewed() -> None:
            rollout.issuer = upstream.card.root
            workloads.joined(upstream.card.id.trust_domain, lambda: upstream.client)
            rollout.changed()

        def opened(problem: str) -> None:
            rollout.keys = keys_at_rest(self._settings.state / "identity")
            rollout.changed()
            if problem:
                self._log.event("keys are not sealed", "warning", problem=problem)

        opened("")
        upstream.on_opened, upstream.on_locked = opened, self._locked
        keeper = CertificateKeeper(upstream, worker, self._clock, self._chance, self._log, renewed)
        parts = [
            rollout.run(),
            self._keep_files(rollout),
            self._keep_logs(machine),
            keep_content(self._settings.state, self._clock, self._chance, self._log),
            keeper.run(),
            self._keep_attested(worker),
            workloads.run(),
            self._watchdog(),
            self._hear_media(rollout),
            for_apps.egress.run(),
            for_apps.ingress.run(),
        ]
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(part) for part in parts]
            self._is_ready(upstream.card)
            await self._stop.wait()
            for task in running:
                task.cancel()
        (self._settings.state / "ready.json").unlink(missing_ok=True)
        await upstream.close()

    def _locked(self, error: EdgewiseError) -> None:
        """Apps and release go on; without its key the node can only not speak to its hub."""
        self._log.event("own key is locked", "error", problem=str(error), hint=error.hint)

    def _is_ready(self, card: Card) -> None:
        # What was made until now lives as long as the agent: never look at it again.
        gc.collect()
        gc.freeze()
        if self._settings.ready is not None:
            self._settings.ready.write_text(str(os.getpid()))
        # As hub and relay do: whoever started this agent waits for the file.
        said = {"url": "", "pid": os.getpid(), "spiffe_id": card.spiffe_id}
        write_private(self._settings.state / "ready.json", msgspec.json.encode(said), mode=0o644)
        tell_parent("READY=1")
        self._log.event("ready", pid=os.getpid())

    async def _join(self, worker: WorkerProcess) -> None:
        if CredentialFiles(self._settings.state / "identity").exist or not self._settings.token:
            return
        backoff = Backoff(self._chance)
        task = self._join_task()
        while not self._stop.is_set():
            try:
                await worker.join(task)
            except TryLater as error:
                self._log.event("join waits", "warning", problem=str(error))
                await self._clock.sleep(backoff.next())
            else:
                self._log.event("joined", id=read_card(self._settings.state).spiffe_id)
                return

    def _join_task(self) -> JoinTask:
        settings = self._settings
        factory = None
        if settings.factory_cert is not None and settings.factory_key is not None:
            factory = str(settings.factory_cert), str(settings.factory_key)
        # A token in the text decides who may join, and asks for a name; without one, the
        # fleet repo knows this machine and names it.
        alone = not Token.parse(settings.token).identifier
        name = settings.name or ("" if alone else host_name())
        return JoinTask(settings.token, name, settings.tpm, factory)

    # What is done again and again

    async def _keep_files(self, rollout: NodeRollout) -> None:
        while True:
            rollout.moved.clear()
            if await happens((rollout.moved,), rollout.drift_interval(), self._clock):
                continue  # another release runs, with an interval of its own
            await rollout.converge()

    async def _keep_logs(self, machine: HostMachine) -> None:
        while True:
            await self._clock.sleep(LOG_LOOK)
            machine.trim_logs()

    async def _keep_attested(self, worker: WorkerProcess) -> None:
        """Say what was booted: after every start, and as often as the hub asks."""
        if not (self._settings.state / "identity" / cards.TPM_FILE).exists():
            return
        backoff = Backoff(self._chance, first=timedelta(seconds=5), cap=timedelta(minutes=10))
        await self._clock.sleep(ATTEST_SPREAD * self._chance.fraction())
        while True:
            try:
                reply = await worker.attest()
            except EdgewiseError as error:
                self._log.event("not attested", "warning", problem=str(error), hint=error.hint)
                await self._clock.sleep(backoff.next())
                continue
            backoff.reset()
            level: Level = "info" if reply.outcome == "Trusted" else "error"
            self._log.event("attested", level, outcome=reply.outcome, because=reply.what)
            # A hub that names no sensible time must not make us busy, or silent for ever.
            await self._clock.sleep(timedelta(seconds=min(max(reply.next_s, 5.0), 30 * 86400.0)))

    async def _hear_media(self, rollout: NodeRollout) -> None:
        """Take the order that `edgewise bundle import` left: now, and after each SIGHUP."""
        file = self._settings.state / ORDER
        while True:
            self._media.clear()
            try:
                order = decode(file.read_bytes(), SyncReply, what=file.name, at_most=_ORDER_BYTES)
                await rollout.offered(order)
            except FileNotFoundError:
                pass
            except TryLater as error:
                self._log.event("media wait", "warning", problem=str(error), hint=error.hint)
            except EdgewiseError as error:
                self._log.event("media refused", "error", problem=str(error), hint=error.hint)
                file.unlink(missing_ok=True)
            else:
                self._log.event("media taken")
                file.unlink(missing_ok=True)
            await self._media.wait()

    async def _watchdog(self) -> None:
        """Tell the service manager that the loop turns (sd_watchdog_enabled(3))."""
        period = int(os.environ.get("WATCHDOG_USEC", "0")) / 2e6
        while period > 0:
            tell_parent("WATCHDOG=1")
            await self._clock.sleep(timedelta(seconds=period))


def _zone() -> str:
    """The node's own time zone, as /etc/localtime or TZ name it; UTC when they do not."""
    named = os.environ.get("TZ", "").lstrip(":")
    if named and not named.startswith("/"):
        return named
    target = os.path.realpath("/etc/localtime")
    _, found, zone = target.partition("/zoneinfo/")
    return zone if found else "UTC"


def local_status(state: Path) -> dict[str, Any]:
    """What this node is and does, from its own files: works without hub, network or agent."""
    state = state.resolve()
    kept = NodeFile(state).load()
    status: dict[str, Any] = {"state": str(state), "apps": []}
    try:
        card = read_card(state)
        status |= {"id": card.spiffe_id, "urls": list(card.urls)}
        status["certificate_until"] = card.not_after.isoformat()
        status["keys"] = keys_at_rest(state / "identity")
    except NeedsPerson as error:
        status["problem"] = str(error)
    if kept is not None:
        phase, reason = phase_of(kept.node)
        status |= {
            "running": kept.node.running,
            "previous": kept.node.previous,
            "target": target_release(kept.node),
            "phase": phase,
            "reason": reason,
            "fleet": kept.record.fleet if kept.record else "",
            "channel": kept.channel.sequence if kept.channel else 0,
            "receipts_owed": len(kept.node.owed),
            "failed": [msgspec.to_builtins(f) for f in kept.node.failed],
            "metered": is_metered(state),
        }
        if (state / "releases").is_dir():
            with contextlib.suppress(NeedsPerson):
                active = NodeStore(state).active()
                status["traffic"] = msgspec.to_builtins(active.traffic) if active else {}
    if not (state / "apps").is_dir():
        return status
    machine = HostMachine(state, SystemClock(), None)
    for name in machine.known():
        memory = machine.recall(name)
        status["apps"].append(
            {
                "name": name,
                "pid": _pid_of(state, name),
                "restarts": memory.history.restarts if memory else 0,
                "log": str(state / "apps" / name / "log" / "app.log"),
            }
        )
    return status


def _pid_of(state: Path, name: str) -> int:
    try:
        data = (state / "apps" / name / "run.json").read_bytes()
        record = msgspec.json.decode(data, type=RunRecord)
    except (OSError, msgspec.DecodeError):
        return 0
    same = processes.start_ticks(record.launcher) == record.launcher_start
    return record.pid if same and record.boot_id == processes.boot_id() else 0


_PATHS: Final = (
    "state",
    "root",
    "ready",
    "cgroup",
    "factory_cert",
    "factory_key",
    "workload_socket",
)
_WORDS: Final = ("token", "name", "tpm")
_FLAGS: Final = ("sessions", "stop_apps", "json_log")


def settings_of(arguments: list[str]) -> AgentSettings:
    """``--state DIR`` and so on; see AgentSettings. Raises BadUsage.

    By hand, because argparse would stay in the agent's memory (0.6 MB).
    """
    found: dict[str, Any] = {"state": Path("/var/lib/edgewise")}
    waiting = list(reversed(arguments))
    while waiting:
        option, equals, value = waiting.pop().partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in (*_PATHS, *_WORDS, *_FLAGS):
            known = ", ".join(f"--{n.replace('_', '-')}" for n in (*_PATHS, *_WORDS, *_FLAGS))
            raise BadUsage(f"the agent does not know {option!r}", hint=f"it knows {known}")
        if name in _FLAGS:
            found[name] = True
            continue
        if not equals and not waiting:
            raise BadUsage(f"{option} needs a value")
        value = value if equals else waiting.pop()
        found[name] = Path(value) if name in _PATHS else value
    found["token"] = hidden(found.get("token", ""))
    return AgentSettings(**found)


def main(arguments: list[str]) -> int:
    """``python -m edgewise.roles.agent``: the agent without the operator's CLI."""
    try:
        settings = settings_of(arguments)
    except BadUsage as error:
        print(f"{error}; {error.hint}", file=sys.stderr)
        return error.exit_code
    return run(settings)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
