"""A client that nobody here wrote, the ``spiffe`` package, in a process of its own."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgewise.host.callers import Facts
from edgewise.net.workload.server import WorkloadServer
from edgewise.protocol.content import WorkloadRegistration
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.svids import DeskInProcess, registered, supply

TILL = WorkloadRegistration("till", "/app/till", ("edgewise:app:till",), hint="till")
TILL_ID = "spiffe://eu.acme/app/till"


class Node:
    """A socket, and a desk whose clock the test moves."""

    def __init__(self, folder: Path) -> None:
        # spiffe looks at the machine's clock, so ours begins there.
        self.clock = ManualClock(datetime.now(UTC))
        self.desk = DeskInProcess(folder, self.clock)
        self.svids = supply(self.desk)
        self.log = ListLog()
        self.server = WorkloadServer(self.svids, Facts(lambda pid: "till"), self.clock, self.log)
        self.socket = str(folder / "w.sock")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    await node.server.start(node.socket)
    running = asyncio.ensure_future(node.svids.run())
    yield node
    await node.server.close()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_the_spiffe_package_fetches_and_watches_through_rotations(node: Node) -> None:
    registered(node.svids, node.desk, TILL)
    client = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("workload_client.py")),
        node.socket,
        stdout=asyncio.subprocess.PIPE,
    )
    assert client.stdout is not None
    said: dict[str, dict[str, object]] = {}
    serials = []
    async for line in client.stdout:
        fact = json.loads(line)
        said[fact["step"]] = fact
        if fact["step"] == "watched":
            serials.append(fact["serial"])
            if len(set(serials)) < 3:
                await node.clock.run_for(timedelta(minutes=37))
    assert await client.wait() == 0
    assert "error" not in said, said["error"]
    assert (said["x509"]["id"], said["x509"]["chain"]) == (TILL_ID, 2)
    assert said["bundles"]["domains"] == ["eu.acme", "us.acme"]
    assert (said["jwt"]["id"], said["jwt"]["audience"]) == (TILL_ID, ["db"])
    assert said["jwt bundles"]["domains"] == ["eu.acme", "us.acme"]
    assert said["validated"]["id"] == TILL_ID
    assert "not for the audience 'other'" in str(said["wrong audience"]["error"])
    assert len(set(serials)) == 3
    assert said["rotated"]["all"] is True
    assert said["x509 source"]["id"] == said["jwt source"]["id"] == TILL_ID
