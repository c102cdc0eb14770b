"""Processes by pidfd: started, recognised again, waited for without polling or threads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_OUTPUT_KEPT: Final = 300
_READ: Final = 1 << 16
_PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
"""``struct pidfd_info`` as of its first version: mask, cgroup, pids and ids, exit code."""
_PIDFD_GET_INFO: Final = 0xC040FF0B
_INFO_EXIT: Final = 1 << 3
_EXIT_CODE: Final = 49
"""Of ``_stat``: field 52."""


def boot_id() -> str:
    """Changes with every boot: what was recorded under another one is over."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Clock ticks from boot to the process's start; with the pid, its identity within a boot.

    None when there is no such process. proc_pid_stat(5), field 22.
    """
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def session_of(pid: int) -> int:
    """Its session id; 0 when it is gone."""
    fields = _stat(pid)
    return int(fields[3]) if fields else 0


def alive(pid: int) -> bool:
    """Whether it runs: a zombie does not."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in ("Z", "X")


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    return text.rsplit(")", 1)[1].split()


def age_s(pid: int) -> float:
    """Seconds since it was started; 0 when it is gone."""
    ticks = start_ticks(pid)
    if ticks is None:
        return 0.0
    uptime = float((_PROC / "uptime").read_text().split()[0])
    return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))


def pids() -> Iterator[int]:
    """Every process that we can see."""
    for entry in os.scandir(_PROC):
        if entry.name.isdecimal():
            yield int(entry.name)


def environment_has(pid: int, entry: bytes) -> bool:
    """Whether its initial environment held ``NAME=value``. False when it may not be read."""
    try:
        return entry in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def cgroup_of(pid: int) -> str:
    """Its cgroup v2 path below the hierarchy's root; empty when unknown (cgroups(7))."""
    try:
        lines = (_PROC / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    return next((line[3:] for line in lines if line.startswith("0::")), "")


def send(pid: int, number: int) -> None:
    """Signal a process; nothing when it is gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def signal_number(name: str) -> int:
    """``SIGTERM`` to 15. Raises ValueError for what is no signal."""
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise ValueError(f"{name!r} is not a signal (SIGTERM, SIGHUP, ...)") from None


async def gone(pidfd: int) -> None:
    """Wait until the process behind a pidfd has ended (pidfd_open(2)).

    The descriptor must not be waited for by anybody else on this loop.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def notice() -> None:
        if not over.done():
            over.set_result(None)

    loop.add_reader(pidfd, notice)
    try:
        await over
    finally:
        loop.remove_reader(pidfd)


def exit_code(pid: int, pidfd: int) -> int | None:
    """How a process ended that need not be our child; 128 + signal when it was killed.

    Call it as soon as ``gone`` returns. None when nobody can tell any more: Linux before 6.15
    forgets it when the parent (here: init) has taken note. ``PIDFD_GET_INFO`` with
    ``PIDFD_INFO_EXIT`` is in linux/pidfd.h, the zombie's status in proc_pid_stat(5), field 52.
    """
    for _ in range(2):  # between the two looks the parent may take note
        asked = bytearray(_PIDFD_INFO.pack(_INFO_EXIT, *bytes(13)))
        with contextlib.suppress(OSError):
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, asked)
            mask, *_, status = _PIDFD_INFO.unpack(asked)
            if mask & _INFO_EXIT:
                return _code(status)
        fields = _stat(pid)
        if fields is not None and fields[0] == "Z" and len(fields) > _EXIT_CODE:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, 0)  # so it was this zombie, not a successor
                return _code(int(fields[_EXIT_CODE]))
    return None


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended."""

    code: int
    """128 + signal when it was killed."""
    tail: str
    """The end of what it printed."""


async def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    feed: bytes = b"",
    on_output: Callable[[bytes], None] | None = None,
) -> Finished:
    """Run a command to its end. Cancelling kills its whole session.

    ``feed`` is its standard input. ``on_output`` gets standard output as it comes; standard
    error then goes to ours. Raises OSError when it cannot be started.
    """
    source = os.memfd_create("edgewise-input", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(source), "wb") as file:
            file.write(feed)
        os.lseek(source, 0, os.SEEK_SET)
        # Not asyncio's: on 3.11 that starts a thread for every child. This takes about 1 ms.
        process = subprocess.Popen(  # noqa: ASYNC220 - see above
            command,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=None if on_output else subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    finally:
        os.close(source)
    if process.stdout is None:
        raise OSError("the command has no output to read")
    output = process.stdout.fileno()
    os.set_blocking(output, False)
    tail = bytearray()
    pidfd = os.pidfd_open(process.pid)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            data = os.read(output, _READ)
        except BlockingIOError:
            return
        if not data:
            loop.remove_reader(output)
        elif on_output:
            on_output(data)
        else:
            tail.extend(data)
            del tail[:-_OUTPUT_KEPT]

    loop.add_reader(output, read)
    try:
        await gone(pidfd)
        loop.remove_reader(output)
        _drain(output, on_output or tail.extend)
    except asyncio.CancelledError:
        kill_session(process.pid)
        raise
    finally:
        loop.remove_reader(output)
        process.stdout.close()
        code = process.wait()
        os.close(pidfd)
    text = bytes(tail[-_OUTPUT_KEPT:]).decode(errors="replace").strip()
    return Finished(code if code >= 0 else 128 - code, text)


class Conversation:
    """A child that answers on standard output what it is asked on standard input.

    One question at a time. It may end whenever it is not asked anything.
    """

    def __init__(self, command: Sequence[str]) -> None:
        """Start it. Raises OSError when it cannot be started."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in = self._process.stdin.fileno()
        self._out = self._process.stdout.fileno()
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)

    def rest(self, over: Callable[[], None]) -> None:
        """Nothing is asked for now; ``over`` is called if it ends meanwhile."""

        def read() -> None:
            self.end()
            over()

        asyncio.get_running_loop().add_reader(self._out, read)

    async def ask(self, question: bytes, take: Callable[[bytes], bool]) -> None:
        """Send ``question`` and pass on what it says until ``take`` returns True.

        Raises EOFError when it ended before that. Cancelling kills its whole session.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        left = memoryview(question)

        def write() -> None:
            nonlocal left
            try:
                left = left[os.write(self._in, left[:_READ]) :]
            except BlockingIOError:
                return
            except OSError:  # it has ended: reading tells
                left = left[len(left) :]
            if not left:
                loop.remove_writer(self._in)

        def read() -> None:
            try:
                data = os.read(self._out, _READ)
            except BlockingIOError:
                return
            if done.done():
                return
            if not data:
                done.set_exception(EOFError("it ended without an answer"))
            elif take(data):
                done.set_result(None)

        loop.add_writer(self._in, write)
        loop.add_reader(self._out, read)
        try:
            await done
        except BaseException:
            self.end()
            raise
        finally:
            loop.remove_writer(self._in)
            loop.remove_reader(self._out)

    def end(self) -> None:
        """Kill it, if it has not ended, and let go of it. Idempotent."""
        if self._process.stdout is not None and not self._process.stdout.closed:
            asyncio.get_running_loop().remove_reader(self._out)
        if self._process.poll() is None:
            kill_session(self._process.pid)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _drain(output: int, take: Callable[[bytes], None]) -> None:
    """What is still in the pipe; what a grandchild prints later is not waited for."""
    while True:
        try:
            data = os.read(output, _READ)
        except BlockingIOError:
            return
        if not data:
            return
        take(data)


def kill_session(leader: int) -> None:
    """Kill a process group that we started as its own session."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return
