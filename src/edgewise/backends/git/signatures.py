"""Commit signatures: who may move the fleet, judged by rules that the commit cannot change.

The mode and the allowed signers are read from the **last good revision**, never from the
commit under judgement, so nobody can add their own key, or switch the check off, in the same
push. The first revision of all has no predecessor: it is judged by its own rules (trust on
first use), or by a file that the operator pins.

Only SSH signatures count (git-config(1) gpg.ssh.allowedSignersFile, ssh-keygen(1) ALLOWED
SIGNERS): OpenPGP and X.509 ones would be judged by whatever keyring the hub's user has.

Where a check is on, the head must also descend from the last good revision: otherwise an
old, honestly signed commit could be pushed again to bring an old release back.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import yaml

from edgewise.backends.git.repository import GitRepository
from edgewise.model.errors import NeedsPerson, Untrusted
from edgewise.sync.ports import CommitCheck

Mode = Literal["off", "HEAD", "all"]
_MODES = ("off", "HEAD", "all")
WORKSPACE = "edgewise.yaml"
DEFAULT_SIGNERS = ".edgewise/allowed_signers"
MAX_COMMITS = 1000
"""Of one push in mode ``all``; each costs one ssh-keygen process."""

_GOOD = re.compile(r'Good "git" signature for (\S+) with')
_UNKNOWN_KEY = re.compile(r'Good "git" signature with (\S+) key (\S+)')


@dataclass(frozen=True, slots=True)
class Rules:
    """Workspace.spec.verification of one revision."""

    mode: Mode = "off"
    signers: str = DEFAULT_SIGNERS


class CommitSignatures:
    """sync.ports.CommitCheck by ``git verify-commit``.

    ``pinned``: an allowed_signers file outside the repository that judges the first
    revision, and so decides who may connect a repository at all.
    """

    def __init__(self, repository: GitRepository, *, pinned: Path | None = None) -> None:
        self._repository = repository
        self._pinned = pinned

    async def check(self, commit: str, previous: str | None) -> str:
        """Who signed ``commit``; empty where the rules ask for no signature.

        ``previous`` is the last good revision, None before the first. Raises Untrusted with
        the commit and the reason, NeedsPerson when the check itself cannot be made.
        """
        rules, signers = await self._judge_by(commit, previous)
        if rules.mode == "off" or commit == previous:
            return ""
        if shutil.which("ssh-keygen") is None:
            raise NeedsPerson(
                "commit signatures cannot be checked: ssh-keygen is not installed",
                hint="install openssh-client (Debian, Ubuntu) or openssh-clients (Fedora)",
            )
        if previous is not None and not await self._repository.descends(commit, previous):
            raise Untrusted(
                f"{_short(commit)} does not follow the last good revision {_short(previous)}: "
                f"{self._repository.branch} was rewritten",
                hint="put a signed commit on top of it; `git revert` goes back to older content",
            )
        commits = await self._commits(rules.mode, commit, previous)
        with tempfile.TemporaryDirectory(prefix="edgewise-signers-") as folder:
            allowed = Path(folder) / "allowed_signers"
            allowed.write_bytes(signers)
            # Oldest first: the first bad commit is the one to name.
            return [await self._verify(one, allowed, rules) for one in commits][-1]

    async def required(self, revision: str) -> bool:
        """Whether the rules of ``revision`` ask for signed commits on top of it."""
        return self._pinned is not None or (await self._rules(revision)).mode != "off"

    async def _judge_by(self, commit: str, previous: str | None) -> tuple[Rules, bytes]:
        if previous is None and self._pinned is not None:
            mode = (await self._rules(commit)).mode
            strict: Mode = "HEAD" if mode == "off" else mode
            return Rules(strict, str(self._pinned)), self._pinned.read_bytes()
        judge = previous or commit
        rules = await self._rules(judge)
        if rules.mode == "off":
            return rules, b""
        signers = await self._repository.file(judge, rules.signers)
        if signers is None:
            raise Untrusted(
                f"{WORKSPACE} of {_short(judge)} asks for signed commits, "
                f"but {rules.signers} is not in that revision",
                hint="add the file with one line per person: `you@example.org ssh-ed25519 AAAA...`",
            )
        return rules, signers

    async def _rules(self, revision: str) -> Rules:
        data = await self._repository.file(revision, WORKSPACE)
        return Rules() if data is None else read_rules(data, revision)

    async def _commits(self, mode: Mode, commit: str, previous: str | None) -> list[str]:
        if mode != "all" or previous is None:
            return [commit]
        out = await self._repository.git.run(
            "rev-list", "--reverse", f"--max-count={MAX_COMMITS + 1}",
            "--end-of-options", f"{previous}..{commit}",
        )  # fmt: skip
        commits = out.decode().split()
        if len(commits) > MAX_COMMITS:
            raise NeedsPerson(
                f"more than {MAX_COMMITS} commits came since {_short(previous)}; "
                "their signatures are not checked one by one",
                hint=f"push at most {MAX_COMMITS} commits at a time, or use verification mode HEAD",
            )
        return commits

    async def _verify(self, commit: str, allowed: Path, rules: Rules) -> str:
        done = await self._repository.git.attempt(
            "-c", f"gpg.ssh.allowedSignersFile={allowed}",
            # Only SSH counts: no other verifier is ever asked.
            "-c", "gpg.program=/bin/false",
            "-c", "gpg.openpgp.program=/bin/false",
            "-c", "gpg.x509.program=/bin/false",
            "-c", "gpg.ssh.program=ssh-keygen",
            "-c", "gpg.minTrustLevel=fully",
            "verify-commit", "--", commit,
        )  # fmt: skip
        good = _GOOD.search(done.err)
        if done.status == 0 and good:
            return good.group(1)
        why = await self._reason(commit, done.err, rules)
        raise Untrusted(
            f"{_short(commit)} {why}",
            hint=f"sign it with a key in {rules.signers} of the last good revision: "
            "`git commit --amend --no-edit -S`",
        )

    async def _reason(self, commit: str, said: str, rules: Rules) -> str:
        unknown = _UNKNOWN_KEY.search(said)
        if unknown:
            return f"is signed by {unknown.group(2)}, which {rules.signers} does not list"
        raw = await self._repository.git.run("cat-file", "commit", commit)
        header = raw.partition(b"\n\n")[0]
        if b"\ngpgsig" not in header:
            return "is not signed"
        if b"BEGIN SSH SIGNATURE" not in header:
            return "is signed, but not with an SSH key (gpg.format=ssh)"
        return "has a signature that does not verify: " + (
            " ".join(said.split())[:300] or "damaged"
        )


def read_rules(data: bytes, revision: str) -> Rules:
    """Workspace.spec.verification from the bytes of edgewise.yaml.

    Raises Untrusted for a document that cannot be understood: an unreadable rule must not
    mean no rule.
    """
    try:
        documents = list(yaml.safe_load_all(data))
    except yaml.YAMLError as error:
        raise Untrusted(
            f"{WORKSPACE} of {_short(revision)} cannot be read, so neither can its signature rules",
            hint=str(error)[:300],
        ) from error
    workspaces = [
        one for one in documents if isinstance(one, dict) and one.get("kind") == "Workspace"
    ]
    if not workspaces:
        return Rules()
    spec = _mapping(workspaces[0], "spec", revision)
    given = _mapping(spec, "verification", revision)
    mode = given.get("mode", "off")
    mode = "off" if mode is False else mode  # YAML 1.1 reads a bare `off` as false
    signers = given.get("allowedSigners", DEFAULT_SIGNERS)
    if mode not in _MODES or not isinstance(signers, str) or not signers:
        raise Untrusted(
            f"{WORKSPACE} of {_short(revision)}: verification {mode!r} with {signers!r} is no rule",
            hint="mode is off, HEAD or all; allowedSigners is a path in the repo",
        )
    return Rules(cast(Mode, mode), signers)


def _mapping(parent: Mapping[str, object], key: str, revision: str) -> Mapping[str, object]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Untrusted(f"{WORKSPACE} of {_short(revision)}: {key} is not a mapping")
    return value


def _short(commit: str) -> str:
    return f"commit {commit[:12]}"


def _meets_its_port(check: CommitSignatures) -> CommitCheck:
    return check
