"""rollout.ports.Reverts over the git command: undoing the commits of a failed rollout.

What is undone is the net change from the fleet's last good revision to the one that failed,
as one commit on top of the branch: a three-way merge with the failed revision as base, which
is what git-revert(1) does for a single commit. The commit carries trailers, by which a
repeat after a crash finds it, and by which a revert is never itself reverted.

Where the hub may not write (a followed repository that refuses, or commits that must be
signed by a person), it says which command to run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from edgewise.backends.git.command import failure
from edgewise.backends.git.repository import GitRepository
from edgewise.backends.git.signatures import CommitSignatures
from edgewise.model.errors import NeedsPerson, NotFound, TryLater
from edgewise.rollout.ports import Revert, Reverted, Reverts

TRAILER: Final = "Edgewise-Rollout"
AUTHOR: Final = "edgewise"
PUSH_TIMEOUT: Final = timedelta(minutes=2)
_REFUSED: Final = ("rejected", "declined", "denied", "returned error: 4", "protected")
"""Words of a server that has answered: asking again cannot help."""


@dataclass(frozen=True, slots=True)
class _Case:
    """One revert: what failed, what was good, and where the branch is now."""

    wanted: Revert
    bad: str
    good: str
    head: str

    @property
    def branch(self) -> str:
        """Where a revert that a person merges is put."""
        return f"edgewise/revert-{self.bad[:12]}"


class _ByHand(Exception):
    """The hub cannot; the text says why."""


class GitReverts:
    """Reverts on one fleet repo, the hub's own or a followed one."""

    def __init__(self, repository: GitRepository, signatures: CommitSignatures) -> None:
        self._repository = repository
        self._signatures = signatures

    async def revert(self, wanted: Revert) -> Reverted:
        """Undo what failed. Raises TryLater while the repository cannot be reached."""
        bad = wanted.revision.rpartition(":")[2]
        good = wanted.good.rpartition(":")[2]
        try:
            case = await self._case(wanted, bad, good)
            commit = await self._made_before(case) or await self._make(case)
            return await self._place(case, commit)
        except (_ByHand, NotFound, NeedsPerson) as error:
            return Reverted(False, f"commit {bad[:12]} is not reverted: {error}")

    async def _case(self, wanted: Revert, bad: str, good: str) -> _Case:
        repository = self._repository
        await repository.refresh()
        head = await repository.head()
        if f"\n{TRAILER}: " in await self._message(bad):
            raise _ByHand("it is itself a revert by Edgewise, and those are not reverted again")
        if not good:
            raise _ByHand("the fleet has no earlier revision to go back to")
        if head is None or not await repository.descends(head, bad):
            raise _ByHand(f"{repository.branch} does not contain it any more")
        if not await repository.descends(bad, good):
            raise _ByHand(f"it does not follow {good[:12]}, which the fleet runs again")
        return _Case(wanted, bad, good, head)

    async def _message(self, commit: str) -> str:
        raw = await self._repository.git.run("cat-file", "commit", commit)
        return raw.partition(b"\n\n")[2].decode(errors="replace")

    async def _made_before(self, case: _Case) -> str:
        """The commit of an earlier try, when it is on the branch already."""
        found = await self._repository.git.run(
            "log", "--format=%H", "--max-count=1", "--fixed-strings",
            f"--grep={TRAILER}: {case.wanted.rollout}",
            "--end-of-options", f"{case.bad}..{case.head}",
        )  # fmt: skip
        return found.decode().strip()

    async def _make(self, case: _Case) -> str:
        """The commit that undoes it, on nobody's branch yet. The same try gives the same id."""
        git = self._repository.git
        before = await self._tree(case.head)
        tree = await self._tree(case.good) if case.head == case.bad else await self._merged(case)
        if tree == before:
            raise _ByHand(f"{self._repository.branch} has nothing left of it")
        when = f"{int(case.wanted.at.timestamp())} +0000"
        people = {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", AUTHOR), ("EMAIL", f"{AUTHOR}@localhost"), ("DATE", when))
        }
        made = await git.run(
            "-c", "commit.gpgSign=false", "commit-tree", tree, "-p", case.head, "-F", "-",
            stdin=(await self._words(case)).encode(), env=people,
        )  # fmt: skip
        return made.decode().strip()

    async def _words(self, case: _Case) -> str:
        wanted = case.wanted
        subject = (await self._message(case.bad)).strip().split("\n", 1)[0][:120]
        listed = await self._repository.git.run(
            "rev-list", "--count", "--end-of-options", f"{case.good}..{case.bad}"
        )
        several = int(listed) > 1
        what = f"commits {case.good}..{case.bad}" if several else f"commit {case.bad}"
        reason = " ".join(wanted.reason.split())[:500]
        return (
            f'Revert "{subject}"\n\nThis reverts {what}.\n\n'
            f"Its rollout {wanted.rollout} to fleet {wanted.fleet} ended {wanted.state}:\n"
            f"{reason}\n\n{TRAILER}: {wanted.rollout}\n"
        )

    async def _tree(self, commit: str) -> str:
        found = await self._repository.git.run("rev-parse", "--verify", f"{commit}^{{tree}}")
        return found.decode().strip()

    async def _merged(self, case: _Case) -> str:
        """The branch's newest tree without what came between good and bad."""
        git = self._repository.git
        with tempfile.TemporaryDirectory(prefix="revert-", dir=git.directory) as folder:
            place = Path(folder)
            (place / "tree").mkdir()
            env = {"GIT_INDEX_FILE": str(place / "index")}
            here = ("-c", "core.bare=false", f"--work-tree={place / 'tree'}")
            await git.run(*here, "read-tree", case.head, env=env)
            await git.run(*here, "checkout-index", "--all", "--index", "--quiet", env=env)
            done = await git.attempt(
                *here, "merge-recursive", case.bad, "--", case.head, case.good, env=env
            )
            if done.status:
                said = (done.out.decode(errors="replace") + done.err).splitlines()
                conflicts = [line for line in said if line.startswith("CONFLICT")]
                first = conflicts[0] if conflicts else " ".join(said)[:300]
                raise _ByHand(
                    f"later commits changed the same lines ({first}); {_by_hand(case)} and resolve"
                )
            return (await git.run(*here, "write-tree", env=env)).decode().strip()

    async def _place(self, case: _Case, commit: str) -> Reverted:
        repository = self._repository
        good = f"back to {case.good[:12]}"
        if await repository.descends(case.head, commit):
            return Reverted(True, f"commit {commit[:12]} reverts {case.bad[:12]}, {good}")
        if repository.origin.url:
            return await self._push(case, commit)
        ref, old, why, sign = repository.ref, case.head, "", ""
        if case.wanted.request:
            why = "the policy asks a person to merge it"
        elif await self._signatures.required(await repository.accepted() or case.head):
            why, sign = "commits have to be signed by a person here", " -S"
        if why:
            ref, old = f"refs/heads/{case.branch}", ""
        words = f"edgewise: rollout {case.wanted.rollout} failed"
        expected = (old,) if old else ()
        done = await repository.git.attempt(
            "update-ref", "-m", words, "--create-reflog", ref, commit, *expected
        )
        if done.status:
            raise TryLater(f"{ref} cannot be moved now: {done.err.strip()[:300]}")
        if not why:
            return Reverted(True, f"commit {commit[:12]} reverts {case.bad[:12]}, {good}")
        return Reverted(
            False,
            f"branch {case.branch} of the hub's repository reverts {case.bad[:12]}, {good}; "
            f"{why}: `edgewise fetch`, `git cherry-pick{sign} edgewise/{case.branch}` and "
            "`edgewise push` take it over",
        )

    async def _push(self, case: _Case, commit: str) -> Reverted:
        """A branch at the followed repository, where it lets us."""
        url = self._repository.origin.url
        arguments = (
            "push", "--quiet", "--end-of-options", url, f"+{commit}:refs/heads/{case.branch}",
        )  # fmt: skip
        done = await self._repository.git.attempt(*arguments, timeout=PUSH_TIMEOUT)
        if not done.status:
            return Reverted(
                False,
                f"branch {case.branch} reverts {case.bad[:12]}, back to {case.good[:12]}: "
                f"merge it into {self._repository.branch} at your git server",
            )
        error = failure(arguments, done)
        if isinstance(error, TryLater) and not any(word in done.err for word in _REFUSED):
            raise error
        raise _ByHand(f"the hub may not push to {url} ({error}); {_by_hand(case)} and push it")


def _by_hand(case: _Case) -> str:
    return f"run `git revert {case.good[:12]}..{case.bad[:12]}` in a clone"


def _meets_its_port(reverts: GitReverts) -> Reverts:
    return reverts
