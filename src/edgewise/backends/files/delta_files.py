"""Deltas as files below a content root, made by a child process that may take its time.

Laws: a file under its final name is complete, synced and was read part by part after it was
written; whoever stops waiting leaves no process and no file; when the hub dies, the child and
its workers die with it (the pipe to it ends), and the next start empties what they left.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import msgspec

from edgewise.delivery import delta
from edgewise.delivery.delta_ports import DeltaMaker, Progress
from edgewise.model.errors import NeedsPerson, NotFound, Untrusted
from edgewise.protocol.delta import DeltaRef, delta_path
from edgewise.runtime.durable import disk_error, sync_directory

LINE: Final = 64 << 10
"""One line of the child's."""
LAST_WORDS: Final = 2000
"""Characters of what a child that failed said on standard error."""


class MakeTask(msgspec.Struct, frozen=True):
    """What the child is told, as one line of JSON."""

    content: str
    """The content root."""
    base: str
    tree: str
    out: str
    scratch: str
    """A folder of its own."""
    cache: str
    jobs: int
    recompress: bool = True


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of the child's."""

    done: int = 0
    total: int = 0
    ref: DeltaRef | None = None
    absent: str = ""
    """An object that is not here."""
    failed: str = ""
    hint: str = ""


class FileDeltas:
    """``content`` is the content root; ``work`` a folder for this alone, on the same disk."""

    def __init__(
        self, content: Path, work: Path, *, jobs: int = 0, recompress: bool = True
    ) -> None:
        """``jobs``: processes that make one delta; 0: as many as there are cores for us.

        ``recompress``: let gzip files travel expanded.
        """
        self._root = content
        self._work = work
        self._cache = work / "pairs"
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._recompress = recompress
        self._sound: dict[str, tuple[int, int, int]] = {}
        """Digest to (inode, mtime, size) of a file whose head was read and is right."""
        for folder in (content / "deltas", work, self._cache):
            folder.mkdir(parents=True, exist_ok=True)
        for left in work.iterdir():
            if left != self._cache:
                shutil.rmtree(left, ignore_errors=True)

    def path(self, sha256: str) -> Path:
        """Where the file is or would be."""
        return self._root / delta_path(sha256)

    async def make(
        self, base: str, tree: str, *, at_most: int, progress: Progress
    ) -> DeltaRef | None:
        """See ``DeltaMaker.make``."""
        try:
            scratch = Path(tempfile.mkdtemp(dir=self._work))
        except OSError as error:
            raise disk_error(error, self._work) from error
        try:
            task = MakeTask(
                str(self._root), base, tree, str(scratch / "out.ewd"), str(scratch),
                str(self._cache), self._jobs, self._recompress,
            )  # fmt: skip
            ref = await _in_child(task, progress)
            if (ref.base, ref.tree) != (base, tree):
                raise NeedsPerson(f"the delta to {tree[:12]} came out as another one")
            if ref.size > at_most:
                return None
            await asyncio.to_thread(self._settle, scratch / "out.ewd", ref)
            return ref
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _settle(self, made: Path, ref: DeltaRef) -> None:
        if not _is_whole(made, ref):
            raise NeedsPerson(
                f"delta {ref.sha256[:12]} reads other than it was written",
                hint="check the hub's disk and memory",
            )
        final = self.path(ref.sha256)
        try:
            made.chmod(0o644)
            with made.open("rb") as file:
                os.fsync(file.fileno())
            if not final.parent.exists():
                final.parent.mkdir(exist_ok=True)
                sync_directory(final.parent.parent)
            made.rename(final)
            sync_directory(final.parent)
        except OSError as error:
            raise disk_error(error, final) from error

    def check(self, ref: DeltaRef, *, whole: bool) -> bool:
        """See ``DeltaMaker.check``. Without ``whole`` a file is read once as long as nobody
        touches it."""
        path = self.path(ref.sha256)
        try:
            about = path.stat()
        except OSError:
            return False
        now = (about.st_ino, about.st_mtime_ns, about.st_size)
        if not whole and self._sound.get(ref.sha256) == now:
            return True
        sound = _is_whole(path, ref) if whole else _has_head(path, ref)
        if sound:
            self._sound[ref.sha256] = now
        return sound

    def kept(self) -> tuple[tuple[str, float, int], ...]:
        """See ``DeltaMaker.kept``. Raises NeedsPerson when the disk cannot be read."""
        try:
            return tuple(
                (folder.name + path.stem, about.st_mtime, about.st_size)
                for folder in sorted((self._root / "deltas").iterdir())
                for path in sorted(folder.glob("*.ewd"))
                for about in (path.stat(),)
            )
        except OSError as error:
            raise disk_error(error, self._root) from error

    def remove(self, sha256: str) -> None:
        """See ``DeltaMaker.remove``. Raises NeedsPerson when the disk cannot be written."""
        try:
            self.path(sha256).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, self._root) from error
        self._sound.pop(sha256, None)


def _has_head(path: Path, ref: DeltaRef) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(ref.head)
    except OSError:
        return False
    return hashlib.sha256(head).hexdigest() == ref.sha256 and path.stat().st_size == ref.size


def _is_whole(path: Path, ref: DeltaRef) -> bool:
    """Whether every byte is as the head says, and the head as the name says."""
    try:
        with path.open("rb") as file:
            opened = delta.open_head(file.read(ref.head), ref.sha256)
            for start, length, sha256 in delta.part_lines(opened):
                if start != file.tell():
                    return False
                if hashlib.sha256(file.read(length)).hexdigest() != sha256:
                    return False
            return file.tell() == ref.size and not file.read(1)
    except (OSError, Untrusted):
        return False


async def _in_child(task: MakeTask, progress: Progress) -> DeltaRef:
    """Run the child to its end; when the caller is cancelled, kill it and its workers."""
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edgewise.backends.files.delta_process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE,
            start_new_session=True,
            env={**os.environ, "TMPDIR": task.scratch},
        )  # fmt: skip
    except OSError as error:
        raise NeedsPerson(
            f"no process could be started to make a delta: {error.strerror}",
            hint="free memory, or start the hub with --delta-versions 0",
        ) from error
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said = asyncio.ensure_future(_tail(process.stderr))
    ended = asyncio.ensure_future(_ended(process))
    try:
        # It stays open: when it ends, the hub is gone, and the child goes too.
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        last = Told()
        while line := await process.stdout.readline():
            with contextlib.suppress(msgspec.DecodeError):  # what a library prints
                last = msgspec.json.decode(line, type=Told)
            if last.total:
                progress(last.done, last.total)
        await ended
        if last.ref is not None:
            return last.ref
        if last.absent:
            raise NotFound(f"object {last.absent[:12]} is not kept here")
        why = last.failed or f"the process that made it ended with {process.returncode}"
        words = "" if last.failed else (await said).strip()[-LAST_WORDS:]
        raise NeedsPerson(
            f"making a delta failed: {why}{': ' if words else ''}{words}",
            hint=last.hint or "free memory, or start the hub with --delta-versions 0",
        )
    finally:
        _kill_group(process.pid)
        await asyncio.shield(ended)
        said.cancel()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Its workers have our pipe open too: when it dies before them, they must not keep us."""
    await process.wait()
    _kill_group(process.pid)


def _kill_group(pid: int) -> None:
    """The child leads a session of its own, so its pid is the group of all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while data := await stream.read(LINE):
        kept = (kept + data)[-LAST_WORDS:]
    return kept.decode(errors="replace")


def _meets_its_port(files: FileDeltas) -> DeltaMaker:
    return files
