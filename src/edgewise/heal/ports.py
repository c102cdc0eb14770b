"""What the supervisor needs from the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from edgewise.heal.restarts import Exit, History
from edgewise.protocol.content import ExecProbe, HttpProbe, ProcessApp, TcpProbe

Mode = Literal["cgroup", "session", "memory"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What this machine is and can do; shown by ``edgewise agent status``."""

    mode: Mode
    """How an app's processes are told from others: a cgroup each, or a session each."""
    boot_id: str
    limits: tuple[str, ...] = ()
    """Which of ``memory`` and ``cpu`` limits are enforced here."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One app, ready to be started."""

    app: ProcessApp
    part: str
    """Digest of its part; remembered, so that another agent knows what it adopts."""
    release: str
    """Release whose directory it runs from."""
    directory: str
    """Absolute path of its tree: the working directory of its command."""

    @property
    def name(self) -> str:
        """The app's name, unique on the node."""
        return self.app.name


@dataclass(frozen=True, slots=True)
class Process:
    """A running app."""

    name: str
    pid: int
    part: str
    release: str
    ran_s: float = 0.0
    """How long it had been running when this value was made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe or a hook said."""

    good: bool
    said: str = ""
    """At most 300 characters."""


@dataclass(slots=True)
class Beat:
    """What an app told us through sd_notify(3)."""

    watchdog_s: float = 0.0
    """It promised a WATCHDOG=1 at least this often; 0: no promise."""
    last: float = 0.0
    """Monotonic time of the last WATCHDOG=1."""
    ready: bool = False
    status: str = ""


class Memory(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is remembered on disk about an app from one life of the agent to the next."""

    part: str
    history: History = History()
    done: Exit | None = None
    """It ended, and its restart policy leaves it so."""


class Machine(Protocol):
    """Implementations: host.machine.HostMachine (cgroup and session mode), testing.machine."""

    def facts(self) -> Facts: ...

    async def start(self, launch: Launch) -> Process:
        """Start the app's command in its own cgroup or session, never outside it.

        Raises NeedsPerson when it cannot be started at all (no such command, user, tree).
        """

    async def adopt(self, name: str) -> Process | None:
        """The app's process when it still runs from an earlier life of the agent.

        None, and nothing of the app runs any more, when it does not.
        """

    async def ended(self, process: Process) -> Exit:
        """Wait for its end. Cancelling the wait leaves the process alone.

        The exit code of an adopted app is known where its restart policy needs it
        (OnFailure, Never); for Always it may be None where the kernel is older than 6.15.
        """

    async def signal(self, process: Process, signal: str) -> None:
        """Send one signal (``SIGTERM``) to the app's main process; nothing when it is gone."""

    async def kill(self, name: str) -> None:
        """Kill everything the app ever forked, and wait until nothing is left."""

    async def ask(
        self, launch: Launch, check: HttpProbe | TcpProbe | ExecProbe, timeout_s: float
    ) -> Answer:
        """Ask one probe once. Never raises; a probe that cannot be asked is a bad answer."""

    async def run(self, launch: Launch, command: tuple[str, ...], timeout_s: float) -> Answer:
        """Run a hook in the app's tree, as the app's user. Good when it exits with 0."""

    def beat(self, name: str) -> Beat:
        """What the app's processes have told us."""

    def recall(self, name: str) -> Memory | None:
        """What ``remember`` kept, or None."""

    def remember(self, name: str, memory: Memory) -> None:
        """Keep it; on disk when this returns. Raises NeedsPerson when the disk is full."""

    def known(self) -> tuple[str, ...]:
        """Names of all apps that this machine remembers anything of."""

    async def forget(self, name: str) -> None:
        """The app left this node: drop its records and logs. Its data directory stays."""
