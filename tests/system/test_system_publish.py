"""`edgewise artifact publish` against a real hub: many files, interrupted, begun again."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet

from edgewise.cli.sending import SMALL
from edgewise.protocol.api import ArtifactLine, AuditLine, Page
from edgewise.roles.laptop import laptop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with laptop(tmp_path) as processes:
        fleet = Fleet(processes)
        await fleet.start_hub()
        yield fleet


async def build(fleet: Fleet, sizes: list[int]) -> None:
    tree = fleet.laptop.directory / "tree"
    tree.mkdir()
    for number, size in enumerate(sizes):
        (tree / str(number)).write_bytes(os.urandom(size))
    built = str(fleet.laptop.directory / "built")
    line = ("--name", "many", "--version", "1", "--to", built, "--no-sbom", "--no-provenance")
    await fleet.edgewise("artifact", "build", str(tree), *line)


async def publishing(fleet: Fleet) -> asyncio.subprocess.Process:
    built = str(fleet.laptop.directory / "built")
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "edgewise", "--context", str(fleet.data)),
        *("artifact", "publish", "many", "1", "--from", built, "--no-wait"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_many_small_files_are_a_handful_of_calls(fleet: Fleet) -> None:
    await build(fleet, [300] * 2500)
    process = await publishing(fleet)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert out.startswith(b"published: many 1, ")
    lines = await asyncio.to_thread(lambda: fleet.client().get("/v1/audit", Page[AuditLine]))
    assert sum(line.action.startswith("object") for line in lines.items) == 4  # and the manifest


async def test_a_publication_that_was_interrupted_goes_on_when_it_is_begun_again(
    fleet: Fleet,
) -> None:
    await build(fleet, [4 << 20] * 20 + [SMALL] * 300)
    process = await publishing(fleet)
    assert process.stderr is not None
    first = (await process.stderr.readline()).decode()
    found = re.match(r"sending 321 of 321 objects", first)
    assert found is not None, first
    assert b" of " in await process.stderr.readline()  # a tenth is there
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 130
    page = await asyncio.to_thread(lambda: fleet.client().get("/v1/artifacts", Page[ArtifactLine]))
    assert page.items == ()
    assert list((fleet.data / "content/objects/.incoming").iterdir()) == []

    process = await publishing(fleet)
    _, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    again = re.match(r"sending (\d+) of 321 objects", err.decode())
    assert again is not None, err.decode()
    assert int(again[1]) < 321
    page = await asyncio.to_thread(lambda: fleet.client().get("/v1/artifacts", Page[ArtifactLine]))
    assert [(one.name, one.version) for one in page.items] == [("many", "1")]
