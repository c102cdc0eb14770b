"""Where a build comes from: git, and the variables by which CI systems say who runs.

Only the variables named here are read, and URLs lose their user names and passwords: what is
published must hold no secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from edgewise.cli.local import git_answer
from edgewise.model.errors import NeedsPerson

if TYPE_CHECKING:
    from edgewise.delivery.provenance import Origin


def origin_of(directory: Path, parameters: Mapping[str, Any]) -> Origin:
    """What git says of ``directory``, and CI of itself. CI knows the repository better: a
    runner's clone may be called anything."""
    from edgewise.delivery.provenance import LOCAL, Origin

    ci = from_ci(os.environ)
    commit = _git(directory, "rev-parse", "--verify", "--quiet", "HEAD")
    remote = without_secrets(_git(directory, "remote", "get-url", "origin")) if commit else ""
    if commit and commit != ci.get("commit"):  # another repository than the one CI speaks of
        ci = {"builder": ci["builder"]} if ci else {}
    # What was built may be ignored by git, so only files that git knows count as changed.
    changed = bool(commit) and bool(_git(directory, "status", "--porcelain", "-uno"))
    return Origin(
        builder=ci.get("builder", LOCAL),
        commit=commit or ci.get("commit", ""),
        repository=ci.get("repository", remote),
        ref=ci.get("ref", ""),
        changed=changed,
        parameters=parameters,
    )


def place_of(source: Path) -> str:
    """A source as provenance names it: below its git repository, or its last name alone."""
    top = _git(source, "rev-parse", "--show-toplevel")
    whole = source.resolve()
    if top and whole.is_relative_to(top):
        return whole.relative_to(top).as_posix()
    return whole.name


def _git(place: Path, *arguments: str) -> str:
    """Empty when git is not there, or says nothing."""
    try:
        return git_answer(place if place.is_dir() else place.parent, *arguments) or ""
    except NeedsPerson:
        return ""


def from_ci(environ: Mapping[str, str]) -> dict[str, str]:
    """``builder``, ``repository``, ``commit`` and ``ref`` as GitHub Actions and GitLab CI say
    them; empty elsewhere. Numbers of runs are left out: they would make each build differ."""
    if environ.get("GITHUB_ACTIONS") == "true":
        server = environ.get("GITHUB_SERVER_URL", "https://github.com")
        found = {
            "builder": f"{server}/{environ.get('GITHUB_WORKFLOW_REF', '')}",
            "repository": f"{server}/{environ.get('GITHUB_REPOSITORY', '')}",
            "commit": environ.get("GITHUB_SHA", ""),
            "ref": environ.get("GITHUB_REF", ""),
        }
    elif environ.get("GITLAB_CI") == "true":
        project = environ.get("CI_PROJECT_URL", "")
        job = environ.get("CI_JOB_NAME", "")
        found = {
            "builder": f"{project}//{environ.get('CI_CONFIG_PATH') or '.gitlab-ci.yml'}#{job}",
            "repository": project,
            "commit": environ.get("CI_COMMIT_SHA", ""),
            "ref": environ.get("CI_COMMIT_REF_NAME", ""),
        }
    else:
        return {}
    return {key: without_secrets(value) for key, value in found.items() if value}


def without_secrets(url: str) -> str:
    """``https://user:token@host/x?y`` as ``https://host/x``; ``git@host:x`` as it is."""
    if "://" not in url:
        return "" if url.startswith("/") else url  # a path says something of this machine only
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", parts.fragment))
