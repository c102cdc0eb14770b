"""200 nodes behind one relay fetch an update: what crosses the hub's line, and what it costs.

``make bench-relay``. A real hub and a real relay process over mutual TLS; every node has an
identity of its own and fetches with the node's own HTTP client, verifying what it gets
(bench/relay_nodes.py). The line to the hub is a TCP line of its own that counts bytes, TLS
included. Relay, hub and nodes share this machine, so times are an upper bound.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from edgewise.cli.client import Client, Context
from edgewise.delivery import packing
from edgewise.net.client import Client as NodeClient
from edgewise.net.client import Endpoint
from edgewise.net.tls import unverified_context
from edgewise.protocol.api import TokenCreated, TokenRequest
from edgewise.protocol.content import object_path
from edgewise.roles.laptop import Laptop, Link, laptop, resident_mb
from edgewise.testing.delta_files import delta_file
from result import write

OBJECTS = [(400, 4_000), (40, 60_000), (1, 6 << 20)]
"""(how many, bytes each), incompressible: what travels is what is counted."""
PARTS, PART = 24, 400_000
"""One delta."""


def publish(content: Path, seed: int) -> dict[str, int]:
    """An update's files in the hub's content root: path to size."""
    chance = random.Random(seed)
    sizes: dict[str, int] = {}
    for count, size in OBJECTS:
        for _ in range(count):
            data = chance.randbytes(size)
            path = object_path(hashlib.sha256(data).hexdigest())
            sizes[path] = _put(content / path, packing.pack(data))
    path, whole = delta_file([chance.randbytes(PART) for _ in range(PARTS)])
    sizes[path] = _put(content / path, whole)
    return sizes


def _put(file: Path, data: bytes) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return len(data)


async def measure(nodes: int, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="edgewise-relay-") as name:
        directory = Path(name)
        async with laptop(directory, "bench") as fleet:
            hub = directory / "hub"
            arguments = ("hub", "--data", str(hub), "--listen", "127.0.0.1:0")
            await fleet.start("hub", arguments, hub / "ready.json")
            client = Client(Context.find(str(hub)))
            link, url = await _relay(fleet, client)
            request = TokenRequest(uses=nodes, region="eu", via="bench")
            token = client.post("/v1/tokens", request, TokenCreated).token
            sizes = publish(hub / "content", seed)
            (directory / "paths.json").write_bytes(msgspec.json.encode(sizes))
            crowd = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).with_name("relay_nodes.py")),
                str(directory), token, str(nodes), str(seed),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert crowd.stdout is not None
            assert crowd.stdin is not None
            print(f"{nodes} nodes: {(await crowd.stdout.readline()).decode()}", file=sys.stderr)
            relay = fleet.processes["relay"].pid
            before, cpu, began = link.bytes_down, _cpu(relay), time.monotonic()
            crowd.stdin.write(b"go\n")
            found = json.loads(await crowd.stdout.readline())
            took = time.monotonic() - began
            await crowd.wait()
            one = sum(sizes.values())
            health = await _health(url)
            return {
                "one_copy_bytes": one,
                "relay_fetched_bytes": health["fetched_bytes"],
                "hub_line_bytes": link.bytes_down - before,
                "copies_over_hub_line": (link.bytes_down - before) / one,
                "nodes_bytes": found["bytes"],
                "all_nodes_s": took,
                "median_node_s": found["median_s"],
                "mb_per_s": found["bytes"] / took / 1e6,
                "relay_cpu_s": _cpu(relay) - cpu,
                "relay_rss_mb": resident_mb(relay),
                "nodes_cpu_s": found["cpu_s"],
            }


async def _relay(fleet: Laptop, client: Client) -> tuple[Link, str]:
    told = json.loads((fleet.directory / "hub" / "ready.json").read_bytes())
    parts = urlsplit(told["url"])
    link = await fleet.link(str(parts.hostname), int(parts.port or 0))
    request = TokenRequest(role="relay", region="eu")
    token = client.post("/v1/tokens", request, TokenCreated).token
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"https://127.0.0.1:{probe.getsockname()[1]}"
    state = fleet.directory / "relay"
    await fleet.start(
        "relay",
        ("relay", "--state", str(state), "--name", "bench", "--url", url,
         "--hub", f"https://127.0.0.1:{link.port}"),
        state / "ready.json",
        token=token,
    )  # fmt: skip
    return link, url


async def _health(url: str) -> dict[str, float]:
    async with NodeClient(Endpoint((url,), unverified_context())) as client:
        return json.loads((await client.request("GET", "/v1/health")).body)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--nodes", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--dry", action="store_true", help="keep the results as they are")
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures = asyncio.run(measure(given.nodes, given.seed))
    if given.dry:
        print(json.dumps(figures, indent=1))
    else:
        write("relay", figures, "make bench-relay")


if __name__ == "__main__":
    main()
