"""A line that is slow, far away and breaks off: our fetch against curl resuming the file.

``make bench-lossy``. Both fetch the same update over the same kind of line, one after the
other, several seeds: a TCP proxy of its own adds a delay to each direction, shares one rate
among all connections, refuses some, cuts each after a random number of bytes, and goes dark
now and then. curl is restarted with ``-C -`` until it has the file, without a pause. Ours is
the relay's real fetch (sources, client, verification), asked again without a pause, too, by
readers of ``READERS`` ranges of the file, as a node asks for parts of a delta. Plain HTTP, so
that both have the same handshakes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.delivery.layouts import LEAD_IN, Layout, check, head_length
from edgewise.model.errors import TryLater
from edgewise.net.client import Client, Endpoint
from edgewise.net.routes import ANYONE, Call, FileAnswer, Route
from edgewise.net.server import Listen, Server
from edgewise.net.sources import Origin, Sources
from edgewise.runtime.chance import SystemChance
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.log import StreamLog
from edgewise.testing.delta_files import delta_file
from result import write

READERS = 8
PIECE = 8 << 10


@dataclass(frozen=True)
class Terms:
    """How bad the line is."""

    rate: float = 500_000.0
    """Bytes a second, of all connections together."""
    delay_s: float = 0.15
    """Each way."""
    mean_life: float = 300_000.0
    """Bytes after which a connection breaks, exponentially distributed."""
    refused: float = 0.1
    """Share of connections that are reset at once."""
    dark_every_s: float = 8.0
    """Mean time between two times when nothing passes; then every connection breaks."""
    dark_s: float = 1.0


@dataclass
class Line:
    """The proxy."""

    port: int
    """Of the server behind it."""
    terms: Terms
    chance: random.Random
    listens: int = 0
    connections: int = 0
    carried: int = 0
    _free_at: float = 0.0
    _dark_until: float = 0.0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.listens = self._server.sockets[0].getsockname()[1]
        self._spawn(self._darkness())

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()

    def _spawn(self, work: object) -> None:
        task = asyncio.ensure_future(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _darkness(self) -> None:
        while True:
            await asyncio.sleep(self.chance.expovariate(1 / self.terms.dark_every_s))
            self._dark_until = time.monotonic() + self.terms.dark_s
            for writer in self._writers:
                writer.transport.abort()

    async def _accept(self, near_in: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.connections += 1
        life = self.chance.expovariate(1 / self.terms.mean_life)
        refused = self.chance.random() < self.terms.refused
        await asyncio.sleep(2 * self.terms.delay_s)  # the handshake's way there and back
        if refused or time.monotonic() < self._dark_until:
            near.transport.abort()
            return
        far_in, far = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {near, far}
        ends = (near, far)
        self._spawn(self._carry(near_in, far, float("inf"), ends))
        self._spawn(self._carry(far_in, near, life, ends))

    async def _carry(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        life: float,
        ends: tuple[asyncio.StreamWriter, ...],
    ) -> None:
        loop = asyncio.get_running_loop()
        last = time.monotonic()
        try:
            while data := await reader.read(PIECE):
                if life != float("inf"):
                    last = await self._turn(len(data))
                    life -= len(data)
                    self.carried += len(data)
                if life <= 0:
                    break
                # On its way for ``delay_s``; more may follow it meanwhile.
                last = max(last, time.monotonic()) + 0.0
                loop.call_later(self.terms.delay_s, _pass, writer, data)
        except OSError:
            pass
        finally:
            loop.call_later(self.terms.delay_s, lambda: [end.transport.abort() for end in ends])
            self._writers -= set(ends)

    async def _turn(self, size: int) -> float:
        now = time.monotonic()
        self._free_at = max(now, self._free_at) + size / self.terms.rate
        await asyncio.sleep(self._free_at - now)
        return self._free_at


def _pass(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.transport.is_closing():
        writer.write(data)


async def curl(url: str, out: Path) -> int:
    """Restart curl where it was until it has everything; returns how often it was started."""
    for tries in range(1, 100_000):
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-f", "-C", "-", "-o", str(out), url, stderr=asyncio.subprocess.DEVNULL
        )
        if await process.wait() == 0:
            return tries
    raise AssertionError("curl never ends")


async def ours(port: int, path: str, size: int, folder: Path) -> bytes:
    """The relay's fetch, asked for ``READERS`` ranges at once until all are here."""
    clock = SystemClock()
    log = StreamLog(clock, "bench", lowest="error")
    hub = Client(Endpoint((f"http://127.0.0.1:{port}",)), clock, 2 * READERS)
    sources = Sources((Origin("hub", hub, "/"),), clock, log)
    space = Space(CacheFiles(folder), SpaceTerms(1 << 30, 0), clock, log)
    shelf = FileShelf(space, sources, log)
    share = -(-size // READERS)

    async def reader(start: int) -> bytes:
        got, end = bytearray(), min(size, start + share)
        while start + len(got) < end:
            with suppress(TryLater):
                at = start + len(got)
                served = await shelf.open(path, at, end)
                async for piece in served.read(at, end):
                    got += piece
        return bytes(got)

    found = await asyncio.gather(*(reader(start) for start in range(0, size, share)))
    await shelf.close()
    await sources.close()
    return b"".join(found)


async def timed(server: int, terms: Terms, seed: str, fetch: Callable[[int], object]) -> dict:
    line = Line(server, terms, random.Random(seed))
    await line.open()
    began = time.monotonic()
    await fetch(line.listens)  # type: ignore[misc]
    took = time.monotonic() - began
    await line.close()
    return {"s": took, "carried": line.carried, "connections": line.connections}


async def measure(size: int, seeds: int) -> dict[str, float]:
    chance = random.Random(7)
    path, whole = delta_file([chance.randbytes(150_000) for _ in range(size // 150_000)])
    with tempfile.TemporaryDirectory(prefix="edgewise-lossy-") as name:
        folder = Path(name)
        (folder / "file").write_bytes(whole)

        async def answer(call: Call[None]) -> FileAnswer:
            return FileAnswer(folder / "file", "application/octet-stream", "immutable", "file")

        route = Route("GET", "/{path*}", "", answer, ANYONE, response=bytes)
        clock = SystemClock()
        server = Server([route], clock, SystemChance(), StreamLog(clock, "hub", lowest="error"))
        await server.start(Listen())
        runs: dict[str, list[dict]] = {"curl": [], "ours": []}
        for seed in range(seeds):
            out = folder / f"curl-{seed}"

            async def with_curl(port: int, out: Path = out) -> None:
                await curl(f"http://127.0.0.1:{port}/{path}", out)
                assert out.read_bytes() == whole

            async def with_ours(port: int, seed: int = seed) -> None:
                got = await ours(port, path, len(whole), folder / f"relay-{seed}")
                assert got == whole
                verify(got, path)

            for who, fetch in (("curl", with_curl), ("ours", with_ours)):
                runs[who].append(await timed(server.port, Terms(), str(seed), fetch))
                print(f"seed {seed} {who}: {runs[who][-1]}", file=sys.stderr)
        await server.close()
    figures: dict[str, float] = {"file_bytes": len(whole)}
    for who, found in runs.items():
        figures[f"{who}.s"] = statistics.median(run["s"] for run in found)
        figures[f"{who}.goodput_kb_s"] = len(whole) / figures[f"{who}.s"] / 1000
        figures[f"{who}.worst_s"] = max(run["s"] for run in found)
        figures[f"{who}.connections"] = statistics.median(run["connections"] for run in found)
        figures[f"{who}.line_bytes_per_byte"] = statistics.median(
            run["carried"] / len(whole) for run in found
        )
    figures["goodput_vs_curl"] = figures["ours.goodput_kb_s"] / figures["curl.goodput_kb_s"]
    return figures


def verify(data: bytes, path: str) -> None:
    """Every part, once more, by itself."""
    name = path.split("/")[1] + path.split("/")[2].partition(".")[0]
    layout = Layout.of(data[: head_length(data[:LEAD_IN])], name)
    for span in layout.spans:
        check(span, data[span.start : span.end], name)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--size", type=int, default=4_500_000)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--dry", action="store_true", help="keep the results as they are")
    given = options.parse_args()
    if shutil.which("curl") is None:
        raise SystemExit("curl is missing: `make tools`")
    os.environ.pop("http_proxy", None)
    figures = asyncio.run(measure(given.size, given.seeds))
    if given.dry:
        print(json.dumps(figures, indent=1))
    else:
        write("lossy", figures, "make bench-lossy")


if __name__ == "__main__":
    main()
