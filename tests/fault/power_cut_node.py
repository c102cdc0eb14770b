"""A node that fetches and activates one release; what it does to the disk is traced.

Usage: power_cut_node.py FILE ROOT. FILE is a pickled ``Told``.
"""

import asyncio
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path

from edgewise.backends.files.node_store import NodeStore
from edgewise.backends.tuf.client import NodeTrust
from edgewise.delivery.on_agent import Terms, fetch
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import PLATFORM
from edgewise.testing.objects import MemoryObjects
from edgewise.testing.source import MemorySource


@dataclass
class Told:
    """All that a hub says, and the release to go to."""

    files: dict[str, bytes]
    packed: dict[str, bytes]
    root: bytes
    record: Signed
    release: str


async def update(told: Told, root: Path, *, collect: bool = True) -> None:
    """Check what the hub says, fetch, activate, collect."""
    objects = MemoryObjects()
    objects.packed = told.packed
    source = MemorySource(told.files, objects)
    trust = NodeTrust(root / "trust", told.root, node="n1", clock=ManualClock())
    await trust.verify({}, told.record, source)
    store = NodeStore(root)
    terms = Terms(PLATFORM, reserve=0, at_once=2)
    record = NodeRecord("n1", 1, "lab")
    await fetch(told.release, record, terms, trust=trust, store=store, source=source)
    store.activate(told.release)
    if collect:
        store.collect()


if __name__ == "__main__":
    sys.modules["power_cut_node"] = sys.modules["__main__"]  # where the pickle finds Told
    asyncio.run(update(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2])))
