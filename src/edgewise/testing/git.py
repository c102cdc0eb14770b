"""Real git repositories for tests: a clone to commit in, keys to sign with."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_IDENTITY = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


class WorkTree:
    """A person's clone at ``path``; every method runs the real git and blocks."""

    def __init__(self, path: Path, *, branch: str = "main") -> None:
        self.path = path
        self.branch = branch
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", f"--initial-branch={branch}")

    def git(
        self, *arguments: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``git ARGUMENTS`` in the clone; its output, or AssertionError with what it said."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.path,
            env={**os.environ, **_IDENTITY, **(env or {})},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"git {' '.join(arguments)}: {done.stderr}")
        return done

    def write(self, files: Mapping[str, str | bytes]) -> None:
        """Put files into the clone and stage them."""
        for name, content in files.items():
            target = self.path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        self.git("add", "--all")

    def commit(
        self,
        files: Mapping[str, str | bytes] | None = None,
        message: str = "change",
        *,
        sign: Path | None = None,
    ) -> str:
        """A commit with ``files``, signed with the SSH key ``sign`` if given; its id."""
        self.write(files or {})
        signing = (
            ("-c", "gpg.format=ssh", "-c", f"user.signingKey={sign}", "commit", "-S")
            if sign
            else ("commit", "--no-gpg-sign")
        )
        self.git(*signing, "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").stdout.strip()

    def forge(self, commit: str, header: bytes) -> str:
        """A copy of ``commit`` with one more header, checked out; for forged signatures."""
        raw = subprocess.run(
            ["git", "cat-file", "commit", commit],
            cwd=self.path,
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout
        head, _, message = raw.partition(b"\n\n")
        forged = subprocess.run(
            ["git", "hash-object", "-t", "commit", "-w", "--stdin"],
            input=head + b"\n" + header + b"\n\n" + message,
            cwd=self.path,
            capture_output=True,
            check=True,
            timeout=30,
        )
        found = forged.stdout.decode().strip()
        self.git("reset", "--quiet", "--hard", found)
        return found

    def push(self, url: str, refspec: str = "", *options: str) -> str:
        """Push to ``url``; what git printed."""
        return self.git("push", *options, url, refspec or self.branch).stderr


def signing_key(path: Path) -> str:
    """A new ed25519 SSH key at ``path``; its public half, as allowed_signers wants it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)],
        check=True,
        capture_output=True,
        timeout=30,
    )
    kind, key, *_ = path.with_suffix(".pub").read_text().split()
    return f"{kind} {key}"
