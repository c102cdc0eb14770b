"""What ``bench/delta.py`` measures with: processes' costs, a server that counts, equal trees."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

# The child's peak memory begins with that of the process that forked it: so fork from a small one.
LAUNCH = """
import json, os, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL).returncode
wall = time.perf_counter() - began
spent = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    json.dump([code, spent.ru_utime + spent.ru_stime, spent.ru_maxrss / 1024, wall], file)
"""


@dataclass(frozen=True)
class Cost:
    """Of a command with all its children."""

    cpu_s: float
    """User and system time."""
    peak_mib: float
    """Resident memory of the largest process."""
    wall_s: float
    all_mib: float = 0.0
    """Resident memory of all its processes at once, sampled."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.cpu_s + other.cpu_s,
            max(self.peak_mib, other.peak_mib),
            self.wall_s + other.wall_s,
            max(self.all_mib, other.all_mib),
        )


def run(command: Sequence[str | Path], cwd: Path | None = None) -> Cost:
    """Run a command to its end. Raises RuntimeError with what it said when it fails."""
    with tempfile.TemporaryDirectory() as name:
        result, said = Path(name) / "cost", Path(name) / "said"
        words = [sys.executable, "-I", "-S", "-c", LAUNCH, str(result), *map(str, command)]
        with said.open("wb") as out:
            process = subprocess.Popen(words, stdout=out, stderr=out, cwd=cwd)
            most = _watch(process)
        code, cpu, peak, wall = json.loads(result.read_text()) if result.exists() else (-1, 0, 0, 0)
        if code:
            tail = said.read_bytes()[-4000:].decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, command))[:300]}: exit {code}\n{tail}")
        return Cost(cpu, peak, wall, max(most, peak))


def _watch(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; the most memory (MiB) that its children had at once."""
    most = 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            return most
        most = max(most, sum(_rss(pid) for pid in _below(process.pid)))


def _below(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [int(child) for child in children]
        return found + [one for child in found for one in _below(child)]
    return []


def _rss(pid: int) -> float:
    with contextlib.suppress(OSError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


# A file server that counts


class _Answer(BaseHTTPRequestHandler):
    """GET and HEAD of files below a folder, with ``Range: bytes=A-`` and ``bytes=A-B``."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: Server

    def do_GET(self) -> None:
        path = self.server.root / self.path.partition("?")[0].lstrip("/")
        try:
            file = path.open("rb")
        except OSError:
            self._head(404, 0, [])
            return
        with file:
            size = os.fstat(file.fileno()).st_size
            first, last = self._range(size)
            if first >= size > 0:
                self._head(416, 0, [("Content-Range", f"bytes */{size}")])
                return
            about = [("Content-Range", f"bytes {first}-{last}/{size}")]
            ranged = "Range" in self.headers
            self._head(206 if ranged else 200, last + 1 - first, about if ranged else [])
            if self.command == "GET":
                self.wfile.flush()
                file.seek(first)
                self.connection.sendfile(file, first, last + 1 - first)
                self.server.count(last + 1 - first, 0)

    do_HEAD = do_GET

    def _range(self, size: int) -> tuple[int, int]:
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        return int(first), min(int(last) if last else size - 1, size - 1)

    def _head(self, code: int, length: int, fields: list[tuple[str, str]]) -> None:
        self.send_response_only(code)
        for name, value in [("Content-Length", str(length)), *fields]:
            self.send_header(name, value)
        self.server.count(sum(map(len, self._headers_buffer)) + 2, 1)
        self.end_headers()


@dataclass
class Moved:
    """What a server sent: heads and bodies."""

    bytes: int = 0
    requests: int = 0


class Server(socketserver.ThreadingTCPServer):
    """One folder over HTTP on the loopback, until the block ends."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.root = root
        self.moved = Moved()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, size: int, requests: int) -> None:
        """Add to what was sent."""
        with self._lock:
            self.moved.bytes += size
            self.moved.requests += requests

    def reset(self) -> None:
        """Count from nothing."""
        self.moved = Moved()


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server of ``root``."""
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# Trees


@dataclass
class Skipped:
    """Paths that no system here can carry, by why."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, why: str) -> None:
        """Count one."""
        self.counts[why] = self.counts.get(why, 0) + 1

    def __str__(self) -> str:
        said = ", ".join(f"{count} {why}" for why, count in sorted(self.counts.items()))
        return said or "nothing"


def copy_tree(source: Path, target: Path) -> Skipped:
    """A copy that all systems can carry, with owners, modes, xattrs and hard links.

    Left out, and counted: devices, sockets and pipes (OSTree refuses them), and names that are
    not printable UTF-8 (OSTree and our trees refuse those).
    """
    subprocess.run(["cp", "-a", "--reflink=auto", f"{source}/.", target], check=True)
    skipped = Skipped()
    for folder, folders, files in os.walk(os.fsencode(target)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            kind = stat.S_IFMT(about.st_mode)
            why = ""
            if not _plain(name):
                why = "names that are not printable UTF-8"
            elif kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
                why = "devices, sockets and pipes"
            if why:
                skipped.add(why)
                if kind == stat.S_IFDIR:
                    shutil.rmtree(path)
                    folders.remove(name)
                else:
                    os.unlink(path)
    return skipped


def _plain(name: bytes) -> bool:
    try:
        return name.decode().isprintable()
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True)
class Difference(Exception):
    """Where two trees are not the same."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def compare(want: Path, got: Path) -> int:
    """Raise Difference unless both hold the same: kinds, modes, owners, targets, contents.

    Times are not compared: no system here but casync keeps them. Returns the paths compared.
    """
    wanted, found = _summary(want), _summary(got)
    for path in wanted.keys() | found.keys():
        if wanted.get(path) != found.get(path):
            raise Difference(path, f"{wanted.get(path)} became {found.get(path)}")
    return len(wanted)


def _summary(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            kind = stat.S_IFMT(about.st_mode)
            content = ""
            if kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            mode = 0 if kind == stat.S_IFLNK else stat.S_IMODE(about.st_mode)
            found[os.path.relpath(path, root)] = (kind, mode, about.st_uid, about.st_gid, content)
    return found


def bare_mib() -> float:
    """Peak memory of a Python that does nothing, measured like everything else."""
    return run([sys.executable, "-c", "pass"]).peak_mib


def now() -> float:
    """Seconds, to take differences of."""
    return time.perf_counter()


def set_aside(path: Path) -> None:
    """Out of the way, to be deleted when the run ends.

    ext4 looks again and again at inodes that were deleted in the last minutes before it gives
    out new ones: whoever makes files after somebody's deletions pays for them (0.4 ms a file).
    """
    number = sum(1 for one in path.parent.iterdir() if one.name.startswith("aside-"))
    path.rename(path.with_name(f"aside-{number}"))
