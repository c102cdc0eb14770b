"""Many nodes in one process, for bench/converge: everything a node does but running apps.

Each node has an identity of its own, its own mTLS connections, state directory and
``NodeRollout``; it verifies TUF metadata, fetches, stages and signs for real. Only the
machine under the supervisor is the fake one (testing.machine), so that a thousand apps need
not run. Commands on standard input: ``stats``, ``quit``.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import uvloop

from edgewise import __version__
from edgewise.backends.files.node_store import NodeStore
from edgewise.heal.on_agent import Supervisor, supervising
from edgewise.heal.ports import Launch, Process
from edgewise.host.body import NodeBody, Organs, drop_in
from edgewise.host.files import ConfigFiles
from edgewise.host.memory import NodeFile
from edgewise.host.secrets import SecretFiles
from edgewise.model.errors import TryLater
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.installed import Installed
from edgewise.protocol.sync import SyncReply
from edgewise.protocol.tasks import JoinTask
from edgewise.roles.node_certificate import Upstream
from edgewise.roles.worker import InProcessWorker, this_platform
from edgewise.rollout.node_ports import News
from edgewise.rollout.on_agent import About, NodeRollout, Parts
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.log import StreamLog
from edgewise.testing.machine import MemoryMachine

JOINING = 8
"""Joins at once."""
WORKING = 4
"""Nodes of one process that verify or fetch at the same time."""


class Turns:
    """So many nodes compute at a time; who is further goes first.

    A thousand nodes have a thousand processors. Here they share two: without turns all of
    them would advance in step and the first app would start when the last is about to.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._count = 0

    @asynccontextmanager
    async def turn(self, rank: int) -> AsyncIterator[None]:
        """Lower ranks first, then in order of arrival."""
        if self._free:
            self._free -= 1
        else:
            called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._count += 1
            heapq.heappush(self._waiting, (rank, self._count, called))
            await called
        try:
            yield
        finally:
            while self._waiting:
                called = heapq.heappop(self._waiting)[2]
                if not called.done():
                    called.set_result(None)
                    break
            else:
                self._free += 1


@dataclass
class TurnedWorker(InProcessWorker):
    """The worker's own code, when it is this node's turn."""

    turns: Turns = field(default_factory=lambda: Turns(1))

    async def verify(self, reply: SyncReply) -> News:
        async with self.turns.turn(2):
            return await super().verify(reply)

    async def fetch(
        self, release: str, record: NodeRecord, progress: Callable[[float], None]
    ) -> Installed:
        async with self.turns.turn(1):
            return await super().fetch(release, record, progress)


@dataclass
class Machine(MemoryMachine):
    """Notes when each app was started."""

    starts: list[float] = field(default_factory=list)

    async def start(self, launch: Launch) -> Process:
        self.starts.append(time.time())
        app = msgspec.structs.replace(launch.app, command=("run",))
        return await super().start(replace(launch, app=app))


class Crowd:
    """The nodes of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = SystemClock()
        self.chance = SystemChance()
        self.log = StreamLog(self.clock, "nodes", lowest="warning")
        self.starts: list[float] = []
        self.slots = asyncio.Semaphore(JOINING)
        self.turns = Turns(WORKING)

    async def live(self, name: str, token: str, joined: asyncio.Event) -> None:
        """Join, then what ``roles.agent`` does with a node."""
        state = self.folder / name
        state.mkdir(parents=True)
        worker = TurnedWorker(state, self.clock, turns=self.turns)
        async with self.slots:
            while True:
                try:
                    await worker.join(JoinTask(token, name))
                    break
                except TryLater as error:
                    await self.clock.sleep(error.wait)
        joined.set()
        machine = Machine(self.clock, starts=self.starts)
        supervisor = Supervisor(machine, self.clock, self.chance, self.log)
        place = drop_in(state / "root")
        async with supervising(supervisor):
            body = NodeBody(
                Organs(
                    supervisor=supervisor,
                    machine=machine,
                    configs=ConfigFiles(state, place),
                    secrets=SecretFiles(state, place),
                    open_sealed=worker.open_sealed,
                    releases=state / "releases",
                    log=self.log,
                )
            )
            line = Upstream(state, self.clock)
            rollout = NodeRollout(
                About(line.card.name, this_platform(), __version__, "boot-1"),
                Parts(
                    line=line,
                    crypto=worker,
                    releases=NodeStore(state),
                    body=body,
                    memory=NodeFile(state),
                    clock=self.clock,
                    chance=self.chance,
                    log=self.log,
                ),
            )
            supervisor.on_change = rollout.changed
            try:
                await rollout.run()
            finally:
                await line.close()


async def main(folder: Path, token: str, first: int, count: int) -> None:
    crowd = Crowd(folder)
    events = [asyncio.Event() for _ in range(count)]
    lives = [
        asyncio.create_task(crowd.live(f"node-{first + i:05d}", token, event))
        for i, event in enumerate(events)
    ]
    everybody = asyncio.gather(*lives)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while (command := (await reader.readline()).decode().strip()) not in ("", "quit"):
        if everybody.done():
            everybody.result()
        if command == "stats":
            usage = os.times()
            starts, crowd.starts[:] = list(crowd.starts), []
            said = {
                "joined": sum(event.is_set() for event in events),
                "starts": starts,
                "cpu": usage.user + usage.system,
            }
            print(json.dumps(said), flush=True)
    for life in lives:
        life.cancel()
    await asyncio.gather(everybody, *lives, return_exceptions=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
