"""Many nodes in one process, for bench/relay: they join through the relay, and at the word
``go`` on standard input each fetches everything, verified, in an order of its own."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import statistics
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from edgewise.delivery import packing
from edgewise.delivery.layouts import LEAD_IN, Layout, check, head_length
from edgewise.identity.on_agent import Machine, MachineIdentity, join
from edgewise.net.client import Client, Endpoint, HttpSource
from edgewise.net.joining import by_token
from edgewise.net.tls import client_context
from edgewise.protocol.join import Token
from edgewise.runtime.clock import SystemClock

AT_ONCE = 8
"""Downloads of one node, as a node's own fetch has them."""
JOINING = 8


async def enter(folder: Path, name: str, token: Token) -> Client:
    """Join through the relay."""
    identity = MachineIdentity(folder / "nodes" / name)
    line = await by_token(token, SystemClock())
    try:
        card = await join(identity, token, Machine("node", name, "linux/amd64"), line)
    finally:
        await line.close()
    return Client(
        Endpoint(token.urls, client_context(identity.credentials), card.expects),
        SystemClock(),
        AT_ONCE,
    )


async def read(source: HttpSource, path: str, start: int = 0, end: int | None = None) -> bytes:
    pieces = source.read(path, at_most=1 << 30, start=start, end=end)
    return b"".join([piece async for piece in pieces])


async def fetch(client: Client, paths: dict[str, int], chance: random.Random) -> int:
    """Everything, verified; returns the bytes that came."""
    source, sizes = HttpSource(client), list[int]()
    waiting = list(paths)
    chance.shuffle(waiting)

    async def work() -> None:
        while waiting:
            path = waiting.pop()
            digest = path.split("/")[1] + path.split("/")[2].partition(".")[0]
            if path.startswith("objects/"):
                data = await read(source, path)
                packing.unpack(data, digest, at_most=1 << 30)
                sizes.append(len(data))
            else:
                sizes.append(await delta(source, path, digest, chance))

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return sum(sizes)


async def delta(source: HttpSource, path: str, digest: str, chance: random.Random) -> int:
    """The head, then the parts in any order."""
    length = head_length(await read(source, path, 0, LEAD_IN))
    layout = Layout.of(await read(source, path, 0, length), digest)
    got = LEAD_IN + length
    for span in chance.sample(layout.spans, len(layout.spans)):
        data = await read(source, path, span.start, span.end)
        check(span, data, digest)
        got += len(data)
    return got


async def main() -> None:
    folder, text, count, seed = sys.argv[1:]
    token = Token.parse(text)
    slots = asyncio.Semaphore(JOINING)

    async def one(number: int) -> Client:
        async with slots:
            return await enter(Path(folder), f"node-{number:04d}", token)

    began = time.monotonic()
    clients = await asyncio.gather(*(one(number) for number in range(int(count))))
    print(f"joined in {time.monotonic() - began:.1f} s", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    paths = msgspec.json.decode((Path(folder) / "paths.json").read_bytes(), type=dict[str, int])
    took: list[float] = []
    before = resource.getrusage(resource.RUSAGE_SELF)

    async def node(number: int, client: Client) -> int:
        began = time.monotonic()
        got = await fetch(client, paths, random.Random(f"{seed} {number}"))
        took.append(time.monotonic() - began)
        return got

    got = await asyncio.gather(*(node(number, client) for number, client in enumerate(clients)))
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    answer = {"bytes": sum(got), "median_s": statistics.median(took), "cpu_s": cpu}
    print(json.dumps(answer), flush=True)
    for client in clients:
        await client.close()


if __name__ == "__main__":
    uvloop.run(main())
