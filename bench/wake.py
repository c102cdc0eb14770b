"""How fast a hub wakes 10,000 nodes, what a heartbeat costs it, and how much memory it takes.

A whole hub as users run it (``edgewise.roles.hub``: git, compiler, publisher, rollouts,
enroller, SQLite), with 10,000 enrolled nodes. The client process holds a real TLS 1.3
connection with a certificate of its own for every node; both share this machine. Each round
is a real ``git push``. `make bench-wake`.

The nodes are enrolled by writing the hub's database before it starts: joining is another
bench's subject. They verify and apply nothing: they answer with what they were told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import ssl
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgewise.backends.pki.authority import Authority
from edgewise.backends.sqlite.database import Database
from edgewise.cli.client import Context
from edgewise.identity.ports import Enrolled
from edgewise.protocol.channel import Channel, NodeRecord
from edgewise.protocol.codec import encode
from edgewise.protocol.sync import SyncReply
from edgewise.roles.laptop import Laptop, laptop, resident_mb
from edgewise.runtime.clock import SystemClock
from result import write

HANDSHAKES = 100
"""At once, as a relay's backlog would have them."""
HEAD = "apiVersion: edgewise.dev/v1\nkind: {}\nmetadata: {{name: {}}}\nspec:\n"


def repo(version: int) -> dict[str, str]:
    """One fleet of everybody, one config, all at once."""
    return {
        "edgewise.yaml": HEAD.format("Workspace", "bench") + "  vars: {}\n",
        "policies/all.yaml": HEAD.format("RolloutPolicy", "all")
        + "  stages: [{name: all, maxConcurrent: 100%}]\n",
        "configs/tuning.yaml": HEAD.format("Config", "tuning")
        + f"  files:\n    - path: /etc/till.conf\n      content: tuning {version}\n",
        "fleets/shops.yaml": HEAD.format("Fleet", "shops")
        + "  selector: {matchExpressions: [{key: site, operator: Exists}]}\n"
        "  configs: [{ref: {name: tuning}}]\n  rolloutPolicyRef: {name: all}\n",
    }


class Enrolling:
    """A hub's data directory in which 10,000 nodes have joined; all share one key."""

    def __init__(self, data: Path, folder: Path) -> None:
        data.mkdir(parents=True)
        self._folder = folder
        self._authority = Authority.open_or_create(data / "pki", "bench", SystemClock())
        self._key = ec.generate_private_key(ec.SECP256R1())
        pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / "key.pem").write_bytes(pem)
        der = self._authority.roots[0]
        (folder / "root.pem").write_text(ssl.DER_cert_to_PEM_cert(der))
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        self._csr = request.sign(self._key, hashes.SHA256()).public_bytes(
            serialization.Encoding.DER
        )

    def enrol(self, data: Path, count: int) -> None:
        spki = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        database = Database.open(data / "hub.db")
        rows = []
        for index in range(count):
            one = Enrolled(
                f"n{index:05d}", "node", "bench", spki, {"site": f"s{index // 20}"},
                datetime.now(UTC), platform="linux/amd64",
            )  # fmt: skip
            rows.append((one.name, encode(one).decode()))
        database.run_blocking(
            lambda db: db.executemany("INSERT INTO enrolments VALUES (?, ?)", rows)
        )
        database.close()

    def context(self, index: int) -> ssl.SSLContext:
        """A TLS context with this node's own certificate."""
        identity = self._authority.organisation.node("bench", f"n{index:05d}")
        made = self._authority.issue(identity, self._csr)
        file = self._folder / f"{index % HANDSHAKES}.pem"
        file.write_text("".join(map(ssl.DER_cert_to_PEM_cert, made.chain)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self._folder / "root.pem")
        context.load_cert_chain(file, self._folder / "key.pem")
        return context


@dataclass
class Crowd:
    """All nodes: what they have been answered, and what they know."""

    statuses: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    """Channel sequence to how many nodes know just that one."""
    heard: dict[int, float] = field(default_factory=dict)
    """Channel sequence to when the last node was told of it."""
    _read: dict[bytes, tuple[str, int, int]] = field(default_factory=dict)

    def learn(self, body: bytes, fleet: str, channel: int, record: int) -> tuple[str, int, int]:
        """What a node knows after a reply; shared replies are read once."""
        found = self._read.get(body)
        if found is None:
            reply = msgspec.json.decode(body, type=SyncReply)
            found = "", 0, 0
            if reply.record is not None:
                told = msgspec.json.decode(reply.record.payload, type=NodeRecord)
                found = told.fleet, 0, told.sequence
            for name, data in reply.metadata.items():
                if name.startswith("channels/"):
                    news = msgspec.json.decode(data, type=Channel)
                    found = news.fleet, news.sequence, found[2]
            if reply.record is None:
                self._read = {body: found}
        if found[1]:
            self.channels[channel] = self.channels.get(channel, 0) - 1
            self.channels[found[1]] = self.channels.get(found[1], 0) + 1
            self.heard[found[1]] = time.time()
        return found[0] or fleet, found[1] or channel, found[2] or record

    async def know(self, sequence: int, nodes: int) -> float:
        """When the last of ``nodes`` was told of this channel or a newer one."""
        while sum(n for s, n in self.channels.items() if s >= sequence) < nodes:
            await asyncio.sleep(0.02)
        return max(when for known, when in self.heard.items() if known >= sequence)


class Node(asyncio.Protocol):
    """One node: polls again as soon as it is answered."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._knows = ("", 0, 0)
        self._buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.poll(b'"observation":{"running":"","health":"Healthy"},')

    def poll(self, more: bytes = b"") -> None:
        fleet, channel, record = self._knows
        body = b'{%s"channel":%d,"fleet":"%s","record":%d}' % (
            more, channel, fleet.encode(), record,
        )  # fmt: skip
        self.transport.write(
            b"POST /v1/sync HTTP/1.1\r\nHost: hub\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        status = int(head[9:12])
        if status != 204:
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(rest) < length:
                return
        self._crowd.statuses[status] = self._crowd.statuses.get(status, 0) + 1
        if status == 200:
            self._knows = self._crowd.learn(rest, *self._knows)
        self._buffer = b""
        self.poll()


@dataclass
class Bench:
    """One hub and its nodes."""

    fleet: Laptop
    folder: Path
    nodes: int
    hold: float
    crowd: Crowd = field(default_factory=Crowd)

    @property
    def data(self) -> Path:
        return self.fleet.directory / "hub"

    @property
    def pid(self) -> int:
        return self.fleet.processes["hub"].pid

    async def start(self) -> dict[str, float]:
        """A hub whose fleet repo has a commit, and everybody connected."""
        enrolling = Enrolling(self.data, self.folder)
        enrolling.enrol(self.data, self.nodes)
        ready = self.data / "ready.json"
        options = ("--listen", "127.0.0.1:0", "--org", "bench", "--log-json")
        await self.fleet.start(
            "hub", ("hub", "--data", str(self.data), "--hold", f"{self.hold:.0f}s", *options), ready
        )
        await self.push(0)
        empty = resident_mb(self.pid)
        cpu = self.cpu()
        port = int(json.loads(ready.read_text())["url"].rpartition(":")[2])
        slots = asyncio.Semaphore(HANDSHAKES)
        loop = asyncio.get_running_loop()

        async def one(index: int) -> None:
            async with slots:
                await loop.create_connection(
                    lambda: Node(self.crowd), "127.0.0.1", port, ssl=enrolling.context(index)
                )

        await asyncio.gather(*(one(i) for i in range(self.nodes)))
        await self.crowd.know(1, self.nodes)
        await self.quiet()
        print(f"{self.nodes} connected and told", file=sys.stderr)
        return {
            "hub_without_nodes_mb": empty,
            "cpu_ms_per_first_contact": (self.cpu() - cpu) * 1000 / self.nodes,
        }

    async def push(self, version: int) -> float:
        """Commit and push; returns when it began."""
        work = self.fleet.directory / "repo"
        git = ("git", "-C", str(work), "-c", "user.name=Bench", "-c", "user.email=b@example.com")
        if not work.exists():
            await self.fleet.run("git", "init", "-q", "-b", "main", str(work))
        for path, text in repo(version).items():
            file = work / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        await self.fleet.run(*git, "add", "-A")
        await self.fleet.run(*git, "commit", "-q", "-m", f"version {version}")
        context = Context.find(str(self.data))
        began, known = time.time(), len(self.published())
        await self.fleet.run(
            *git, "push", "-q", context.git_url, "main", env=context.git_environment()
        )
        while len(self.published()) == known:
            await asyncio.sleep(0.02)
        return began

    def published(self) -> list[tuple[float, int, int]]:
        """(when, sequence, nodes woken) of every channel, by the hub's log."""
        return [
            (
                datetime.fromisoformat(said["time"]).timestamp(),
                said["sequence"],
                said["nodes_woken"],
            )
            for line in self.fleet.processes["hub"].log.read_text().splitlines()
            if '"channel published"' in line and (said := json.loads(line))
        ]

    async def quiet(self) -> None:
        """Wait until the hub has published nothing for two seconds."""
        count = -1
        while count != (count := len(self.published())):
            await asyncio.sleep(2)

    def cpu(self) -> float:
        """Seconds of the hub itself, without its children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    async def round(self, number: int) -> tuple[float, float]:
        """(seconds from publishing, seconds from the push) until the last node was told."""
        known = len(self.published())
        began = await self.push(number)
        await self.quiet()
        at, sequence, woken = max(self.published()[known:], key=lambda one: one[2])
        last = await self.crowd.know(sequence, self.nodes)
        print(f"{number}: {woken} in {last - at:.2f} s, push {last - began:.2f}", file=sys.stderr)
        return last - at, last - began

    async def heartbeats(self) -> dict[str, float]:
        """What a poll costs that ends without news."""
        await asyncio.sleep(self.hold + 2)  # what the rounds left behind
        seen, before = self.crowd.statuses.get(204, 0), self.cpu()
        await asyncio.sleep(self.hold + 2)
        beats = self.crowd.statuses.get(204, 0) - seen
        return {
            "cpu_ms_per_heartbeat": (self.cpu() - before) * 1000 / max(1, beats),
            "heartbeats": float(beats),
        }


async def measure(nodes: int, hold: float, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="edgewise-wake-") as name:
        folder = Path(name)
        async with laptop(folder / "fleet", "bench") as fleet:
            bench = Bench(fleet, folder, nodes, hold)
            fleet.directory.mkdir()
            figures = await bench.start()
            took = [await bench.round(number + 1) for number in range(rounds)]
            wakes, pushes = sorted(wake for wake, _ in took), sorted(push for _, push in took)
            figures |= {
                "wake_10k_s": wakes[rounds // 2],
                "wake_10k_worst_s": wakes[-1],
                "push_to_last_node_s": pushes[rounds // 2],
            }
            figures |= await bench.heartbeats()
            statuses = bench.crowd.statuses
            return figures | {
                "hub_rss_mb": resident_mb(bench.pid),
                "connections": float(nodes),
                "errors": float(sum(n for s, n in statuses.items() if s not in (200, 204))),
            }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--nodes", type=int, default=10_000)
    options.add_argument("--hold", type=float, default=60.0, help="seconds, as in production")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--dry", action="store_true", help="keep the results as they are")
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    nodes = min(given.nodes, hard - 200)
    if nodes < given.nodes:
        print(f"only {nodes} connections: the limit of open files is {hard}", file=sys.stderr)
    figures = uvloop.run(measure(nodes, given.hold, given.rounds))
    if given.dry:
        print(json.dumps(figures, indent=1))
    else:
        write("wake", figures, f"make bench-wake ARGS='--nodes {nodes} --rounds {given.rounds}'")


if __name__ == "__main__":
    main()
