"""An artifact as people see it, from a copy of a hub's content and without any network."""

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.files.objects import FileObjects
from edgewise.backends.tuf.repository import FileKeys, FileMetadata
from edgewise.delivery.on_hub import Publisher
from edgewise.protocol.api import BuildsUpload
from edgewise.protocol.content import object_path
from edgewise.runtime.clock import SystemClock


@pytest.fixture
def content(cli: Any, tmp_path: Path) -> Path:
    """A published artifact ``hello 1.0`` with an SBOM and signed provenance."""
    dist, built, root = (tmp_path / name for name in ("dist", "built", "content"))
    (dist / "bin").mkdir(parents=True)
    (dist / "bin/hello").write_text("#!/bin/sh\necho hello\n")
    done = cli(
        "artifact", "build", str(dist), "--name", "hello", "--version", "1.0",
        "--platform", "linux/amd64", "--to", str(built),
    )  # fmt: skip
    assert done.code == 0, done.err
    asyncio.run(publish(built, root, tmp_path / "keys"))
    return root


async def publish(built: Path, root: Path, keys: Path) -> None:
    from edgewise.cli.evidence import signed_by

    objects = FileObjects(root)
    publisher = await Publisher.open(
        FileMetadata(root / "tuf"), FileKeys(keys), objects, clock=SystemClock()
    )
    folder = BuildFolder(built)
    data, artifact = signed_by(folder, "hello", "1.0", keys / "builder.pem")
    for sha256, file in folder.objects(artifact).items():
        await objects.put(sha256, file.read_bytes())
    await publisher.accept_builds(BuildsUpload(b"", (data,)))


def test_it_shows_trees_sbom_and_who_signed(cli: Any, content: Path) -> None:
    done = cli("artifact", "show", "hello", "1.0", "--from", str(content))
    assert done.code == 0, done.err
    assert "CycloneDX 1.6: 1 file (incomplete)" in done.out
    assert "yes, by " in done.out
    assert "by-hand" in done.out


def test_json_has_all_of_it(cli: Any, content: Path) -> None:
    done = cli("artifact", "show", "hello", "1.0", "--from", str(content), "-o", "json")
    shown = json.loads(done.out)
    assert shown["provenance"]["signed_by"] == shown["builders"]
    assert shown["sboms"]["linux/amd64"]["components"] == 1
    assert shown["expired"] == []


def test_the_raw_documents_can_be_had(cli: Any, content: Path) -> None:
    line = ("artifact", "show", "hello", "1.0", "--from", str(content))
    assert json.loads(cli(*line, "--sbom", "linux/amd64").out)["bomFormat"] == "CycloneDX"
    envelope = json.loads(cli(*line, "--provenance").out)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    missing = cli(*line, "--sbom", "linux/arm64")
    assert (missing.code, "linux/amd64" in missing.err) == (2, True)


def test_verify_reads_every_object_again(cli: Any, content: Path, tmp_path: Path) -> None:
    line = ("artifact", "verify", "hello", "1.0", "--from", str(content))
    done = cli(*line)
    assert done.code == 0, done.err
    assert done.out.startswith("ok: hello 1.0, 4 objects")
    assert "compare" in done.err
    root = tmp_path / "root.json"
    shutil.copy(content / "tuf/1.root.json", root)
    assert "compare" not in cli(*line, "--root", str(root)).err


def damage(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        file = max((root / "tuf").glob(f"*{name}.json"))
        file.write_bytes(file.read_bytes().replace(b"2", b"3", 1))

    return change


def swap(root: Path) -> None:
    """One object in place of another, both well packed."""
    first, second = sorted((root / "objects").glob("*/*.zst"))[:2]
    shutil.copy(first, second)


def lose(root: Path) -> None:
    """The last object that is not the artifact's own document."""
    from edgewise.model.names import Digest

    sha256 = Digest.of(b"#!/bin/sh\necho hello\n").sha256
    (root / object_path(sha256)).unlink()


@pytest.mark.parametrize(
    ("change", "code"),
    [(damage("timestamp"), 5), (damage("builds"), 5), (damage("1.root"), 5), (swap, 5), (lose, 2)],
)
def test_what_was_changed_does_not_verify(
    cli: Any, content: Path, change: Callable[[Path], None], code: int
) -> None:
    change(content)
    done = cli("artifact", "verify", "hello", "1.0", "--from", str(content))
    assert done.code == code, done.out + done.err


def test_a_root_of_another_organisation_trusts_none_of_it(
    cli: Any, content: Path, tmp_path: Path
) -> None:
    async def other() -> None:
        await Publisher.open(
            FileMetadata(tmp_path / "other/tuf"), FileKeys(tmp_path / "k"),
            FileObjects(tmp_path / "other"), clock=SystemClock(),
        )  # fmt: skip

    asyncio.run(other())
    theirs = str(tmp_path / "other/tuf/1.root.json")
    done = cli("artifact", "show", "hello", "1.0", "--from", str(content), "--root", theirs)
    assert done.code == 5


def test_an_artifact_that_is_not_there_is_named_with_what_is(cli: Any, content: Path) -> None:
    done = cli("artifact", "show", "hello", "2.0", "--from", str(content))
    assert done.code == 2
    assert "versions of hello: 1.0" in done.err
