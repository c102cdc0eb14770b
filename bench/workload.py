"""What the Workload API costs a node: fetches, and resident memory.

    make bench-workload                   under a minute

The server half is what an agent loads and nothing else, in a process of its own; the client is
grpcio with the stubs of the ``spiffe`` package. ``workload_fetches_per_s`` are JWT-SVIDs fetched
one after the other, each attested anew; ``workload_fetch_server_us`` is the processor time that
each costs the agent. ``workload_added_rss_mb`` is what socket, supply, 16 SVIDs and 16 connected
workloads add to an agent's imports. MB are 10**6.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.content import WorkloadRegistration
from edgewise.protocol.installed import Installed, InstalledIdentity
from edgewise.protocol.tasks import SvidAsk, SvidIssued
from edgewise.protocol.workload import JwtSvid, WorkloadReply, WorkloadRequest
from result import write

IDENTITIES, CONNECTIONS = 16, 16
FETCHES, STREAMS = 5000, 900
METADATA = (("workload.spiffe.io", "true"),)


class Given(msgspec.Struct):
    """What the server half is given instead of a worker and a relay."""

    bundles: TrustBundles
    svids: tuple[SvidIssued, ...]
    token: JwtSvid


class Issuer:
    """Answers with what was given."""

    def __init__(self, given: Given) -> None:
        self.given = given

    async def svids(self, wanted: tuple[SvidAsk, ...]) -> tuple[SvidIssued, ...]:
        by_path = {one.spiffe_id.partition("eu.acme")[2]: one for one in self.given.svids}
        return tuple(by_path[one.path] for one in wanted)

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        return WorkloadReply(jwt=tuple(self.given.token for _ in request.jwt))


def registrations() -> tuple[WorkloadRegistration, ...]:
    """The caller is the first one; the others are other workloads of the node."""
    mine = WorkloadRegistration("w0", "/app/w0", (f"unix:uid:{os.getuid()}",))
    others = (
        WorkloadRegistration(f"w{n}", f"/app/w{n}", (f"edgewise:app:w{n}",))
        for n in range(1, IDENTITIES)
    )
    return (mine, *others)


def resident_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no Rss in smaps_rollup")


async def serve(socket: str) -> None:
    """The agent's half: prints its memory and processor time for every line it is asked."""
    import edgewise.host.machine
    import edgewise.roles.node_certificate
    import edgewise.rollout.on_agent  # noqa: F401

    before = resident_mb()
    from edgewise.host.callers import Facts
    from edgewise.host.svids import NodeSvids, Sources
    from edgewise.net.workload.server import WorkloadServer
    from edgewise.runtime.chance import SystemChance
    from edgewise.runtime.clock import SystemClock
    from edgewise.runtime.log import StreamLog

    given = msgspec.json.decode(sys.stdin.buffer.readline(), type=Given)
    clock, issuer = SystemClock(), Issuer(given)
    log = StreamLog(clock, "bench")
    sources = Sources(issuer, issuer, lambda: given.bundles, clock, SystemChance(), log)
    svids = NodeSvids(sources, "eu.acme")
    entries = registrations()
    svids.recorded(NodeRecord("n", 1, identities={one.path: () for one in entries}))
    identities = tuple(InstalledIdentity("", one) for one in entries)
    svids.installed(Installed("r", "n", "linux/amd64", identities=identities))
    server = WorkloadServer(svids, Facts(lambda pid: None), clock, log)
    await server.start(socket)
    running = asyncio.ensure_future(svids.run())
    print(before, flush=True)
    while await asyncio.to_thread(sys.stdin.buffer.readline):
        print(resident_mb(), time.process_time(), flush=True)
    running.cancel()
    await server.close()


def given_by(folder: Path) -> Given:
    """Real SVIDs of a real authority."""
    from edgewise.protocol.workload import JwtWanted
    from edgewise.runtime.clock import SystemClock
    from edgewise.testing.svids import DeskInProcess

    desk = DeskInProcess(folder, SystemClock())
    desk.record = NodeRecord("kiosk-1", 1, identities={one.path: () for one in registrations()})
    asked = tuple(SvidAsk(one.path) for one in registrations())
    svids = asyncio.run(desk.svids(asked))
    request = WorkloadRequest(jwt=(JwtWanted("/app/w0", ("db",)),))
    return Given(desk.bundles, svids, asyncio.run(desk.workloads(request)).jwt[0])


def measure() -> dict[str, float]:
    """Every figure, by name."""
    import grpc
    from spiffe._proto import workload_pb2, workload_pb2_grpc

    with tempfile.TemporaryDirectory() as name:
        socket = f"{name}/w.sock"
        command = [sys.executable, __file__, "--serve", socket]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as far:
            assert far.stdin is not None
            assert far.stdout is not None
            far.stdin.write(msgspec.json.encode(given_by(Path(name))) + b"\n")
            far.stdin.flush()
            before = float(far.stdout.readline())

            def look() -> tuple[float, float]:
                far.stdin.write(b"\n")  # type: ignore[union-attr]
                far.stdin.flush()  # type: ignore[union-attr]
                rss, cpu = far.stdout.readline().split()  # type: ignore[union-attr]
                return float(rss), float(cpu)

            def timed(count: int, fetch: Callable[[], Any]) -> tuple[float, float]:
                fetch()
                began, cpu = time.perf_counter(), look()[1]
                for _ in range(count):
                    fetch()
                spent = look()[1] - cpu
                return count / (time.perf_counter() - began), spent / count * 1e6

            # Each channel its own connection, as each workload has one.
            options = (("grpc.use_local_subchannel_pool", 1),)
            channels = [
                grpc.insecure_channel(f"unix:{socket}", options) for _ in range(CONNECTIONS)
            ]
            stubs = [workload_pb2_grpc.SpiffeWorkloadAPIStub(c) for c in channels]
            ask = workload_pb2.X509SVIDRequest()
            streams = [stub.FetchX509SVID(ask, metadata=METADATA) for stub in stubs]
            assert all(next(stream).svids[0].x509_svid for stream in streams)
            idle = look()[0]
            wanted = workload_pb2.JWTSVIDRequest(audience=["db"])
            jwt, jwt_us = timed(FETCHES, lambda: stubs[0].FetchJWTSVID(wanted, metadata=METADATA))

            def x509() -> None:
                stream = stubs[0].FetchX509SVID(ask, metadata=METADATA)
                next(stream)
                stream.cancel()

            x509_s, x509_us = timed(STREAMS, x509)
            busy = look()[0]
            for stream in streams:
                stream.cancel()
            for channel in channels:
                channel.close()
            far.communicate(b"")
    return {
        "workload_fetches_per_s": jwt,
        "workload_fetch_server_us": jwt_us,
        "workload_x509_fetches_per_s": x509_s,
        "workload_x509_fetch_server_us": x509_us,
        "workload_added_rss_mb": idle - before,
        "workload_added_rss_busy_mb": busy - before,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        asyncio.run(serve(sys.argv[2]))
    else:
        write("workload", measure(), "make bench-workload")
