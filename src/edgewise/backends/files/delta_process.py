"""``python -m edgewise.backends.files.delta_process``: makes one delta beside the hub.

One line of JSON comes (``MakeTask``), lines of JSON go (``Told``). When standard input ends,
the hub is gone: the whole process group is killed, workers included.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgewise.backends.files.delta_files import MakeTask, Told
from edgewise.backends.files.delta_maker import MakeTerms, Side, make_delta
from edgewise.delivery import packing
from edgewise.model.errors import Untrusted
from edgewise.protocol import limits
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Tree, object_path
from edgewise.protocol.delta import DeltaRef
from edgewise.runtime.durable import disk_error

NICE: Final = 15
"""The hub answers nodes on the same cores."""
MEMORY: Final = 2 << 30
"""Bytes of each process: searching large programs takes 600 MiB, so what needs more is a file
that is too large for it, and travels whole."""


class _Absent(Exception):
    """An object that is not here."""


def main() -> int:
    """0 when the delta was made."""
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_die_with_the_hub, daemon=True).start()
    told = _told(msgspec.json.decode(line, type=MakeTask))
    _say(told)
    return 0 if told.ref else 1


def _told(task: MakeTask) -> Told:
    try:
        return Told(ref=_make(task))
    except _Absent as error:
        return Told(absent=str(error))
    except OSError as error:
        problem = disk_error(error, Path(task.scratch))
        return Told(failed=str(problem), hint=problem.hint)
    except MemoryError:
        return Told(failed=f"it needs more than {MEMORY >> 20} MiB of memory")
    except Untrusted as error:
        return Told(failed=str(error), hint="check the hub's disk and memory")


def _make(task: MakeTask) -> DeltaRef:
    content, scratch = Path(task.content), Path(task.scratch)
    base = _side(content, scratch, task.base) if task.base else None
    terms = MakeTerms(
        jobs=task.jobs,
        cache=Path(task.cache),
        recompress=task.recompress,
        progress=_progress(),
    )
    return make_delta(base, _side(content, scratch, task.tree), Path(task.out), terms).ref


def _side(content: Path, scratch: Path, sha256: str) -> Side:
    """A tree, with its objects unpacked into ``scratch`` as they are asked for."""
    manifest = b"".join(_unpacked(content, sha256, limits.TREE))
    tree = decode(manifest, Tree, what="tree", at_most=limits.TREE)

    def opened(wanted: str) -> Path:
        path = scratch / wanted
        if not path.exists():
            waiting = scratch / f"{wanted}.new"
            with waiting.open("wb") as file:
                for chunk in _unpacked(content, wanted, limits.OBJECT):
                    file.write(chunk)
            waiting.rename(path)
        return path

    return Side(tree, sha256, opened)


def _unpacked(content: Path, sha256: str, at_most: int) -> Iterator[bytes]:
    try:
        packed = (content / object_path(sha256)).open("rb")
    except FileNotFoundError:
        raise _Absent(sha256) from None
    with packed:
        yield from packing.unpacked(packed, sha256, at_most=at_most)


def _progress() -> Callable[[int, int], None]:
    last = 0

    def say(done: int, total: int) -> None:
        nonlocal last
        percent = 100 * done // max(1, total)
        if percent > last:
            last = percent
            _say(Told(done=done, total=total))

    return say


def _say(told: Told) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(told) + b"\n")
    sys.stdout.buffer.flush()


def _die_with_the_hub() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
