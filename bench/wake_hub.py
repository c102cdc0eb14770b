"""The hub half of bench/wake: the real server, sync endpoint, intake and SQLite stores.

Commands on standard input: ``stats``, ``move`` (a step that concerns every node), ``quit``.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import uvloop

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.hub import SqliteHub
from edgewise.backends.sqlite.rollouts import SqliteNodeStates, SqliteRollouts
from edgewise.identity.ports import Enrolled
from edgewise.model.rules import Gate, RolloutRules
from edgewise.net.api.records import Records, Wanted
from edgewise.net.api.sync import Fleetside, NodeSync
from edgewise.net.server import Listen, Server, tune_memory
from edgewise.net.waiters import Waiters
from edgewise.protocol.channel import Bitmap, Channel, Signed
from edgewise.rollout.fleet import MemberPlan, Proposal
from edgewise.rollout.on_hub import Outside, Rollouts
from edgewise.rollout.ports import Notice, Revert, Reverted
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.log import Log, StreamLog


class Fleet:
    """One fleet's channel, with metadata of the size that real TUF files have."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.channel = Channel("shops", 1, "a" * 64)
        self._metadata = os.urandom(4000)

    def current(self, fleet: str) -> Channel | None:
        return self.channel if fleet == "shops" else None

    def fleets(self) -> tuple[str, ...]:
        return ("shops",)

    def bundle(self, fleet: str) -> dict[str, bytes]:
        return {"timestamp.json": self._metadata, "channels/shops.json": self.channel.wave}

    def step(self) -> tuple[Channel, Channel]:
        before = self.channel
        wave = Bitmap.of(range(self.nodes)).data
        release = f"{before.sequence:064x}"
        self.channel = Channel("shops", before.sequence + 1, before.stable, release, wave)
        return before, self.channel


class Quiet:
    """The engine's effects, which this benchmark does not measure."""

    async def announce(self, channel: Channel) -> None: ...
    async def notify(self, notice: Notice) -> None: ...
    async def revert(self, wanted: Revert) -> Reverted:
        return Reverted(False, "")

    async def ask(self, gate: Gate) -> tuple[Literal["Pass"], str]:
        return "Pass", ""


async def rollouts(
    database: Database, names: Sequence[str], clock: SystemClock, chance: SystemChance, log: Log
) -> Rollouts:
    """The real engine, which hears of every heartbeat."""
    store, nodes = SqliteRollouts(database), SqliteNodeStates(database)
    engine = Rollouts(Outside(store, nodes, Quiet(), Quiet(), Quiet(), Quiet()), clock, chance, log)
    await engine.start()
    members = {name: MemberPlan("s", "all", name) for name in names}
    proposal = Proposal("shops", "a" * 64, "main@sha1:1", RolloutRules(), members)
    await engine.propose(proposal, actor="bench")
    return engine


async def sign(payload: bytes) -> Signed:
    return Signed("node-record/1", payload, "k" * 64, b"s" * 64)


def resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def main(folder: Path, nodes: int, hold: float) -> None:
    clock, chance = SystemClock(), SystemChance()
    log = StreamLog(clock, "hub", lowest="warning")
    database = Database.open(folder / "hub.db")
    store = SqliteHub(database)
    fleet = Fleet(nodes)
    now = datetime.now(UTC)
    names = [f"n{i}" for i in range(nodes)]
    roster = {name: Enrolled(name, "node", "bench", b"", {}, now) for name in names}
    records = Records(store, sign)
    await records.put({name: Wanted("bench", "shops", i) for i, name in enumerate(names)})
    engine = await rollouts(database, names, clock, chance, log)
    waiters = Waiters(clock, chance, timedelta(seconds=hold))
    side = Fleetside("acme", roster, records, fleet, engine, lambda k, s: True, print)  # type: ignore[arg-type]
    endpoint = NodeSync(side, waiters, clock)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.load_verify_locations(folder / "root.pem")
    context.load_cert_chain(folder / "hub.pem", folder / "key.pem")
    server = Server(endpoint.routes(), clock, chance, log)
    await server.start(Listen(tls=context))
    tune_memory()
    loops = [asyncio.create_task(waiters.run()), asyncio.create_task(engine.run())]
    print(server.port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while (command := (await reader.readline()).decode().strip()) not in ("", "quit"):
        woken, at = 0, time.monotonic()
        if command == "move":
            woken = endpoint.moved(*fleet.step())
        usage = os.times()
        print(
            json.dumps(
                {
                    "at": at,
                    "woken": woken,
                    "waiting": len(waiters),
                    "cpu": usage.user + usage.system,
                    "rss_mb": resident_mb(),
                }
            ),
            flush=True,
        )
    for loop in loops:
        loop.cancel()
    await server.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
