"""The machine under the supervisor: apps in a cgroup each, or in a session each.

A small /bin/sh joins the cgroup before the app exists, then becomes the app, so no fork can
escape the cgroup. Where the exit status decides something (``restart: OnFailure`` and
``Never``), the shell stays as the app's parent and writes the status to a file, so that an
agent that was away when the app ended still learns it. It then costs 0.15 MB of its own
memory (1.7 MB resident, nearly all of it libc's shared pages); an app that is restarted
whatever its status is spared that.

Logs are files that the app holds open itself: they never depend on the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pwd
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgewise.heal.ports import Answer, Beat, Facts, Launch, Machine, Memory, Process
from edgewise.heal.restarts import Exit
from edgewise.host import probing, processes
from edgewise.host.cgroups import Cgroups
from edgewise.host.notify import NotifySocket
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import ExecProbe, HttpProbe, TcpProbe
from edgewise.runtime.clock import Clock
from edgewise.runtime.durable import disk_error, remove_tree, write_durably

LOG_BYTES: Final = 1 << 20
"""Bytes of an app's log at which it is set aside as ``app.log.1`` and begun anew. With what
an app writes between two looks, an app's logs stay below twice this and one look's writing."""
KILL_S: Final = 10.0
"""After SIGKILL; what is left then hangs in the kernel."""

_JOIN: Final = """\
[ "$1" = - ] || echo 0 >"$1" || exit 125
echo 0 >/proc/self/oom_score_adj 2>/dev/null
shift
"""
_BECOME: Final = _JOIN + 'exec "$@"'
_STAY: Final = _JOIN + 'ended=$1; shift; "$@"; echo $? >"$ended"'
"""Arguments: cgroup.procs or ``-``, for _STAY the exit file, then the command."""
_INNER: Final = 'echo $$ >&0; exec "$@" </dev/null'
"""The app's pid goes up through standard input, which is a pipe; it gets /dev/null."""


class RunRecord(msgspec.Struct, frozen=True):
    """What is needed to recognise a running app again."""

    boot_id: str
    launcher: int
    launcher_start: int
    pid: int
    part: str
    release: str


@dataclass(slots=True)
class _Held:
    """A running app that this agent watches."""

    process: Process
    pidfd: int
    launcher: int
    child: subprocess.Popen[bytes] | None
    over: asyncio.Task[Exit]


class HostMachine:
    """``state`` is the node's state directory; apps keep theirs below ``state/apps``."""

    def __init__(self, state: Path, clock: Clock, cgroups: Cgroups | None) -> None:
        self._apps = state / "apps"
        self._apps.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        self._cgroups = cgroups
        self._boot = processes.boot_id()
        self._held: dict[str, _Held] = {}
        self._marker = f"EDGEWISE_NODE={hashlib.sha256(bytes(state.resolve())).hexdigest()[:16]}"
        self.notify = NotifySocket(state, self._app_of)
        self.more_environment: Callable[[str], dict[str, str]] = lambda app: {}
        """What an app is told beyond its own ``env``, which wins."""
        self.keep_cgroups: Callable[[], frozenset[str]] = frozenset
        """Apps whose cgroup stays while they are stopped, because rules speak of it."""

    @property
    def cgroups(self) -> Cgroups | None:
        """Where the apps' cgroups are; None where they are held by sessions."""
        return self._cgroups

    def facts(self) -> Facts:
        limits = tuple(n for n in (self._cgroups.limits if self._cgroups else ()) if n != "pids")
        return Facts("cgroup" if self._cgroups else "session", self._boot, limits)

    def listen(self) -> None:
        """Hear sd_notify. Raises OSError when another agent serves this state directory."""
        bound = self.notify.open()
        asyncio.get_running_loop().add_reader(
            bound, lambda: self.notify.receive(self._clock.monotonic())
        )

    async def close(self) -> None:
        """Let go of every app; they go on."""
        held, self._held = list(self._held.values()), {}
        for app in held:
            app.over.cancel()
        if held:
            await asyncio.wait([app.over for app in held])
        if self.notify._socket is not None:
            asyncio.get_running_loop().remove_reader(self.notify._socket)
        self.notify.close()
        if self._cgroups is not None:
            self._cgroups.dissolve()

    # Starting and finding again

    async def start(self, launch: Launch) -> Process:
        folder = self._folder(launch.name)
        command = self._command(launch, launch.app.command)
        procs = self._join(launch)
        ended = folder / "exit"
        ended.unlink(missing_ok=True)
        self.notify.beats.pop(launch.name, None)
        inner = ("/bin/sh", "-c", _INNER, launch.name, *command)
        stays = launch.app.restart != "Always"
        argv: tuple[str, ...] = ("/bin/sh", "-c", _BECOME, launch.name, procs)
        if stays:
            argv = ("/bin/sh", "-c", _STAY, launch.name, procs, str(ended))
        up, down = os.pipe2(os.O_CLOEXEC)
        try:
            with (folder / "log" / "app.log").open("ab") as log:
                child = subprocess.Popen(  # noqa: ASYNC220 - takes 1 ms; see processes.run
                    (*argv, *self._as_user(launch), *inner),
                    stdin=down,
                    stdout=log,
                    stderr=log,
                    cwd=launch.directory or None,
                    env=self._environment(launch),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(up)
            raise NeedsPerson(f"app {launch.name} cannot be started: {error}") from error
        finally:
            os.close(down)
        pid = await _first_line(up)
        if not pid.isdecimal():
            child.wait()
            raise NeedsPerson(
                f"app {launch.name} could not be started: {self.log_tail(launch.name)}",
                hint=f"read {folder}/log/app.log",
            )
        process = Process(launch.name, int(pid), launch.part, launch.release)
        record = RunRecord(
            boot_id=self._boot,
            launcher=child.pid,
            launcher_start=processes.start_ticks(child.pid) or 0,
            pid=process.pid,
            part=launch.part,
            release=launch.release,
        )
        self._hold(process, child.pid, child)
        with contextlib.suppress(OSError):  # full disk: the app runs, a later agent restarts it
            write_durably(folder / "run.json", msgspec.json.encode(record))
        return process

    async def adopt(self, name: str) -> Process | None:
        record = self._record(name)
        if record is not None and self._is_ours(name, record):
            ran_s = processes.age_s(record.launcher)
            process = Process(name, record.pid, record.part, record.release, ran_s)
            self._hold(process, record.launcher, None)
            return process
        await self.kill(name)
        (self._apps / name / "run.json").unlink(missing_ok=True)
        return None

    def _record(self, name: str) -> RunRecord | None:
        try:
            data = (self._apps / name / "run.json").read_bytes()
            return msgspec.json.decode(data, type=RunRecord)
        except (OSError, msgspec.DecodeError):
            return None

    def _is_ours(self, name: str, record: RunRecord) -> bool:
        if record.boot_id != self._boot or not processes.alive(record.launcher):
            return False
        if processes.start_ticks(record.launcher) != record.launcher_start:
            return False
        if self._cgroups is not None:
            return self._cgroups.holds(name, record.launcher)
        return self._is_marked(record.launcher, name)

    def _hold(self, process: Process, launcher: int, child: subprocess.Popen[bytes] | None) -> None:
        pidfd = os.pidfd_open(launcher)
        over = asyncio.ensure_future(self._over(process.name, launcher, pidfd, child))
        self._held[process.name] = _Held(process, pidfd, launcher, child, over)

    async def _over(
        self, name: str, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None
    ) -> Exit:
        try:
            await processes.gone(pidfd)
            code = child.wait() if child is not None else processes.exit_code(pid, pidfd)
        finally:
            os.close(pidfd)
        try:
            return Exit(int((self._apps / name / "exit").read_text()))
        except FileNotFoundError:
            # Nobody wrote it: the app was our own child, or somebody else's.
            return Exit(code if code is None or code >= 0 else 128 - code)
        except (OSError, ValueError):
            return Exit(None)

    async def ended(self, process: Process) -> Exit:
        held = self._held.get(process.name)
        if held is None or held.process.pid != process.pid:
            return Exit(None)
        return await asyncio.shield(held.over)

    async def signal(self, process: Process, signal: str) -> None:
        held = self._held.get(process.name)
        if held is None or held.process.pid != process.pid or held.over.done():
            return
        # The launcher waits for the app, so while it runs the pid cannot be another's.
        processes.send(process.pid, processes.signal_number(signal))

    async def kill(self, name: str) -> None:
        deadline = self._clock.monotonic() + KILL_S
        pause = 0.001
        seen: dict[int, int | None] = {}
        while left := self._kill_once(name, seen):
            if self._clock.monotonic() > deadline:
                raise NeedsPerson(
                    f"app {name} does not die: {left} processes hang in the kernel",
                    hint="a device or a network file system does not answer; reboot the node",
                )
            await asyncio.sleep(pause)
            pause = min(0.05, pause * 2)
        held = self._held.pop(name, None)
        if held is not None:
            await asyncio.wait([held.over])
        if self._cgroups is not None and name not in self.keep_cgroups():
            with contextlib.suppress(OSError):  # not empty again: a hook runs in it
                self._cgroups.remove(name)

    def _kill_once(self, name: str, seen: dict[int, int | None]) -> int:
        """Kill what is there; returns how many there were. ``seen``: those found before, with
        the tick they began in.

        A process that dies has no environment any more while it still closes its files and
        ports, so without cgroups those that were found once are waited for by number.
        """
        if self._cgroups is not None:
            if not self._cgroups.populated(name):
                return 0
            self._cgroups.kill(name)
            return max(1, len(self._cgroups.members(name)))
        members = self._session_members(name)
        for pid in members:
            processes.send(pid, signal.SIGKILL)
        dying = [pid for pid, began in seen.items() if processes.start_ticks(pid) == began]
        left = {*members, *(pid for pid in dying if processes.alive(pid))}
        seen.update((pid, processes.start_ticks(pid)) for pid in members)
        return len(left)

    def _session_members(self, name: str) -> tuple[int, ...]:
        """All that descends from the app: it has its marks in the environment.

        The environment, not the parent, because a process that forks twice loses its parent
        and the mark survives the agent. A program that empties its environment and leaves
        its session escapes: that is what cgroups are for, and why the mode is reported.
        """
        held = self._held.get(name)
        record = self._record(name)
        leaders = {held.launcher} if held else set()
        if record is not None and self._is_ours(name, record):
            leaders.add(record.launcher)
        return tuple(
            pid
            for pid in processes.pids()
            if processes.alive(pid)
            and (processes.session_of(pid) in leaders or self._is_marked(pid, name))
        )

    def _is_marked(self, pid: int, name: str) -> bool:
        return processes.environment_has(pid, self._marker.encode()) and processes.environment_has(
            pid, f"EDGEWISE_APP={name}".encode()
        )

    def _app_of(self, pid: int) -> str | None:
        """Which app a process belongs to."""
        if self._cgroups is not None:
            return self._cgroups.name_of(pid)
        return next((name for name in self.known() if self._is_marked(pid, name)), None)

    def app_of(self, pid: int) -> str | None:
        """Which app a process belongs to, by what it cannot choose: its cgroup or its session.

        Unlike the marks in its environment, by which an app's strays are found and killed: any
        process could claim those. One that has left the app's session is nobody's.
        """
        if self._cgroups is not None:
            return self._cgroups.name_of(pid)
        session = processes.session_of(pid)
        held = list(self._held.items())  # at once: the egress gateway asks from its own thread
        found = (n for n, one in held if one.launcher == session)
        name = next(found, None)
        return name if name is not None and not dict(held)[name].over.done() else None

    # What a command needs

    def _folder(self, name: str) -> Path:
        folder = self._apps / name
        try:
            for part in ("log", "data"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, folder) from error
        return folder

    def _join(self, launch: Launch) -> str:
        if self._cgroups is None:
            return "-"
        app = launch.app
        return str(self._cgroups.make(app.name, app.memory_bytes, app.cpu_milli) / "cgroup.procs")

    def _command(self, launch: Launch, command: tuple[str, ...]) -> tuple[str, ...]:
        if not command:
            raise NeedsPerson(f"app {launch.name} has no command")
        first = command[0]
        path = os.path.join(launch.directory, first) if "/" in first else _on_path(first)
        if path is None or not os.access(path, os.X_OK) or not os.path.isfile(path):
            raise NeedsPerson(
                f"app {launch.name}: there is no program {first!r} that can be run",
                hint="a word with a / is looked up in the app's tree, else on PATH",
            )
        return (path, *command[1:])

    def _as_user(self, launch: Launch) -> tuple[str, ...]:
        user = launch.app.user
        if not user:
            return ()
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise NeedsPerson(
                f"app {launch.name} runs as {user!r}, which is no user of this node",
                hint="create the user in the image, or leave `user` out",
            ) from None
        if os.geteuid() == entry.pw_uid:
            return ()
        if os.geteuid() != 0:
            raise NeedsPerson(
                f"app {launch.name} runs as {user!r}, and the agent is not root",
                hint="run the agent as root, or leave `user` out",
            )
        os.chown(self._apps / launch.name / "data", entry.pw_uid, entry.pw_gid)
        ids = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups")
        return ("setpriv", *ids, "--")

    def _environment(self, launch: Launch) -> dict[str, str]:
        ours = {
            "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "EDGEWISE_APP": launch.name,
            "EDGEWISE_DATA": str((self._apps / launch.name / "data").resolve()),
            "EDGEWISE_RELEASE": launch.release,
            "NOTIFY_SOCKET": self.notify.address,
        }
        key, _, value = self._marker.partition("=")
        more = self.more_environment(launch.name)
        return {**more, **launch.app.env, **ours, key: value}

    # Probes and hooks

    async def ask(
        self, launch: Launch, check: HttpProbe | TcpProbe | ExecProbe, timeout_s: float
    ) -> Answer:
        match check:
            case ExecProbe(command):
                return await self.run(launch, command, timeout_s)
            case HttpProbe():
                return await probing.http(check, timeout_s)
            case TcpProbe():
                return await probing.tcp(check, timeout_s)

    async def run(self, launch: Launch, command: tuple[str, ...], timeout_s: float) -> Answer:
        try:
            self._folder(launch.name)
            found = self._command(launch, command)
            argv = ("/bin/sh", "-c", _BECOME, launch.name, self._join(launch))
            async with asyncio.timeout(timeout_s):
                finished = await processes.run(
                    (*argv, *self._as_user(launch), *found),
                    env=self._environment(launch),
                    cwd=launch.directory or None,
                )
        except TimeoutError:
            return Answer(False, f"{command[0]} took longer than {timeout_s:g} s")
        except (OSError, NeedsPerson) as error:
            return Answer(False, str(error)[:300])
        if finished.code == 0:
            return Answer(True, finished.tail)
        return Answer(False, f"{command[0]}: exit code {finished.code}: {finished.tail}"[:300])

    def beat(self, name: str) -> Beat:
        return self.notify.beats.setdefault(name, Beat())

    # What is kept

    def recall(self, name: str) -> Memory | None:
        try:
            data = (self._apps / name / "memory.json").read_bytes()
            return msgspec.json.decode(data, type=Memory)
        except (OSError, msgspec.DecodeError):
            return None

    def remember(self, name: str, memory: Memory) -> None:
        folder = self._folder(name)
        try:
            write_durably(folder / "memory.json", msgspec.json.encode(memory))
        except OSError as error:
            raise disk_error(error, folder) from error

    def known(self) -> tuple[str, ...]:
        return tuple(
            sorted(
                p.name
                for p in self._apps.iterdir()
                if (p / "run.json").exists() or (p / "memory.json").exists()
            )
        )

    async def forget(self, name: str) -> None:
        folder = self._apps / name
        for kept in ("run.json", "memory.json", "exit"):
            (folder / kept).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            remove_tree(folder / "log")
        self.notify.beats.pop(name, None)

    # Logs

    def log_tail(self, name: str, size: int = 400) -> str:
        """The end of what the app printed last."""
        try:
            with (self._apps / name / "log" / "app.log").open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - size))
                return file.read().decode(errors="replace").strip()
        except OSError:
            return ""

    def trim_logs(self) -> None:
        """Set aside every log that has grown over LOG_BYTES.

        The app holds the file open for appending, so the file is copied and then cut to
        nothing; lines that come between the two are lost. On a full disk it is only cut.
        """
        for path in self._apps.glob("*/log/app.log"):
            try:
                if path.stat().st_size <= LOG_BYTES:
                    continue
                with path.open("rb") as log, path.with_name("app.log.1").open("wb") as old:
                    log.seek(max(0, path.stat().st_size - LOG_BYTES))
                    while data := log.read(1 << 16):
                        old.write(data)
            except OSError:
                path.with_name("app.log.1").unlink(missing_ok=True)
            os.truncate(path, 0)


def _on_path(word: str) -> str | None:
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if os.access(path := os.path.join(folder, word), os.X_OK) and os.path.isfile(path):
            return path
    return None


async def _first_line(pipe: int) -> str:
    """What the launcher says first; empty when it ended without a word. Closes the pipe."""
    os.set_blocking(pipe, False)
    loop = asyncio.get_running_loop()
    said: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        if not said.done():
            said.set_result(os.read(pipe, 64))

    loop.add_reader(pipe, read)
    try:
        return (await said).decode().strip()
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)


def _meets_its_port(machine: HostMachine) -> Machine:
    return machine
