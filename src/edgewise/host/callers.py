"""Who a local caller is: facts of the kernel about the process at the other end of a socket.

SO_PEERCRED says who connected, and a pid is only a number: the process may have ended, and
another may have it now. So the process is held by a pidfd (SO_PEERPIDFD, Linux 6.5) and facts
count only if it still runs after they were read. A socket that was handed on therefore proves
nothing once the one who made it is gone, and neither does one whose maker has become another
program since.

Sources: unix(7), pidfd_open(2), proc_pid_stat(5), cgroups(7), user_namespaces(7).
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from edgewise.host import processes
from edgewise.identity.workload_ports import Caller
from edgewise.model.errors import Forbidden, TryLater
from edgewise.model.selectors import Fact

SO_PEERPIDFD: Final = 77
"""asm-generic/socket.h; Python's socket module does not name it yet."""
SETTLED_S: Final = 1.0
"""Without SO_PEERPIDFD, a process must have run this long before its connection was taken: one
that began while the connection waited could have got the pid of the one that made it."""
DIGESTED: Final = 256 << 20
"""Bytes of an executable that is digested; a larger one has no ``sha256`` fact."""
DIGESTS_KEPT: Final = 256
"""Digests that are remembered; the oldest go first."""

_CREDENTIALS: Final = struct.Struct("3i")
_CONTAINER: Final = re.compile(
    r"(?:(?:docker|libpod|crio|cri-containerd|nerdctl|buildkit)-)?([0-9a-f]{64})(?:\.scope)?"
)
_UNIT_ENDS: Final = (".service", ".scope", ".socket", ".mount", ".swap")

AppOf = Callable[[int], str | None]
"""Pid to the App of this node whose supervisor started it, by what a process cannot choose."""


def unit_of(cgroup: str) -> str:
    """The system's unit of a cgroup path: the first part that is no slice.

    What lies below it is the unit's own affair: a user's manager may call its units anything.
    """
    for part in cgroup.strip("/").split("/"):
        if part.endswith(".slice"):
            continue
        return part if part.endswith(_UNIT_ENDS) else ""
    return ""


def container_of(cgroup: str) -> str:
    """The container of a cgroup path: the outermost, and none that a user's manager made."""
    if unit_of(cgroup).startswith("user@"):
        return ""
    for part in cgroup.strip("/").split("/"):
        if (found := _CONTAINER.fullmatch(part)) is not None:
            return found[1]
    return ""


@dataclass
class Facts:
    """Reads what is known of a process. ``wanted`` are the facts that selectors ask for."""

    app_of: AppOf
    wanted: Collection[Fact] = ()
    _digests: dict[tuple[int, ...], str] = field(default_factory=dict)

    def by_pid(self, pid: int, *, uid: int, gid: int) -> Caller:
        """A process that somebody holds by a pidfd. Raises Forbidden when it is gone.

        ``uid`` and ``gid`` are the caller's word from the kernel: SO_PEERCRED or sock_diag.
        Call it again with the digest known (``needs_digest``) where a selector asks for it.
        """
        started = processes.start_ticks(pid)
        if started is None:
            raise _gone(pid)
        cgroup = processes.cgroup_of(pid)
        return Caller(
            pid=pid,
            uid=uid,
            gid=gid,
            started=started,
            executable=_program(pid),
            sha256=self._known_digest(pid) if "sha256" in self.wanted else "",
            app=self.app_of(pid) or "",
            unit=unit_of(cgroup),
            container=container_of(cgroup),
            user=_user_name(uid) if "user" in self.wanted else "",
            group=_group_name(gid) if "group" in self.wanted else "",
        )

    def needs_digest(self, pid: int) -> bool:
        """Whether ``digest`` should be called first, in a thread: it reads the whole program."""
        if "sha256" not in self.wanted:
            return False
        key = _file_key(f"/proc/{pid}/exe")
        return bool(key) and key not in self._digests and key[-1] <= DIGESTED

    def digest(self, pid: int) -> None:
        """Digest the program that runs, whatever lies at its path by now; remember it."""
        try:
            with open(f"/proc/{pid}/exe", "rb") as program:
                key = _key_of(os.fstat(program.fileno()))
                found = hashlib.file_digest(program, "sha256").hexdigest()
        except OSError:
            return
        while len(self._digests) >= DIGESTS_KEPT:
            del self._digests[next(iter(self._digests))]
        self._digests[key] = found

    def _known_digest(self, pid: int) -> str:
        return self._digests.get(_file_key(f"/proc/{pid}/exe"), "")


def _program(pid: int) -> str:
    """Path of the program, if it is the file that lies there for us too.

    In a mount namespace of its own, which every user can make, a process can run anything
    under any path; so the name only counts for the very file that the node has there.
    """
    link = f"/proc/{pid}/exe"
    try:
        path = os.readlink(link)
        ours, theirs = os.stat(path), os.stat(link)
    except OSError:
        return ""
    return path if os.path.samestat(ours, theirs) else ""


def _key_of(about: os.stat_result) -> tuple[int, ...]:
    # A running program cannot be written to (ETXTBSY), and only root can set the change time.
    return (
        about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size,
    )  # fmt: skip


def _file_key(path: str) -> tuple[int, ...]:
    try:
        return _key_of(os.stat(path))
    except OSError:
        return ()


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _gone(pid: int) -> Forbidden:
    return Forbidden(
        f"the process that made this connection (pid {pid}) has ended or is another one now",
        hint="connect again from the process that wants the identity",
    )


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of a unix socket, held by a pidfd. Close it."""

    pid: int
    uid: int
    gid: int
    pidfd: int
    """Readable once the process has ended."""
    started: int
    program: tuple[int, ...]
    """Device and inode of what it ran when it connected; empty when that cannot be read."""

    @classmethod
    def of(cls, connection: socket.socket) -> Peer:
        """Who connected. Raises Forbidden when that cannot be told, TryLater when not yet."""
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(data)
        if pid <= 0:
            raise Forbidden("the caller's process cannot be seen from here (its PID namespace)")
        pidfd = _held(connection, pid)
        try:
            started, program = processes.start_ticks(pid), _file_key(f"/proc/{pid}/exe")[:2]
            gone = started is None or ended(pidfd)
        except BaseException:
            os.close(pidfd)
            raise
        if gone or started is None:
            os.close(pidfd)
            raise _gone(pid)
        return cls(pid, uid, gid, pidfd, started, program)

    def caller(self, facts: Facts) -> Caller:
        """What is known of it now. Raises Forbidden when it has ended, or is another program."""
        found = facts.by_pid(self.pid, uid=self.uid, gid=self.gid)
        if _file_key(f"/proc/{self.pid}/exe")[:2] != self.program:
            raise Forbidden(
                f"pid {self.pid} runs another program than when it connected",
                hint="connect after exec(2)",
            )
        # Last, so that everything above was read of the process that connected.
        if found.started != self.started or ended(self.pidfd):
            raise _gone(self.pid)
        return found

    def close(self) -> None:
        """Let go of the process."""
        os.close(self.pidfd)


def ended(pidfd: int) -> bool:
    """Whether the process behind a pidfd has ended."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    return bool(waiting.poll(0))


def _held(connection: socket.socket, pid: int) -> int:
    """A pidfd of the process that connected."""
    try:
        data = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:  # EINVAL or ESRCH: it has ended
            raise _gone(pid) from error
        return _held_by_number(pid)
    return int(struct.unpack("i", data)[0])


def _held_by_number(pid: int) -> int:
    """On older kernels, by the pid; only for a process that surely is older than the connection."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise _gone(pid) from error
    started = processes.start_ticks(pid)
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - (started or 0) / os.sysconf("SC_CLK_TCK")
    if started is None or age < SETTLED_S:
        os.close(pidfd)
        raise TryLater(
            f"pid {pid} is too young to be told from one that had its number before",
            hint="connect again in a second; Linux 6.5 and newer need no wait",
        )
    return pidfd


def of_number(pid: int, facts: Facts) -> Caller:
    """A process that a person asks about. Raises Forbidden when there is none."""
    try:
        about = os.stat(f"/proc/{pid}")
    except OSError as error:
        raise _gone(pid) from error
    if facts.needs_digest(pid):
        facts.digest(pid)
    return facts.by_pid(pid, uid=about.st_uid, gid=about.st_gid)


def searchable_by_all(path: Path) -> bool:
    """Whether every user can get to a socket at this path."""
    return all(folder.stat().st_mode & 0o001 for folder in path.parents)
