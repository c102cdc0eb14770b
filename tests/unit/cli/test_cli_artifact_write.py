"""Disk images: in as a file, out onto a disk, only what differs."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from edgewise.backends.files import disks
from edgewise.backends.files.builds import BuildFolder
from edgewise.cli.main import app
from edgewise.delivery.trees import make_tree
from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted
from edgewise.protocol.content import Entry
from edgewise.testing.images import program

MIB = 1 << 20


def run(*command: str) -> Result:
    return CliRunner().invoke(app, list(command))


def imported(tmp_path: Path, image: bytes, version: str = "1") -> None:
    file = tmp_path / "os.img"
    file.write_bytes(image)
    done = run(
        "artifact", "import", f"disk:{file}", "--name", "os", "--version", version,
        "--to", str(tmp_path / "built"), "--platform", "linux/arm64",
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def written(tmp_path: Path, to: Path, *more: str, version: str = "1") -> Any:
    done = run(
        "--output", "json", "artifact", "write", "os", version, "--to", str(to),
        "--from", str(tmp_path / "built"), *more,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


IMAGE = program(1, 3 * MIB) + bytes(5 * MIB) + program(2, MIB) + program(3, 320)


def test_a_disk_image_comes_back_and_zeros_are_not_kept(tmp_path: Path) -> None:
    imported(tmp_path, IMAGE)
    assert len(list((tmp_path / "built" / "objects").iterdir())) == 6
    told = written(tmp_path, tmp_path / "card")
    assert (tmp_path / "card").read_bytes() == IMAGE
    assert told["blocks"] == 10
    assert written(tmp_path, tmp_path / "card")["changed"] == 0


def test_only_what_differs_is_written_and_old_content_becomes_zeros(tmp_path: Path) -> None:
    imported(tmp_path, IMAGE)
    card = tmp_path / "card"
    card.write_bytes(IMAGE[: 4 * MIB] + b"old" + IMAGE[4 * MIB + 3 :] + program(9, MIB))
    assert written(tmp_path, card, "--dry-run")["changed"] == 1
    assert card.stat().st_size > len(IMAGE)
    assert written(tmp_path, card)["changed"] == 1
    assert card.read_bytes() == IMAGE


def test_a_write_that_was_cut_off_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(tmp_path, IMAGE)
    card, real, left = tmp_path / "card", os.pwrite, [2]

    def pwrite(fd: int, data: bytes, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "the card was pulled out")
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    done = run("artifact", "write", "os", "1", "--to", str(card), "--from", str(tmp_path / "built"))
    assert done.exit_code != 0
    monkeypatch.undo()
    told = written(tmp_path, card)
    assert told["changed"] < told["blocks"] - 1
    assert card.read_bytes() == IMAGE


def test_a_card_that_lies_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported(tmp_path, IMAGE)
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: len(data))
    done = run(
        "artifact", "write", "os", "1", "--to", str(tmp_path / "card"),
        "--from", str(tmp_path / "built"),
    )  # fmt: skip
    assert done.exit_code != 0
    assert "other bytes than were written" in str(done.exception) + done.output


def test_a_device_that_is_mounted_or_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "card"
    card.write_bytes(b"x" * 1000)
    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)
    with pytest.raises(BadUsage, match="has 1000 bytes"):
        disks.Disk(card, 2000, dry_run=False)
    asked = []

    def busy(place: Path, flags: int, mode: int) -> int:
        asked.append(flags)
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(NeedsPerson, match="mounted"):
        disks.Disk(card, 500, dry_run=False)
    assert asked[0] & os.O_EXCL
    monkeypatch.undo()
    with pytest.raises(BadUsage, match="neither"):
        disks.Disk(tmp_path, 500, dry_run=False)


@pytest.mark.parametrize(
    ("path", "size"),
    [("blocks/00000002", MIB), ("blocks/1", MIB), ("blocks/00000001", MIB), ("evil", 1)],
)
def test_a_tree_with_blocks_out_of_place_is_untrusted(path: str, size: int) -> None:
    image = disks.DiskImage(MIB + 5, "0" * 64)
    tree = make_tree([Entry("blocks", "dir", 0o755), Entry(path, "file", 0o644, size, "0" * 64)])
    with pytest.raises(Untrusted, match="disk image"):
        disks.blocks_of(tree, image)


def test_an_artifact_of_another_shape_is_not_written(tmp_path: Path) -> None:
    folder = BuildFolder(tmp_path / "built")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "x").write_text("x")
    done = run(
        "artifact", "build", str(tmp_path / "app"), "--name", "os", "--version", "1",
        "--to", str(folder.path),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    card = tmp_path / "card"
    done = run("artifact", "write", "os", "1", "--to", str(card), "--from", str(folder.path))
    assert done.exit_code != 0
    assert not card.exists()
