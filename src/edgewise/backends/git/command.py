"""Running git: bounded in time and output, never asking anybody anything.

Every git process of the hub starts here or in net/git_http.py. Foreign errors stop here:
what git says on standard error becomes TryLater, NeedsPerson or NotFound with git's words.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from edgewise.model.errors import EdgewiseError, NeedsPerson, NotFound, TryLater

MAX_OUTPUT = 320 << 20
"""Bytes read from one git process: the 256 MiB of YAML of the largest snapshot, and headers."""

# What would point git at another repository or another index than the one we name.
_STEERING = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")

_NOT_THERE = re.compile(
    r"Needed a single revision|unknown revision|bad revision|not a valid object name"
    r"|bad object|couldn't find remote ref|[Bb]ad file|Not a valid commit name",
)
_PERSON = re.compile(
    r"Authentication failed|could not read Username|could not read Password|Permission denied"
    r"|dubious ownership|not a git repository|does not appear to be a git repository"
    r"|[Rr]epository.*not found|returned error: 40[134]|Host key verification failed"
    r"|No space left|protocol '.*' is not supported|transport '.*' not allowed"
    r"|not our ref|refusing to fetch|fsck error",
)
_HINTS = (
    (
        re.compile(r"Authentication failed|could not read|Permission denied|error: 40[13]"),
        "give the hub's user credentials for this URL in its git config "
        "(credential.helper, http.<url>.extraHeader) or GIT_SSH_COMMAND",
    ),
    (
        re.compile(r"dubious ownership"),
        "run `git config --global --add safe.directory PATH` as the hub's user",
    ),
    (
        re.compile(r"Host key verification failed"),
        "add the server's host key to known_hosts of the hub's user",
    ),
    (re.compile(r"No space left"), "free space on the hub's data directory"),
    (
        re.compile(r"not found|not a git repo|not appear to be a git repo|error: 404"),
        "check the repository's URL",
    ),
)


@dataclass(frozen=True, slots=True)
class Finished:
    """A git process that ended: its exit status and what it said."""

    status: int
    out: bytes
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without what steers git elsewhere, and with no way to ask a person.

    Credentials stay where git's user put them: git config, credential helpers, an SSH agent.
    """
    env = {name: value for name, value in os.environ.items() if name not in _STEERING}
    env.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")
    env.update(LC_ALL="C", GIT_TERMINAL_PROMPT="0", GIT_OPTIONAL_LOCKS="0", GIT_PAGER="cat")
    return {**env, **(extra or {})}


class Git:
    """git, on one repository. ``timeout`` bounds every call that names no other."""

    def __init__(self, directory: Path, *, timeout: timedelta = timedelta(seconds=60)) -> None:
        self.directory = directory
        self._timeout = timeout

    async def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        timeout: timedelta | None = None,
        env: Mapping[str, str] | None = None,
    ) -> bytes:
        """Standard output of ``git ARGUMENTS``. ``env``: in addition to ``environment``.

        Raises NotFound for an unknown revision, TryLater for what may pass (network,
        timeout), NeedsPerson for what will not (credentials, ownership, a full disk).
        """
        done = await self.attempt(*arguments, stdin=stdin, timeout=timeout, env=env)
        if done.status:
            raise failure(arguments, done)
        return done.out

    async def attempt(
        self,
        *arguments: str,
        stdin: bytes = b"",
        timeout: timedelta | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Finished:
        """Like ``run``, but the exit status is the caller's to judge."""
        limit = timeout or self._timeout
        try:
            process = await asyncio.create_subprocess_exec(
                "git",
                f"--git-dir={self.directory}",
                *arguments,
                # A process that needs no input may be gone before an empty one is written.
                stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environment(env),
            )
        except FileNotFoundError as error:
            raise NeedsPerson(
                "the git command is not installed", hint="install git 2.34 or newer"
            ) from error
        try:
            async with asyncio.timeout(limit.total_seconds()):
                out, err = await process.communicate(stdin or None)
        except RuntimeError as error:
            # uvloop's word for a pipe whose other end has closed.
            raise TryLater(f"git {_verb(arguments)} ended before it read its input") from error
        except TimeoutError as error:
            raise TryLater(
                f"git {_verb(arguments)} took longer than {limit.total_seconds():g} s"
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if len(out) > MAX_OUTPUT:
            raise NeedsPerson(f"git {_verb(arguments)} printed {len(out)} bytes, more than we read")
        return Finished(process.returncode or 0, out, err.decode(errors="replace")[:8192])


def failure(arguments: tuple[str, ...], done: Finished) -> EdgewiseError:
    """The error for a git process that ended badly, sorted by what the caller does next."""
    said = _said(done.err) or f"exit status {done.status}"
    what = f"git {_verb(arguments)}: {said}"
    hint = next((text for pattern, text in _HINTS if pattern.search(done.err)), "")
    if _NOT_THERE.search(done.err):
        return NotFound(what, hint="`git log` in your clone lists the commits")
    if _PERSON.search(done.err):
        return NeedsPerson(what, hint=hint)
    return TryLater(what, hint=hint)


def _verb(arguments: tuple[str, ...]) -> str:
    """The verb among ``-c name=value --option VERB ...``."""
    skip = 0
    while arguments[skip].startswith("-"):
        skip += 2 if arguments[skip] == "-c" else 1
    return arguments[skip]


def _said(err: str) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("fatal:", "error:", "remote:"))]
    return "; ".join((telling or lines)[:3])[:1000]
