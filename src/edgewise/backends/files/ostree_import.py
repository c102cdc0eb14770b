"""From a commit in an OSTree repository to a tree in a build folder: the files of an archive
repository that has this commit alone, so a static file server could serve them.

Source: ostree(1), ostree-pull-local(1), "OSTree repository: archive" in libostree's manual. The
``ostree`` program copies and checks the objects; every one is named by its own checksum.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edgewise.backends.files.builds import BuildFolder
from edgewise.delivery.images import with_directories
from edgewise.delivery.trees import make_tree
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.protocol.content import Entry, TreeRef

CALL_S: Final = 3600.0
"""Seconds for one call of ostree: a large repository on a slow disk."""
_KEPT = re.compile(r"(objects|deltas|delta-indexes|refs/heads)/[\w./+=-]+")
_REF = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_OLDER = re.compile(_REF.pattern + r"\^*", re.ASCII)


def import_commit(
    folder: BuildFolder, repo: Path, ref: str, static_delta: str = ""
) -> tuple[TreeRef, str]:
    """The tree, and the commit's checksum. ``static_delta`` is a commit or ref of the same
    repository: a static delta from it is made too.

    Raises BadUsage for what is no repository or ref, NeedsPerson where ostree is missing.
    """
    if not _REF.fullmatch(ref) or not _OLDER.fullmatch(static_delta or ref):
        raise BadUsage(f"{ref[:100]!r} is not the name of a ref", hint="ostree refs --repo=REPO")
    if shutil.which("ostree") is None:
        raise NeedsPerson("the program ostree is missing", hint="apt-get install ostree")
    source = str(repo.resolve())
    with tempfile.TemporaryDirectory(prefix="edgewise-ostree-", dir=_beside(folder)) as scratch:
        made = f"{scratch}/repo"
        _ostree(made, "init", "--mode=archive")
        # Pulled by the ref's name, so that refs/heads has it; checksums are checked.
        _ostree(made, "pull-local", "--untrusted", source, ref)
        commit = _ostree(made, "rev-parse", ref).strip()
        entries = list(_entries(folder, Path(made)))
        if static_delta:
            old = _ostree(source, "rev-parse", static_delta).strip()
            _ostree(made, "pull-local", "--untrusted", source, old)
            _ostree(made, "static-delta", "generate", f"--from={old}", f"--to={commit}")
            _ostree(made, "summary", "--update")  # where clients look for deltas
            entries += list(_entries(folder, Path(made), only=("delta", "summary")))
    return folder.add_manifest(make_tree(with_directories(entries))), commit


def _entries(folder: BuildFolder, repo: Path, only: str | tuple[str, ...] = "") -> Iterator[Entry]:
    for above, _, names in os.walk(repo):
        for name in names:
            file = Path(above, name)
            path = str(file.relative_to(repo))
            if path not in ("config", "summary") and not _KEPT.fullmatch(path):
                continue
            if not path.startswith(only):
                continue
            with file.open("rb") as content:
                sha256, size = folder.keep(content)
            yield Entry(path, "file", 0o644, size, sha256)


def _beside(folder: BuildFolder) -> Path:
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder.path


def _ostree(repo: str, verb: str, *words: str) -> str:
    try:
        done = subprocess.run(
            ["ostree", verb, *words[:1], f"--repo={repo}", *words[1:]]
            if verb == "static-delta"
            else ["ostree", f"--repo={repo}", verb, *words],
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NeedsPerson(f"ostree {verb} did not end within {CALL_S} s") from error
    if done.returncode != 0:
        raise BadUsage(f"ostree {verb}: {done.stderr.strip()[-500:]}")
    return done.stdout
