"""What verbs that compile on this machine need: a clone, and what the hub knows."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted

if TYPE_CHECKING:
    from securesystemslib.signer import Key
    from tuf.api.metadata import TargetFile

    from edgewise.cli.client import Client
    from edgewise.protocol.content import Artifact
    from edgewise.sync.ports import Snapshot

_ARTIFACTS = "artifacts/"


def is_clone(directory: Path) -> bool:
    """Whether git finds a repository from here."""
    return git_answer(directory, "rev-parse", "--git-dir") is not None


def fleet_repo_here() -> Path | None:
    """The clone that the current directory is in, when it is one of a fleet repo."""
    top = git_answer(Path(), "rev-parse", "--show-toplevel")
    return Path(top) if top and (Path(top) / "edgewise.yaml").exists() else None


def known_here(revision: str) -> str:
    """``HEAD~2`` or a branch as the clone we are in knows it; anything else as it is."""
    here = fleet_repo_here()
    if here is None or "@" in revision or revision.startswith("-"):
        return revision
    return (
        git_answer(here, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}") or revision
    )


def commit_of(repo: Path, revision: str) -> str:
    """The full id of a revision in a clone. Raises BadUsage for what git does not find."""
    if not repo.is_dir():
        raise BadUsage(f"{repo} is not a directory", hint="name your clone of the fleet repo")
    wanted = revision.rpartition("@sha1:")[2]
    found = git_answer(
        repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{wanted}^{{commit}}"
    )
    if found is None:
        if not is_clone(repo):
            raise BadUsage(f"{repo} is no git repository", hint="run it in your clone")
        raise BadUsage(
            f"{repo} has no revision {revision[:80]!r}", hint="`git log` lists commits; fetch first"
        )
    return found


def known_hub(repo: Path) -> str:
    """What `edgewise fetch` brought last, as far as it is in the clone; else empty."""
    known = "refs/remotes/edgewise/main"
    return known if git_answer(repo, "rev-parse", "--verify", "--quiet", known) else ""


def snapshot(repo: Path, revision: str) -> Snapshot:
    """The YAML files of one commit, read as the hub reads them."""
    from edgewise.backends.git.repository import GitRepository, Origin

    commit = commit_of(repo, revision)
    folder = git_answer(repo, "rev-parse", "--absolute-git-dir") or str(repo)
    branch = git_answer(repo, "rev-parse", "--abbrev-ref", "HEAD") or "HEAD"
    origin = Origin(branch) if branch != "HEAD" else Origin()
    return asyncio.run(GitRepository(Path(folder), origin).snapshot(commit))


class HubArtifacts(Mapping[tuple[str, str], "Artifact"]):
    """Artifacts that a list of targets names, fetched from the hub when one is asked for.

    Each document's digest is checked, so it is what whoever signed the list meant.
    """

    def __init__(self, client: Client, targets: Mapping[str, TargetFile]) -> None:
        self._client = client
        self._targets = {
            _name_of(path): target
            for path, target in targets.items()
            if path.startswith(_ARTIFACTS)
        }
        self._read = cache(self._fetch)

    def __getitem__(self, key: tuple[str, str]) -> Artifact:
        if key not in self._targets:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)

    def _fetch(self, key: tuple[str, str]) -> Artifact:
        from edgewise.delivery import trust
        from edgewise.protocol import limits
        from edgewise.protocol.codec import decode
        from edgewise.protocol.content import Artifact

        target = self._targets[key]
        data = object_of(self._client, trust.target_digest(target), at_most=limits.PART)
        if not trust.matches(target, data):
            raise Untrusted(f"the hub sent something else as artifact {' '.join(key)}")
        return decode(data, Artifact, what=target.path, at_most=limits.PART)


class HubSigners(Mapping[tuple[str, str], "frozenset[str]"]):
    """Which of ``keys`` signed the provenance of an artifact, found out when one is asked for."""

    def __init__(self, client: Client, artifacts: HubArtifacts, keys: Sequence[Key]) -> None:
        self._client = client
        self._artifacts = artifacts
        self._keys = keys
        self._read = cache(self._fetch)

    def __getitem__(self, key: tuple[str, str]) -> frozenset[str]:
        return self._read(key)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._artifacts)

    def __len__(self) -> int:
        return len(self._artifacts)

    def _fetch(self, key: tuple[str, str]) -> frozenset[str]:
        from edgewise.delivery.provenance import read_provenance
        from edgewise.protocol import limits

        artifact = self._artifacts[key]
        if artifact.provenance is None:
            raise KeyError(key)
        data = object_of(self._client, artifact.provenance.sha256, at_most=limits.EVIDENCE)
        return frozenset(read_provenance(data, artifact, self._keys).signed_by)


def object_of(client: Client, sha256: str, *, at_most: int) -> bytes:
    """A small object of the hub's, checked against its name. Raises NotFound, Untrusted."""
    from edgewise.delivery.packing import unpack
    from edgewise.protocol.content import object_path

    packed, _ = client.raw(f"/v1/content/{object_path(sha256)}")
    return unpack(packed, sha256, at_most=at_most)


def _name_of(path: str) -> tuple[str, str]:
    name, _, version = path.removeprefix(_ARTIFACTS).removesuffix(".json").partition("/")
    return name, version


def git_answer(directory: Path, *arguments: str) -> str | None:
    """What git prints, stripped; None when it fails. Raises NeedsPerson without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise NeedsPerson("the git command is not installed", hint="install git") from error
    return done.stdout.strip() if done.returncode == 0 else None
