"""Who calls the egress gateway, by the kernel's word, also over TCP.

Over a unix socket SO_PEERCRED says it (``host.callers``). Over TCP on loopback the kernel is
asked for the socket at the other end (NETLINK_SOCK_DIAG, sock_diag(7), an exact look-up of
some microseconds): it knows its owner, its inode and the cgroup in which it was made. The
process is the one that has that inode open, in that cgroup; it is held by a pidfd, and what
was read of it only counts if it still has the socket afterwards.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise.host import processes
from edgewise.host.callers import Facts, Peer, ended
from edgewise.host.cgroups import mounts
from edgewise.identity.workload_ports import Caller
from edgewise.model.errors import EdgewiseError

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
INET_DIAG_CGROUP_ID: Final = 21
"""linux/inet_diag.h, Linux 5.9; older kernels leave it out."""
NLMSG_ERROR: Final = 2

_HEADER: Final = struct.Struct("=IHHII")
_ID: Final = struct.Struct("!HH4s12x4s12x")
_REQUEST: Final = struct.Struct("=BBBBI")
_OWNER: Final = struct.Struct("=II")
_OWNER_AT: Final = 16 + 4 + 48 + 12
"""Of inet_diag_msg: after its four bytes, the socket's ID, and expires, rqueue and wqueue."""
_ATTRIBUTES_AT: Final = 16 + 72
_ANSWER: Final = 8192


@dataclass(frozen=True, slots=True)
class SocketFacts:
    """One TCP socket of this machine."""

    uid: int
    inode: int
    cgroup: int
    """ID of the cgroup (v2) in which it was made; 0 when the kernel does not say."""


class SocketTable:
    """The kernel's sockets, looked up one by one."""

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG)
        self._netlink.settimeout(1)

    def look_up(self, own: tuple[str, int], far: tuple[str, int]) -> SocketFacts | None:
        """The IPv4 socket with this address of its own and this far one; None for none."""
        place = _ID.pack(own[1], far[1], socket.inet_aton(own[0]), socket.inet_aton(far[0]))
        body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 0xFFFFFFFF)
        body += place + struct.pack("=I8s", 0, b"\xff" * 8)
        self._netlink.send(_HEADER.pack(16 + len(body), SOCK_DIAG_BY_FAMILY, 1, 1, 0) + body)
        return _read(self._netlink.recv(_ANSWER))

    def close(self) -> None:
        self._netlink.close()


def _read(data: bytes) -> SocketFacts | None:
    if len(data) < _ATTRIBUTES_AT:
        return None
    length, kind, _, _, _ = _HEADER.unpack_from(data)
    if kind == NLMSG_ERROR or length > len(data):
        return None
    uid, inode = _OWNER.unpack_from(data, _OWNER_AT)
    at, cgroup = _ATTRIBUTES_AT, 0
    while at + 4 <= length:
        size, what = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        if what == INET_DIAG_CGROUP_ID and size >= 12:
            (cgroup,) = struct.unpack_from("=Q", data, at + 4)
        at += (size + 3) & ~3
    return SocketFacts(uid, inode, cgroup)


class KernelCallers:
    """``net.egress.ports.Callers``. Used in the gateway's thread."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._table: SocketTable | None = None
        self._last: dict[int, int] = {}
        """User to the process that called last: it is looked at first."""
        self._cgroups = mounts()

    def of_unix(self, sock: socket.socket) -> Caller | None:
        try:
            peer = Peer.of(sock)
        except (EdgewiseError, OSError):
            return None
        try:
            if self._facts.needs_digest(peer.pid):
                self._facts.digest(peer.pid)
            return peer.caller(self._facts)
        except EdgewiseError:
            return None
        finally:
            peer.close()

    def of_tcp(self, sock: socket.socket) -> Caller | None:
        with contextlib.suppress(OSError):
            if self._table is None:
                self._table = SocketTable()
            own, far = sock.getpeername(), sock.getsockname()
            found = self._table.look_up(own, far)
            if found is None or found.inode == 0:
                return None  # it was closed already
            for pid in self._candidates(found):
                caller = self._proven(pid, found)
                if caller is not None:
                    if self._table.look_up(own, far) != found:
                        return None
                    if len(self._last) > 1024:
                        self._last.clear()
                    self._last[found.uid] = pid
                    return caller
        return None

    def _candidates(self, found: SocketFacts) -> Iterator[int]:
        """Processes that may have it, the likeliest first."""
        last = self._last.get(found.uid, 0)
        if last:
            yield last
        for pid in processes.pids():
            if pid != last:
                yield pid

    def _proven(self, pid: int, found: SocketFacts) -> Caller | None:
        """The caller if this process has the socket, before and after everything was read."""
        if not _has(pid, found.inode) or not self._fits(pid, found):
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        try:
            if self._facts.needs_digest(pid):
                self._facts.digest(pid)
            caller = self._facts.by_pid(pid, uid=found.uid, gid=_gid(pid))
            same = _has(pid, found.inode) and self._fits(pid, found) and not ended(pidfd)
        except EdgewiseError:
            return None
        finally:
            os.close(pidfd)
        return caller if same else None

    def _fits(self, pid: int, found: SocketFacts) -> bool:
        """Whether the process is in the cgroup where the socket was made: it was not handed on."""
        if not found.cgroup or not self._cgroups:
            return True
        place = processes.cgroup_of(pid).lstrip("/")
        for mount in self._cgroups:
            try:
                return (mount / place).stat().st_ino == found.cgroup
            except OSError:
                continue
        return True


def _has(pid: int, inode: int) -> bool:
    """Whether a process has the socket open."""
    wanted = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) == wanted:
                        return True
    except OSError:
        return False
    return False


def _gid(pid: int) -> int:
    """Its effective group (proc_pid_status(5)); -1 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return -1
    for line in text.splitlines():
        if line.startswith("Gid:"):
            return int(line.split()[2])
    return -1
