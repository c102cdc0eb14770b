"""A disk image onto a real block device (a loop device), with what the kernel refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgewise.cli.main import app
from edgewise.testing.images import program

pytestmark = pytest.mark.slow

MIB = 1 << 20


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    if os.getuid() != 0 or not Path("/dev/loop-control").exists():
        pytest.skip("loop devices need root and the kernel's loop module")
    backing = tmp_path / "card.img"
    backing.write_bytes(bytes(16 * MIB))
    found = run("losetup", "--show", "-f", str(backing))
    yield found
    subprocess.run(["losetup", "-d", found], check=False)


def test_a_mounted_device_is_refused_and_a_free_one_is_written_and_verified(
    device: str, tmp_path: Path
) -> None:
    image = program(1, 2 * MIB) + bytes(3 * MIB) + program(2, MIB // 2)
    (tmp_path / "os.img").write_bytes(image)
    built = str(tmp_path / "built")
    done = CliRunner().invoke(
        app,
        ["artifact", "import", f"disk:{tmp_path}/os.img", "--name", "os", "--version", "1",
         "--to", built],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    write = ["artifact", "write", "os", "1", "--to", device, "--from", built]
    run("mkfs.ext4", "-q", device)
    (tmp_path / "mnt").mkdir()
    run("mount", device, str(tmp_path / "mnt"))
    try:
        done = CliRunner().invoke(app, write)
        assert done.exit_code != 0
        assert "mounted" in str(done.exception) + done.output
    finally:
        run("umount", str(tmp_path / "mnt"))
    done = CliRunner().invoke(app, write)
    assert done.exit_code == 0, done.output
    with open(device, "rb") as disk:
        assert disk.read(len(image)) == image
