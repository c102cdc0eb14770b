"""`edgewise artifact publish` of many small files to a real hub process, then `content sync`.

`make bench-publish`; `--files N --size BYTES` for others. Times are those of whole commands,
Python's start included. `sync_folder_s` copies to a directory on the same disk; `again_s`
repeats a publication of which the hub has everything but the name.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from edgewise.roles.laptop import Laptop, laptop
from result import write


async def edgewise(processes: Laptop, *arguments: str) -> float:
    """Seconds of one command."""
    data = str(processes.directory / "hub")
    began = time.monotonic()
    await processes.run(sys.executable, "-m", "edgewise", "--context", data, *arguments)
    return time.monotonic() - began


async def measure(folder: Path, files: int, size: int) -> dict[str, float]:
    """Figures."""
    tree, built = folder / "tree", folder / "built"
    for number in range(files):
        file = tree / f"{number % 50}" / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(size))
    figures: dict[str, float] = {"files": files, "bytes": files * size}
    async with laptop(folder) as processes:
        data = folder / "hub"
        line = ("hub", "--data", str(data), "--listen", "127.0.0.1:0", "--org", "demo")
        await processes.start("hub", line, data / "ready.json")
        plain = ("--no-sbom", "--no-provenance", "--to", str(built))
        for version in ("1", "2"):
            named = ("--name", "many", "--version", version)
            await edgewise(processes, "artifact", "build", str(tree), *named, *plain)
        publish = ("--from", str(built), "--no-wait")
        figures["publish_s"] = await edgewise(
            processes, "artifact", "publish", "many", "1", *publish
        )
        figures["again_s"] = await edgewise(processes, "artifact", "publish", "many", "2", *publish)
        sync = ("content", "sync", str(folder / "cdn"), "--data", str(data))
        figures["sync_folder_s"] = await edgewise(processes, *sync)
        figures["sync_again_s"] = await edgewise(processes, *sync)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures["cpu_s"] = used.ru_utime + used.ru_stime
    return figures


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--size", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(Path(folder), given.files, given.size))
    write("publish", figures, "make bench-publish")


if __name__ == "__main__":
    main()
