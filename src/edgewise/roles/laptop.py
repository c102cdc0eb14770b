"""A whole fleet on one machine: hub, relays and agents as real processes over mutual TLS.

Used by ``edgewise demo``, the benchmarks and the system tests. Everything lives below one
directory, listens on loopback only, and is stopped by pid when the context ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.model.errors import NeedsPerson
from edgewise.runtime.hidden import TOKEN

_READY_WITHIN_S = 60.0


@dataclass
class RoleProcess:
    """One role as a child process; its output goes to ``log``."""

    name: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    """In addition to ours, such as a token: a command line can be read by everybody."""
    process: asyncio.subprocess.Process | None = None

    async def start(self, ready: Path) -> None:
        """Start, and wait until the role has written its ``ready`` file.

        Raises NeedsPerson with the end of its log when it exits or takes over a minute.
        """
        ready.unlink(missing_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                env={**os.environ, **self.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        deadline = asyncio.get_running_loop().time() + _READY_WITHIN_S
        while not ready.exists():
            if self.process.returncode is not None:
                raise NeedsPerson(
                    f"{self.name} ended with code {self.process.returncode}: {self.tail()}",
                    hint=f"read {self.log}",
                )
            if asyncio.get_running_loop().time() > deadline:
                raise NeedsPerson(
                    f"{self.name} was not ready within {_READY_WITHIN_S:.0f} s: {self.tail()}",
                    hint=f"read {self.log}",
                )
            await asyncio.sleep(0.02)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal it and wait; after ten seconds it is killed."""
        if self.process is None or self.process.returncode is not None:
            return
        self.process.send_signal(how)
        try:
            await asyncio.wait_for(self.process.wait(), 10)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()

    @property
    def pid(self) -> int:
        """Of the running process; 0 when it does not run."""
        running = self.process is not None and self.process.returncode is None
        return self.process.pid if self.process is not None and running else 0

    def tail(self) -> str:
        """The last lines it wrote."""
        try:
            return " | ".join(self.log.read_text(errors="replace").splitlines()[-5:])
        except OSError:
            return "it wrote nothing"


class Link:
    """A TCP line that can be cut and mended: what stands between a region and the hub."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.up = True
        self.port = 0
        self.bytes_down = 0
        """Bytes that went from the far end (the hub) to the near end."""

    async def open(self) -> None:
        """Listen on a loopback port of the system's choice."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, near_in: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        if not self.up:
            near.transport.abort()
            return
        try:
            far_in, far = await asyncio.open_connection(*self._to)
        except OSError:
            near.transport.abort()
            return
        self._writers |= {near, far}
        pumps = (self._pump(near_in, far, counts=False), self._pump(far_in, near, counts=True))
        tasks = [asyncio.create_task(pump) for pump in pumps]
        self._pumps.update(tasks)
        await asyncio.wait(tasks)
        self._pumps.difference_update(tasks)
        self._writers -= {near, far}

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counts: bool
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                if counts:
                    self.bytes_down += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # a broken line is what this class is for; both ends see it close
        finally:
            writer.close()

    def cut(self) -> None:
        """Break what is open and refuse what comes."""
        self.up = False
        for writer in self._writers:
            writer.transport.abort()

    def mend(self) -> None:
        """Let connections through again."""
        self.up = True

    async def close(self) -> None:
        """Stop listening and break what is open."""
        self.cut()
        if self._server is not None:
            self._server.close()
        if self._pumps:
            await asyncio.wait(self._pumps)


@dataclass
class Laptop:
    """The processes of one fleet; make it with ``laptop``."""

    directory: Path
    organisation: str = "demo"
    processes: dict[str, RoleProcess] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)

    async def start(
        self, name: str, arguments: Sequence[str], ready: Path, *, token: str = ""
    ) -> RoleProcess:
        """Start ``python -m edgewise.roles.<first argument> <rest>`` and wait for it. It
        joins first with ``token``."""
        role, *rest = arguments
        command = (sys.executable, "-m", f"edgewise.roles.{role}", *rest)
        log = self.directory / "logs" / f"{name}.log"
        process = RoleProcess(name, command, log, {TOKEN: token} if token else {})
        self.processes[name] = process
        await process.start(ready)
        return process

    async def link(self, host: str, port: int) -> Link:
        """A line to ``host:port`` that can be cut."""
        link = Link(host, port)
        await link.open()
        self.links.append(link)
        return link

    async def run(
        self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run a command to its end. Raises NeedsPerson with its output when it fails."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        text = output.decode(errors="replace").strip()
        if process.returncode != 0:
            raise NeedsPerson(f"{' '.join(command)} failed: {text[-600:]}")
        return text

    async def stop(self) -> None:
        """Agents first (with their apps), then relays, then the hub."""
        for process in reversed(self.processes.values()):
            await process.stop()
        for link in self.links:
            await link.close()


@asynccontextmanager
async def laptop(directory: Path, organisation: str = "demo") -> AsyncIterator[Laptop]:
    """A fleet below ``directory`` that is stopped when the block ends, however it ends."""
    fleet = Laptop(directory, organisation)
    try:
        yield fleet
    finally:
        await fleet.stop()


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10**6 bytes); 0 when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    for line in text.splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0
