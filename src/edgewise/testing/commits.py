"""A repository and a memory of commits that live in the test."""

from __future__ import annotations

from collections.abc import Mapping

from edgewise.model.errors import EdgewiseError, NotFound
from edgewise.sync.ports import CommitSeen, CompileMemory, Repository, Snapshot
from edgewise.sync.validate import snapshot_of


class MemoryRepository:
    """Commits are made with ``push``; ``away`` makes every read fail."""

    def __init__(self) -> None:
        self._commits: dict[str, Snapshot] = {}
        self._head: str | None = None
        self.away: EdgewiseError | None = None
        self.snapshots = 0
        """How often files were read."""

    def push(self, files: Mapping[str, str], subject: str = "change") -> str:
        """A new commit at the head; returns its id."""
        commit = f"{len(self._commits) + 1:040x}"[::-1]
        read = snapshot_of(files, commit)
        self._commits[commit] = Snapshot("main", commit, "ann", subject, read.files)
        self._head = commit
        return commit

    async def head(self) -> str | None:
        if self.away is not None:
            raise self.away
        return self._head

    async def snapshot(self, revision: str) -> Snapshot:
        if self.away is not None:
            raise self.away
        wanted = self._head if revision == "main" else revision
        found = self._commits.get(wanted or "")
        if found is None:
            raise NotFound(f"no revision {revision!r}", hint="`git log` lists commits")
        self.snapshots += 1
        return found


class MemoryCommits:
    """``CompileMemory`` without a disk."""

    def __init__(self) -> None:
        self._commits: dict[str, CommitSeen] = {}

    async def remember(self, seen: CommitSeen) -> None:
        self._commits[seen.commit] = seen

    async def recall(self, commit: str) -> CommitSeen | None:
        found = [s for c, s in self._commits.items() if len(commit) >= 4 and c.startswith(commit)]
        return found[-1] if found else None

    async def newest(self) -> CommitSeen | None:
        return next(reversed(self._commits.values()), None)

    async def last_good(self) -> CommitSeen | None:
        good = [s for s in self._commits.values() if s.compiled and not s.held]
        return good[-1] if good else None


def _meets_its_port(repository: MemoryRepository, commits: MemoryCommits) -> None:
    _repository: Repository = repository
    _commits: CompileMemory = commits
