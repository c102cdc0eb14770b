"""A published artifact becomes a directory again: verified from the list to each byte."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edgewise.backends.files.builds import BuildFolder
from edgewise.backends.tuf.repository import new_key, public_pem
from edgewise.delivery.builder import make_artifact, sign_builds
from edgewise.delivery.packing import pack
from edgewise.delivery.trust import key_id
from edgewise.protocol.api import Builds
from edgewise.protocol.content import object_path

PLATFORM = "linux/amd64"


@pytest.fixture
def published(hub: Any, tmp_path: Path) -> dict[str, Path]:
    """``hello`` 1.0 on the fake hub, signed by the key in ``builder.pub``; its objects."""
    top = tmp_path / "dist"
    (top / "bin").mkdir(parents=True)
    (top / "bin" / "hello").write_text("#!/bin/sh\n")
    (top / "bin" / "hello").chmod(0o755)
    (top / "bin" / "again").symlink_to("hello")
    (top / "data").write_bytes(bytes(300_000))
    folder = BuildFolder(tmp_path / "built")
    artifact = make_artifact("hello", "1.0", {PLATFORM: folder.add_tree(top)})
    document = folder.add(artifact)
    signer = new_key(tmp_path / "builder.pem")
    (tmp_path / "builder.pub").write_bytes(public_pem(signer))
    keys = (key_id(signer.public_key),)
    upload = sign_builds(Builds(b"", keys, "builder"), signer, (document,), datetime.now(UTC))
    hub.answers["GET /v1/builds"] = Builds(upload.metadata, keys, "builder")
    objects = folder.objects(artifact)
    path = folder.document("hello", "1.0")
    for sha256, file in {**objects, _sha256(document): path}.items():
        hub.answers[f"GET /v1/content/{object_path(sha256)}"] = pack(file.read_bytes())
    return objects


def _sha256(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def test_a_published_artifact_becomes_a_directory(
    published: dict[str, Path], cli: Any, tmp_path: Path
) -> None:
    done = cli(
        "artifact", "checkout", "hello", "1.0", "--to", str(tmp_path / "out"),
        "--key", str(tmp_path / "builder.pub"), "-o", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert (tmp_path / "out/bin/hello").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "out/bin/hello").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out/bin/again").readlink() == Path("hello")
    assert (tmp_path / "out/data").stat().st_size == 300_000
    told = done.json
    assert (told["platform"], told["files"], told["size"]) == (PLATFORM, 2, 300_010)
    assert 0 < told["fetched"] < 3_000
    assert "fetched 2 of 2 contents" in done.err


def test_a_lying_hub_leaves_nothing_behind(
    published: dict[str, Path], hub: Any, cli: Any, tmp_path: Path
) -> None:
    data = next(one for one, file in published.items() if file.stat().st_size == 300_000)
    for packed, says in (
        (pack(b"other"), "other content than its name says"),
        (pack(bytes(300_001)), "more than the 300000 bytes"),
        (bytes(400_000), "more than the"),
        (b"no zstd", "not sound zstd"),
    ):
        hub.answers[f"GET /v1/content/{object_path(data)}"] = packed
        done = cli("artifact", "checkout", "hello", "1.0", "--to", str(tmp_path / "out"))
        assert done.code == 5, done.err
        assert says in done.err
        assert not (tmp_path / "out").exists()
        assert not [one for one in tmp_path.iterdir() if one.name.startswith(".out")]


def test_what_cannot_be_checked_out_is_named(
    published: dict[str, Path], cli: Any, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger.pub"
    stranger.write_bytes(public_pem(new_key(tmp_path / "stranger.pem")))
    to = ("--to", str(tmp_path / "out"))
    for words, code, says in (
        (("hello", "2.0", *to), 2, "hello 2.0 is not published"),
        (("hello", "1.0", *to, "--platform", "linux/arm64"), 2, "--platform linux/amd64"),
        (("hello", "1.0", *to, "--key", str(stranger)), 5, "none of the builders you trust"),
        (("hello", "1.0", "--to", str(tmp_path / "dist")), 2, "there already"),
        (("hello", "1.0", "--to", str(tmp_path / "no" / "where")), 4, "parent directory"),
        (("hello", "1.0", *to, "--from", "x", "--key", "y"), 2, "do not go together"),
    ):
        done = cli("artifact", "checkout", *words)
        assert (done.code, says in done.err) == (code, True), (words, done.code, done.err)


def test_a_system_artifact_says_so_and_needs_no_root_to_be_built_from_tar(
    cli: Any, tmp_path: Path
) -> None:
    import tarfile

    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        null = tarfile.TarInfo("dev/null")
        null.type, null.mode, null.devmajor, null.devminor = tarfile.CHRTYPE, 0o666, 1, 3
        archive.addfile(null)
    done = cli(
        "artifact", "build", "--system", str(tmp_path / "root.tar"), "--name", "os",
        "--version", "1", "--to", str(tmp_path / "built"), "-o", "json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["system"] is True
