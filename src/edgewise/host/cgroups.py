"""One cgroup (v2) for each app: everything it forks is known, limited and killed together.

Source: Linux kernel documentation, admin-guide/cgroup-v2.rst. ``cgroup.kill`` needs
Linux 5.14; before it, the members are killed until none is left.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from edgewise.host import processes
from edgewise.model.errors import NeedsPerson

_CONTROLLERS: Final = ("memory", "cpu", "pids")
_PERIOD_US: Final = 100_000


def mounts() -> tuple[Path, ...]:
    """Where cgroup v2 is mounted, as proc_pid_mountinfo(5) says."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            found.append(Path(before.split()[4]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The directory below which each app of one agent has its own."""

    parent: Path
    limits: tuple[str, ...]
    """Controllers that are enabled here."""

    @classmethod
    def find(cls, state: Path, configured: Path | None = None) -> Cgroups | None:
        """A writable place, or None where there is none (then sessions must do).

        Apps never live below the agent's own unit: a service manager that stops the agent
        would stop them too. ``state`` tells several agents on one machine apart.
        """
        label = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
        for place in (configured,) if configured else mounts():
            parent = place / f"edgewise-{label}"
            try:
                parent.mkdir(exist_ok=True)
                probe = parent / "probe"
                probe.mkdir(exist_ok=True)
                usable = os.access(probe / "cgroup.procs", os.W_OK)
                probe.rmdir()
            except OSError:
                continue
            if usable:
                return cls(parent, _enable(place, parent))
        return None

    def path(self, name: str) -> Path:
        """The app's cgroup; it exists after ``make``."""
        return self.parent / name

    def make(self, name: str, memory_bytes: int, cpu_milli: int) -> Path:
        """Create the app's cgroup, with its limits where they can be enforced.

        Raises NeedsPerson when the kernel refuses.
        """
        path = self.path(name)
        try:
            path.mkdir(exist_ok=True, parents=True)
            if "memory" in self.limits:
                (path / "memory.max").write_text(str(memory_bytes or "max"))
            if "cpu" in self.limits:
                quota = cpu_milli * _PERIOD_US // 1000 if cpu_milli else "max"
                (path / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        except OSError as error:
            raise NeedsPerson(
                f"cannot make cgroup {path}: {error.strerror}",
                hint="is another program changing the cgroups below it?",
            ) from error
        return path

    def holds(self, name: str, pid: int) -> bool:
        """Whether the process is in the app's cgroup or below it."""
        return self.name_of(pid) == name

    def name_of(self, pid: int) -> str | None:
        """Which app a process belongs to.

        From the top of the hierarchy on: users may make cgroups below their own with any name.
        """
        place = processes.cgroup_of(pid)
        within = f"{_in_hierarchy(self.parent)}/"
        return place.removeprefix(within).split("/")[0] if place.startswith(within) else None

    def populated(self, name: str) -> bool:
        """Whether anything runs in it."""
        try:
            return "populated 1" in (self.path(name) / "cgroup.events").read_text()
        except FileNotFoundError:
            return False

    def kill(self, name: str) -> None:
        """Kill everything in it, at once; call until ``populated`` is False."""
        path = self.path(name)
        try:
            (path / "cgroup.kill").write_text("1")
        except FileNotFoundError:
            for member in self.members(name):
                processes.send(member, signal.SIGKILL)

    def members(self, name: str) -> tuple[int, ...]:
        """Processes in the app's own cgroup."""
        try:
            return tuple(int(p) for p in (self.path(name) / "cgroup.procs").read_text().split())
        except OSError:
            return ()

    def remove(self, name: str) -> None:
        """Remove an empty cgroup and those that the app made in it."""
        path = self.path(name)
        if not path.is_dir():
            return
        for folder in sorted(path.rglob("*/"), key=lambda p: len(p.parts), reverse=True):
            folder.rmdir()
        path.rmdir()

    def dissolve(self) -> None:
        """Remove the agent's own directory, unless an app is in it."""
        with contextlib.suppress(OSError):  # not empty, or gone already
            self.parent.rmdir()


@cache
def _in_hierarchy(directory: Path) -> str:
    """A cgroup's directory as /proc/<pid>/cgroup names it to us."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        if after.split()[0] == "cgroup2" and directory.is_relative_to(point):
            return str(Path(root) / directory.relative_to(point))
    return str(directory)


def _enable(place: Path, parent: Path) -> tuple[str, ...]:
    """Turn on what the kernel offers here, as far as it lets us."""
    offered = (place / "cgroup.controllers").read_text().split()
    enabled = []
    for name in _CONTROLLERS:
        if name in offered:
            try:
                (place / "cgroup.subtree_control").write_text(f"+{name}")
                (parent / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError:
                continue  # held by the cgroup v1 hierarchy, or by the "no internal processes" rule
            enabled.append(name)
    return tuple(enabled)
