"""The agent reads what it keeps, slowly, and says what rotted."""

import asyncio
import hashlib
import os
from datetime import timedelta
from pathlib import Path

from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.files.scrubbing import PIECE
from edgewise.protocol.content import Attributes
from edgewise.protocol.installed import Installed
from edgewise.roles.agent import SCRUB_PAUSE, keep_content
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog

RELEASE = "ab" * 32


def rotten(root: Path, contents: list[bytes]) -> list[str]:
    """A node with these contents, each of which has lost a bit since it was sealed."""
    store, digests = NodeStore(root), [hashlib.sha256(data).hexdigest() for data in contents]
    with store.fetching():
        for sha256, data in zip(digests, contents, strict=True):
            store.keep_file(sha256, Attributes(0o644), iter([data]))
        store.begin(RELEASE)
        store.finish(Installed(RELEASE, "n", "linux/amd64"), {})
    for sha256 in digests:
        path = root / "store" / "objects" / sha256[:2] / f"{sha256[2:]}-644"
        about = path.stat()
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    return digests


async def test_an_agent_says_within_a_day_what_rotted_and_says_it_once(tmp_path: Path) -> None:
    digests = rotten(tmp_path, [os.urandom(2 * PIECE), b"small", b"also small"])
    clock, log = ManualClock(), ListLog()
    task = asyncio.ensure_future(keep_content(tmp_path, clock, SeededChance(1), log))
    await asyncio.sleep(0)
    await clock.run_for(SCRUB_PAUSE / 2)
    assert log.lines == [], "not while the node starts"
    await clock.run_for(timedelta(days=1))
    said = [fields["object"] for what, fields in log.lines if what == "kept content is damaged"]
    assert sorted(said) == sorted(digests)
    await clock.run_for(timedelta(days=3))
    assert len(log.lines) == len(digests), "it has no seal any more, and is hashed before use"
    task.cancel()


async def test_a_large_store_is_read_over_a_long_time(tmp_path: Path) -> None:
    (sha256,) = rotten(tmp_path, [os.urandom(10 * PIECE)])
    clock, log = ManualClock(), ListLog()
    task = asyncio.ensure_future(keep_content(tmp_path, clock, SeededChance(1), log))
    await asyncio.sleep(0)
    await clock.run_for(9 * SCRUB_PAUSE)
    assert log.lines == []
    await clock.run_for(3 * SCRUB_PAUSE)
    assert [fields["object"] for _, fields in log.lines] == [sha256]
    task.cancel()
