"""How fast a hub wakes 10,000 nodes, and what a heartbeat costs it.

One hub process, and one client process with a real TLS 1.3 connection and a client
certificate of its own for every node; both share this machine. `make bench-wake`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from result import write

HANDSHAKES = 100
"""At once, as a relay's backlog would have them."""


class Authority:
    """A root and the certificates it gives; all share one key, which costs TLS the same."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root_key = ec.generate_private_key(ec.SECP256R1())
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench root")])
        root = self._build(self._name, self._root_key.public_key(), True, None)
        (folder / "root.pem").write_bytes(root)
        (folder / "key.pem").write_bytes(
            self._key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        (folder / "hub.pem").write_bytes(self.leaf("spiffe://hub.acme/hub"))

    def leaf(self, identity: str) -> bytes:
        return self._build(x509.Name([]), self._key.public_key(), False, identity)

    def _build(self, subject: Any, key: Any, ca: bool, identity: str | None) -> bytes:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), True)
        )
        if identity:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), True
            )
        certificate = builder.sign(self._root_key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


class Node(asyncio.Protocol):
    """One node: polls again as soon as it is answered."""

    def __init__(self, answered: Callable[[int], None]) -> None:
        self._answered = answered
        self._channel = 1
        self._buffer = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.poll(b'"observation":{"running":"%s","health":"Healthy"},' % (b"a" * 64))

    def poll(self, more: bytes = b"") -> None:
        body = b'{%s"channel":%d,"fleet":"shops","record":1}' % (more, self._channel)
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
        if status == 200:
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            if len(rest) < length:
                return
            self._channel += 1
        self._buffer = b""
        self._answered(status)
        self.poll()


class Crowd:
    """All nodes, and what they have been answered."""

    def __init__(self) -> None:
        self.statuses: dict[int, int] = {}
        self.last = 0.0

    def answered(self, status: int) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.last = time.monotonic()

    async def connect(self, port: int, folder: Path, authority: Authority, count: int) -> None:
        slots = asyncio.Semaphore(HANDSHAKES)
        loop = asyncio.get_running_loop()

        async def one(index: int) -> None:
            async with slots:
                file = folder / f"{index % HANDSHAKES}.pem"
                file.write_bytes(authority.leaf(f"spiffe://bench.acme/node/n{index}"))
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname = False
                context.load_verify_locations(folder / "root.pem")
                context.load_cert_chain(file, folder / "key.pem")
                await loop.create_connection(
                    lambda: Node(self.answered), "127.0.0.1", port, ssl=context
                )

        await asyncio.gather(*(one(i) for i in range(count)))


async def ask(hub: asyncio.subprocess.Process, command: str) -> dict[str, Any]:
    assert hub.stdin is not None
    assert hub.stdout is not None
    hub.stdin.write(command.encode() + b"\n")
    answer: dict[str, Any] = json.loads(await hub.stdout.readline())
    return answer


async def measure(nodes: int, hold: float, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = Authority(folder)
        hub = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("wake_hub.py")),
            name,
            str(nodes),
            str(hold),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert hub.stdout is not None
            port = int(await hub.stdout.readline())
            return await watch(hub, port, folder, authority, (nodes, rounds, hold))
        finally:
            assert hub.stdin is not None
            hub.stdin.close()
            await hub.wait()


async def watch(
    hub: asyncio.subprocess.Process,
    port: int,
    folder: Path,
    authority: Authority,
    size: tuple[int, int, float],
) -> dict[str, float]:
    nodes, rounds, hold = size
    crowd = Crowd()
    idle = await ask(hub, "stats")
    await crowd.connect(port, folder, authority, nodes)
    while (connected := await ask(hub, "stats"))["waiting"] < nodes:
        await asyncio.sleep(0.2)
    print(f"{nodes} connected", file=sys.stderr)
    wakes = []
    for _ in range(rounds):
        seen = crowd.statuses.get(200, 0)
        moved = await ask(hub, "move")
        while crowd.statuses.get(200, 0) < seen + moved["woken"]:
            await asyncio.sleep(0.05)
        wakes.append(crowd.last - moved["at"])
        print(f"{moved['woken']} woken in {wakes[-1]:.2f} s", file=sys.stderr)
        while (await ask(hub, "stats"))["waiting"] < nodes:
            await asyncio.sleep(0.2)
    seen = crowd.statuses.get(204, 0)
    before = await ask(hub, "stats")
    await asyncio.sleep(hold + 2)
    after = await ask(hub, "stats")
    beats = crowd.statuses.get(204, 0) - seen
    errors = sum(n for status, n in crowd.statuses.items() if status not in (200, 204))
    return {
        "wake_10k_s": sorted(wakes)[len(wakes) // 2],
        "wake_10k_worst_s": max(wakes),
        "cpu_ms_per_heartbeat": (after["cpu"] - before["cpu"]) * 1000 / max(1, beats),
        "cpu_ms_per_handshake": (connected["cpu"] - idle["cpu"]) * 1000 / nodes,
        "hub_rss_mb": after["rss_mb"],
        "connections": float(nodes),
        "heartbeats": float(beats),
        "errors": float(errors),
    }


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--nodes", type=int, default=10_000)
    options.add_argument("--hold", type=float, default=60.0, help="seconds, as in production")
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    nodes = min(given.nodes, hard - 200)
    if nodes < given.nodes:
        print(f"only {nodes} connections: the limit of open files is {hard}", file=sys.stderr)
    figures = uvloop.run(measure(nodes, given.hold, given.rounds))
    write("wake", figures, f"make bench-wake ARGS='--nodes {nodes} --rounds {given.rounds}'")


if __name__ == "__main__":
    main()
