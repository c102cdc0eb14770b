"""sync.ports.Repository over the git command: commits and their YAML files.

The repository is bare and lies below the hub's data directory. With a ``url`` it mirrors one
branch of another repository; without one it is what people push to (net/git_http.py).
Blobs are kept in memory by their git id, so a snapshot reads only the files that changed.

``refs/edgewise/accepted`` names the last revision that was verified and compiled; it keeps
that commit from being collected, and pushes can neither see nor move it.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from edgewise.backends.git import guard
from edgewise.backends.git.command import Git
from edgewise.model.errors import BadUsage, NeedsPerson, NotFound, TryLater
from edgewise.sync.ports import Blob, Repository, Snapshot

MAX_FILES = 20_000
MAX_FILE = 10 << 20
MAX_TOTAL = 256 << 20
_CACHED_SNAPSHOTS = 4
_ACCEPTED = "refs/edgewise/accepted"
_BRANCH = re.compile(r"(?!-)(?!.*\.\.)(?!.*//)[A-Za-z0-9._/-]{1,200}(?<![/.])(?<!\.lock)")
_REVISION = re.compile(r"(?!-)[A-Za-z0-9._/@{}~^-]{1,250}")
_PUSHED_TO = {
    "http.receivepack": "true",
    "receive.fsckObjects": "true",
    "receive.maxInputSize": str(512 << 20),
    "receive.denyDeleteCurrent": "refuse",
    "transfer.hideRefs": "refs/edgewise",
    "core.logAllRefUpdates": "true",
    "core.fsync": "committed,reference",
    # Loose objects for small pushes keep a snapshot cheap; gc runs now and then by itself.
    "gc.auto": "2000",
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much of a commit is read: number of YAML files, bytes of one, bytes of all."""

    files: int = MAX_FILES
    file: int = MAX_FILE
    total: int = MAX_TOTAL


@dataclass(frozen=True, slots=True)
class Origin:
    """What is followed: a branch of our own bare repository, or of a mirrored ``url``."""

    branch: str = "main"
    url: str = ""
    """Anything git fetches from; empty: the hub's own repository, which people push to."""
    rewinds: bool = False
    """Own repository only: let people push branches that are not fast-forwards."""

    def __post_init__(self) -> None:
        if not _BRANCH.fullmatch(self.branch):
            raise BadUsage(f"{self.branch!r} is not a branch name", hint="use one such as main")
        if self.url.startswith("-") or "\n" in self.url:
            raise BadUsage(f"{self.url!r} is not a URL of a git repository")


class GitRepository:
    """A bare repository at ``directory``; ``ensure`` makes it."""

    def __init__(
        self,
        directory: Path,
        origin: Origin | None = None,
        *,
        bounds: Bounds | None = None,
        fetch_timeout: timedelta = timedelta(minutes=2),
    ) -> None:
        self.directory = directory
        self.origin = origin or Origin()
        self.git = Git(directory)
        self._bounds = bounds or Bounds()
        self._fetch_timeout = fetch_timeout
        self._blobs = _Blobs(self._bounds.total)
        self._snapshots: OrderedDict[str, Snapshot] = OrderedDict()
        self._reading = asyncio.Lock()
        self._head: tuple[object, str | None] | None = None
        """What ``head`` said last, and the state of the branch's files before it did."""
        self._accepted = ""

    @property
    def branch(self) -> str:
        """The followed branch, without ``refs/heads/``."""
        return self.origin.branch

    @property
    def ref(self) -> str:
        """The followed branch, whole."""
        return f"refs/heads/{self.origin.branch}"

    async def ensure(self) -> None:
        """Create the bare repository, or bring the settings of an old one up to date."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        if not (self.directory / "HEAD").exists():
            await self.git.run(
                "init", "--bare", "--quiet", "--template=", f"--initial-branch={self.branch}",
                str(self.directory),
            )  # fmt: skip
        settings = {
            **_PUSHED_TO,
            "receive.denyNonFastForwards": "false" if self.origin.rewinds else "true",
            # Whatever the machine's own git settings say: the guard must run.
            "core.hooksPath": str((self.directory / "hooks").absolute()),
        }
        # One process each would take 40 ms at every start; --list costs one.
        listed = (await self.git.run("config", "--local", "--list", "-z")).decode()
        present = dict(line.partition("\n")[::2] for line in listed.split("\0") if line)
        for name, value in settings.items():
            if present.get(name.lower()) != value:
                await self.git.run("config", name, value)
        await self.git.run("symbolic-ref", "HEAD", self.ref)
        guard.install(self.directory, self.ref)

    async def refresh(self) -> None:
        """Fetch the followed branch of the mirrored ``url``; nothing to do without one.

        Raises TryLater when the other side does not answer, NeedsPerson when it refuses us.
        A branch that does not exist there yet is not an error.
        """
        if not self.origin.url:
            return
        try:
            await self.git.run(
                "-c", "fetch.fsckObjects=true", "fetch", "--quiet", "--no-tags",
                "--no-write-fetch-head", "--end-of-options", self.origin.url,
                f"+{self.ref}:{self.ref}",
                timeout=self._fetch_timeout,
            )  # fmt: skip
        except NotFound:
            if await self._remote_has_branch():
                raise

    async def _remote_has_branch(self) -> bool:
        listed = await self.git.run(
            "ls-remote", "--end-of-options", self.origin.url, self.ref, timeout=self._fetch_timeout
        )
        return bool(listed.strip())

    async def head(self) -> str | None:
        """Commit id of the followed branch; None while it has no commit.

        No process while the files of the branch are as they were: a thousand machines that
        join make the hub look at git as often.
        """
        stamp = self._stamp()
        if stamp is not None and self._head is not None and self._head[0] == stamp:
            return self._head[1]
        done = await self.git.attempt("rev-parse", "--verify", "--quiet", f"{self.ref}^{{commit}}")
        head = done.out.decode().strip() or None
        self._head = (stamp, head) if stamp is not None else None
        return head

    def _stamp(self) -> object:
        """Changes with the branch, loose or packed; None where refs are kept otherwise."""
        stamps = tuple(
            file_stamp(self.directory / name) for name in (self.ref, "packed-refs", "HEAD")
        )
        return stamps if stamps[0] or stamps[1] else None

    async def resolve(self, revision: str) -> str:
        """Full commit id of a branch, tag, abbreviation or ``main@sha1:...``; or NotFound."""
        wanted = revision.rpartition("@sha1:")[2]
        if not _REVISION.fullmatch(wanted):
            raise BadUsage(f"{revision[:80]!r} is not a revision", hint="use a commit id or branch")
        done = await self.git.attempt("rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}")
        commit = done.out.decode().strip()
        if not commit:
            raise NotFound(
                f"the fleet repo has no revision {revision[:80]!r}",
                hint="push it first, or look with `git log`",
            )
        return commit

    async def descends(self, commit: str, ancestor: str) -> bool:
        """Whether ``ancestor`` is ``commit`` or one of its ancestors."""
        return not (await self.git.attempt("merge-base", "--is-ancestor", ancestor, commit)).status

    async def file(self, commit: str, path: str, *, at_most: int = 1 << 20) -> bytes | None:
        """One file of a commit, whatever its kind; None when it is not there.

        Raises NeedsPerson for more than ``at_most`` bytes.
        """
        listed = await self.git.run("ls-tree", "-z", "-l", "--end-of-options", commit, path)
        found = [entry for entry in _entries(listed) if entry.path == path]
        if not found:
            return None
        if found[0].size > at_most:
            raise NeedsPerson(f"{path} has {found[0].size} bytes, at most {at_most} are read")
        return (await self._read([found[0].id]))[found[0].id]

    async def accept(self, commit: str) -> None:
        """Remember ``commit`` as the last good revision: it was verified and compiled."""
        if commit != self._accepted:
            await self.git.run("update-ref", _ACCEPTED, commit)
            self._accepted = commit

    async def accepted(self) -> str | None:
        """The last good revision, over restarts; None before the first."""
        done = await self.git.attempt("rev-parse", "--verify", "--quiet", _ACCEPTED)
        return done.out.decode().strip() or None

    async def snapshot(self, revision: str) -> Snapshot:
        """The YAML files of one commit.

        A file beyond the bound of one file is there with ``Blob.refused`` set and no usable
        bytes. Raises NotFound for an unknown revision, NeedsPerson for too many files or
        too many bytes in all.
        """
        kept = self._snapshots.get(revision)
        if kept is not None:
            return kept
        commit = await self.resolve(revision)
        async with self._reading:
            kept = self._snapshots.get(commit)
            if kept is None:
                kept = await self._take(commit)
                self._snapshots[commit] = kept
                while len(self._snapshots) > _CACHED_SNAPSHOTS:
                    self._snapshots.popitem(last=False)
            self._snapshots.move_to_end(commit)
            return kept

    async def _take(self, commit: str) -> Snapshot:
        listed = await self.git.run("ls-tree", "-r", "-z", "-l", "--end-of-options", commit)
        entries = [entry for entry in _entries(listed) if entry.is_yaml]
        if len(entries) > self._bounds.files:
            raise NeedsPerson(
                f"commit {commit[:12]} has {len(entries)} YAML files, "
                f"at most {self._bounds.files} are read",
                hint="put many nodes into one NodeSet instead of one file each",
            )
        readable = [entry for entry in entries if entry.size <= self._bounds.file]
        total = sum(entry.size for entry in readable)
        if total > self._bounds.total:
            raise NeedsPerson(
                f"the YAML files of commit {commit[:12]} have {total} bytes, "
                f"at most {self._bounds.total} are read",
                hint="publish big content with `edgewise artifact publish`, not in documents",
            )
        contents = await self._blobs_of(entry.id for entry in readable)
        files = {
            entry.path: Blob(entry.id, contents[entry.id])
            if entry.size <= self._bounds.file
            else _refused(entry, self._bounds.file)
            for entry in entries
        }
        author, subject = _author_and_subject((await self._read([commit]))[commit])
        return Snapshot(self.branch, commit, author, subject, MappingProxyType(files))

    async def _blobs_of(self, ids: Iterable[str]) -> dict[str, bytes]:
        wanted = list(dict.fromkeys(ids))
        found = {one: data for one in wanted if (data := self._blobs.get(one)) is not None}
        missing = [one for one in wanted if one not in found]
        if missing:
            read = await self._read(missing)
            self._blobs.add(read)
            found.update(read)
        return found

    async def _read(self, ids: list[str]) -> dict[str, bytes]:
        """Whole objects by id, in one process."""
        asked = "".join(f"{one}\n" for one in ids).encode()
        out = await self.git.run("cat-file", "--batch", "--buffer", stdin=asked)
        return _batch(out, ids)


@dataclass(frozen=True, slots=True)
class _Entry:
    mode: str
    id: str
    size: int
    path: str

    @property
    def is_yaml(self) -> bool:
        # Symbolic links and submodules are left out: their content is not in this commit.
        return self.mode in ("100644", "100755") and self.path.endswith((".yaml", ".yml"))


def _entries(listed: bytes) -> list[_Entry]:
    """From ``git ls-tree -z -l``: ``mode SP type SP id SP* size TAB path NUL``."""
    entries = []
    for line in listed.split(b"\0"):
        if line:
            meta, _, path = line.partition(b"\t")
            mode, _, identifier, size = meta.decode().split()
            entries.append(
                _Entry(
                    mode, identifier, 0 if size == "-" else int(size), path.decode(errors="replace")
                )
            )
    return entries


def _batch(out: bytes, ids: list[str]) -> dict[str, bytes]:
    """From ``git cat-file --batch``: ``id SP type SP size LF contents LF`` for each id."""
    contents: dict[str, bytes] = {}
    at = 0
    for wanted in ids:
        end = out.find(b"\n", at)
        header = out[at:end].decode().split()
        if len(header) != 3:
            raise TryLater(f"object {wanted} is missing from the fleet repo; it may be damaged")
        size = int(header[2])
        contents[wanted] = out[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
    return contents


def _refused(entry: _Entry, bound: int) -> Blob:
    why = f"the file has {entry.size} bytes, at most {bound} are read"
    # YAML forbids NUL (spec 1.2, section 5.1), so nothing can take this for a document.
    return Blob(entry.id, b"\0" + why.encode(), refused=why)


def _author_and_subject(commit: bytes) -> tuple[str, str]:
    header, _, message = commit.partition(b"\n\n")
    author = next(
        (line[len(b"author ") :] for line in header.split(b"\n") if line.startswith(b"author ")),
        b"",
    )
    name = author.rpartition(b">")[0] + b">" if b">" in author else author
    subject = message.strip().split(b"\n", 1)[0]
    return name.decode(errors="replace")[:200], subject.decode(errors="replace")[:200]


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs whenever git has replaced the file; None when it is not there."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


class _Blobs:
    """Blob contents by git id, at most ``bound`` bytes; what was not asked for longest goes."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._bytes = 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()

    def get(self, identifier: str) -> bytes | None:
        data = self._kept.get(identifier)
        if data is not None:
            self._kept.move_to_end(identifier)
        return data

    def add(self, contents: Mapping[str, bytes]) -> None:
        for identifier, data in contents.items():
            if identifier not in self._kept:
                self._kept[identifier] = data
                self._bytes += len(data)
        while self._bytes > self._bound:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)


def _meets_its_port(repository: GitRepository) -> Repository:
    return repository
