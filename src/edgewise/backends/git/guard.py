"""git's ``update`` hook of the hub's own repository: who may push is not who may govern.

``python -m edgewise.backends.git.guard FOLLOWED REF OLD NEW``, run by git before it moves a
ref, with the pushed objects at hand (githooks(5), "update"). Exit status 1 refuses the ref;
what is printed is shown to the person who pushes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from edgewise.sync.governing import YAML, changed, signers_of

GOVERNS: Final = "EDGEWISE_PUSHER_GOVERNS"
"""Set to 0 by net/git_http.py for pushers who are no administrators. It is not set for a push
on the hub's own machine: whoever writes to that directory owns the hub."""
LARGEST: Final = 10 << 20
"""Bytes of one YAML file; the hub reads no larger one either."""
_EMPTY_TREE: Final = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def script(followed: str) -> str:
    """The hook itself. It starts Python only for pushes that have to be looked at."""
    return (
        "#!/bin/sh\n"
        "# Written by the hub at every start; see docs/people.md.\n"
        f'[ "${GOVERNS}" = 0 ] || exit 0\n'
        f'[ "$1" = {followed} ] || exit 0\n'
        f'exec {_quoted(sys.executable)} -m edgewise.backends.git.guard {followed} "$@"\n'
    )


def install(repository: Path, followed: str) -> None:
    """Write the hook of a bare repository that people push to."""
    hook = path_of(repository)
    hook.parent.mkdir(exist_ok=True)
    text = script(followed)
    if not hook.exists() or hook.read_text() != text:
        partial = hook.with_suffix(".partial")
        partial.write_text(text)
        partial.chmod(0o755)
        partial.replace(hook)


def path_of(repository: Path) -> Path:
    """Where git looks for it."""
    return repository / "hooks" / "update"


def judge(old: str, new: str) -> tuple[str, ...]:
    """What governs and would change between two commits of the repository we stand in."""
    before = _EMPTY_TREE if set(old) == {"0"} else old
    if set(new) == {"0"}:
        return ("the branch itself, by removing it",)
    names = _git("diff-tree", "-r", "-z", "--no-renames", "--name-only", before, new)
    paths = [path for path in names.decode(errors="surrogateescape").split("\0") if path]
    yaml = [path for path in paths if path.endswith(YAML)]
    was, now = _files(before, yaml), _files(new, yaml)
    found = list(changed(was.values(), now.values()))
    roots = [*_files(before, ["edgewise.yaml"]).values(), *_files(new, ["edgewise.yaml"]).values()]
    found += sorted(signers_of(roots) & set(paths))
    return tuple(found)


def main(arguments: list[str]) -> int:
    """The hook's decision."""
    followed, ref, old, new = arguments
    if ref != followed:
        return 0
    found = judge(old, new)
    if not found:
        return 0
    print(f"edgewise: this push changes {', '.join(found)[:500]}", file=sys.stderr)
    print("edgewise: that takes the role admin on everything (docs/people.md)", file=sys.stderr)
    return 1


def _files(commit: str, paths: list[str]) -> dict[str, bytes]:
    """Regular files of a commit, as far as the hub would read them."""
    if commit == _EMPTY_TREE or not paths:
        return {}
    listed = _git("ls-tree", "-r", "-z", "-l", "--full-tree", commit)
    wanted, found = set(paths), {}
    for line in listed.split(b"\0"):
        meta, _, name = line.partition(b"\t")
        path = name.decode(errors="surrogateescape")
        if path not in wanted:
            continue
        mode, _, identifier, size = meta.decode().split()
        if mode in ("100644", "100755") and int(size) <= LARGEST:
            found[path] = _git("cat-file", "blob", identifier)
    return found


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], capture_output=True, check=True).stdout


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
