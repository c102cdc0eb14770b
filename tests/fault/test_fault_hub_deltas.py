"""What can go wrong while a hub makes deltas: it dies, its files are damaged."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from random import Random

from edgewise.backends.files.delta_files import FileDeltas
from edgewise.backends.files.objects import FileObjects
from edgewise.delivery.trees import make_tree, reference
from edgewise.model.names import Digest
from edgewise.protocol.content import Entry

HUB = """
import asyncio, sys
from pathlib import Path
from edgewise.backends.files.delta_files import FileDeltas
place = Path(sys.argv[1])
maker = FileDeltas(place / "content", place / "deltas", jobs=2)
asyncio.run(maker.make(sys.argv[2], sys.argv[3], at_most=1 << 40, progress=lambda a, b: None))
"""


async def kept_tree(place: Path, version: int) -> str:
    """A tree that takes seconds to make a delta to."""
    objects, entries = FileObjects(place / "content"), []
    for number in range(24):
        data = bytearray(b"\x7fELF" + Random(number).randbytes(900_000))
        for at in range(0, len(data), 400):
            data[at] = (data[at] + version) % 256
        digest = Digest.of(bytes(data)).sha256
        entries.append(Entry(f"f{number:02}", "file", 0o644, len(data), digest))
        await objects.put(digest, bytes(data))
    ref, manifest = reference(make_tree(entries))
    await objects.put(ref.sha256, manifest)
    return ref.sha256


def group_of(parent: int) -> int:
    """The process group of the maker that this process started; 0 for none."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            words = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"delta_process" in words:
            return int(fields[2])
    return 0


def members(group: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(stat.parent.name))
    return found


async def test_a_hub_that_is_killed_over_a_delta_leaves_no_process_and_no_file(
    tmp_path: Path,
) -> None:
    old, new = await kept_tree(tmp_path, 1), await kept_tree(tmp_path, 2)
    hub = await asyncio.create_subprocess_exec(sys.executable, "-c", HUB, str(tmp_path), old, new)
    group = 0
    while not group or len(members(group)) < 3:  # the maker and its two workers
        assert hub.returncode is None
        await asyncio.to_thread(os.sched_yield)
        group = group or group_of(hub.pid)
    hub.send_signal(signal.SIGKILL)
    await hub.wait()
    while members(group):
        await asyncio.to_thread(os.sched_yield)
    assert [one for one in (tmp_path / "content" / "deltas").rglob("*.ewd")] == []
    again = FileDeltas(tmp_path / "content", tmp_path / "deltas", jobs=2)
    assert [one.name for one in (tmp_path / "deltas").iterdir()] == ["pairs"]
    assert again.kept() == ()
