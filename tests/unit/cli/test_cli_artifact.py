"""Artifacts: built without a hub, signed with a builder's key, sent without what is there."""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tuf.api.metadata import Targets
from typer.testing import CliRunner

from edgewise.backends.tuf.repository import load_key
from edgewise.cli.main import app
from edgewise.cli.sending import FILES_TOGETHER, SMALL, TOGETHER, batches
from edgewise.delivery import trust
from edgewise.net.api.supply import OBJECTS_BODY
from edgewise.protocol.api import Builds, HubStatus, MissingObjects, SourceStatus
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Artifact
from edgewise.protocol.travel import DeltaLine, DeltaStatus


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    folder = tmp_path / "dist"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "hello").write_text("#!/bin/sh\necho hello\n")
    (folder / "same").write_text("twice")
    (folder / "again").write_text("twice")
    return folder


@pytest.fixture
def built(cli: Any, dist: Path, tmp_path: Path) -> Path:
    out = tmp_path / "built"
    done = cli(
        "artifact", "build", str(dist), "--name", "hello", "--version", "1.0",
        "--platform", "linux/amd64", "--to", str(out),
    )  # fmt: skip
    assert done.code == 0, done.err
    return out


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_building_needs_no_hub_and_keeps_each_content_once(built: Path) -> None:
    artifact = decode((built / "artifacts/hello/1.0.json").read_bytes(), Artifact, what="artifact")
    assert artifact.trees["linux/amd64"].files == 3
    assert {p.name for p in (built / "objects").iterdir()} == {
        sha256("#!/bin/sh\necho hello\n"), sha256("twice"),
    }  # fmt: skip
    assert [p.name for p in (built / "trees").iterdir()] == [artifact.trees["linux/amd64"].sha256]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": "He llo"}, "not a DNS label"),
        ({"version": "1/0"}, "cannot be part of"),
        ({"version": "../x"}, "cannot be part of"),
        ({"directory": "amd64=."}, "is not like linux/amd64"),
        ({"directory": "linux/amd64="}, "is not like linux/amd64=dist"),
        ({"directory": "/nowhere"}, "is not a directory"),
    ],
)
def test_what_cannot_be_built_is_named(
    cli: Any, dist: Path, tmp_path: Path, changed: dict[str, str], says: str
) -> None:
    line = {"name": "hello", "version": "1", "directory": str(dist), **changed}
    done = cli(
        "artifact", "build", line["directory"], "--name", line["name"],
        "--version", line["version"], "--to", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.code == 2
    assert says in done.err


def test_each_platform_may_have_its_own_directory(cli: Any, dist: Path, tmp_path: Path) -> None:
    done = cli(
        "artifact", "build", f"linux/amd64={dist}", f"linux/arm64={dist / 'bin'}",
        "--name", "hello", "--version", "2", "--to", str(tmp_path / "o"), "-o", "json",
    )  # fmt: skip
    files = {one: ref["files"] for one, ref in done.json["trees"].items()}
    assert files == {"linux/amd64": 3, "linux/arm64": 1}


def test_publishing_sends_only_what_the_hub_lacks(hub: Any, cli: Any, built: Path) -> None:
    hub.answers["GET /v1/builds"] = Builds(b"", (), "hub")
    hub.answers["POST /v1/objects/missing"] = MissingObjects((sha256("twice"),))
    hub.answers[f"PUT /v1/objects/{sha256('twice')}"] = None
    hub.answers["POST /v1/builds"] = None
    done = cli("artifact", "publish", "hello", "1.0", "--from", str(built))
    assert done.code == 0, done.err
    assert done.out.startswith("published: hello 1.0, 5 B of ")
    calls = dict(hub.calls)
    # Two contents, the tree's manifest, an SBOM and provenance.
    assert len(calls["POST /v1/objects/missing"]["sha256"]) == 5
    assert calls[f"PUT /v1/objects/{sha256('twice')}"] == b"twice"
    upload = calls["POST /v1/builds"]
    assert upload["metadata"] == ""
    assert (
        base64.b64decode(upload["documents"][-1])
        == (built / "artifacts/hello/1.0.json").read_bytes()
    )


def test_small_files_travel_together_and_large_ones_alone(
    hub: Any, cli: Any, tmp_path: Path
) -> None:
    dist = tmp_path / "many"
    dist.mkdir()
    texts = [f"file {number}" for number in range(30)]
    for number, text in enumerate(texts):
        (dist / str(number)).write_text(text)
    (dist / "large").write_text("l" * (SMALL + 1))
    line = ("--name", "many", "--version", "1", "--no-sbom", "--no-provenance")
    to = str(tmp_path / "out")
    assert cli("artifact", "build", str(dist), *line, "--to", to).code == 0
    large, small = sha256("l" * (SMALL + 1)), tuple(map(sha256, texts))
    hub.answers["GET /v1/builds"] = Builds(b"", (), "hub")
    hub.answers["POST /v1/objects/missing"] = MissingObjects((large, *small))
    hub.answers[f"PUT /v1/objects/{large}"] = None
    hub.answers["POST /v1/objects"] = None
    hub.answers["POST /v1/builds"] = None
    done = cli("artifact", "publish", "many", "1", "--from", to)
    assert done.code == 0, done.err
    calls = [(name, body) for name, body in hub.calls if "/v1/objects" in name]
    assert len(calls) == 3
    together = dict(calls)["POST /v1/objects"]["contents"]
    assert {base64.b64decode(data).decode() for data in together.values()} == set(texts)
    assert calls[0][0] == "POST /v1/objects/missing"
    names = [name for name, _ in hub.calls]
    assert names.index("POST /v1/builds") > names.index("POST /v1/objects")


def test_an_older_hub_gets_small_files_one_by_one(hub: Any, cli: Any, built: Path) -> None:
    texts = ("twice", "#!/bin/sh\necho hello\n")
    hub.answers["GET /v1/builds"] = Builds(b"", (), "hub")
    hub.answers["POST /v1/objects/missing"] = MissingObjects(tuple(map(sha256, texts)))
    hub.answers["POST /v1/builds"] = None
    for text in texts:
        hub.answers[f"PUT /v1/objects/{sha256(text)}"] = None
    done = cli("artifact", "publish", "hello", "1.0", "--from", str(built))
    assert done.code == 0, done.err
    calls = dict(hub.calls)
    assert [calls[f"PUT /v1/objects/{sha256(text)}"] for text in texts] == [
        text.encode() for text in texts
    ]


@given(st.lists(st.integers(0, 3 * SMALL), max_size=200))
def test_every_object_travels_once_within_what_the_hub_takes(given_sizes: list[int]) -> None:
    sizes = {str(number): size for number, size in enumerate(given_sizes)}
    made = list(batches(sizes, sizes))
    assert sorted(one for batch in made for one in batch) == sorted(sizes)
    for batch in made:
        assert len(batch) == 1 or sum(sizes[one] for one in batch) <= TOGETHER
        assert len(batch) == 1 or max(sizes[one] for one in batch) <= SMALL
        assert len(batch) <= FILES_TOGETHER


def test_many_small_files_do_not_travel_one_by_one() -> None:
    sizes = {str(number): 500 for number in range(5000)}
    assert len(list(batches(sizes, sizes))) == 5
    assert len(list(batches(sizes, dict.fromkeys(sizes, SMALL)))) == 5000 * SMALL // TOGETHER + 1
    assert OBJECTS_BODY > (TOGETHER + SMALL) * 4 // 3 + FILES_TOGETHER * 100


def test_a_builders_signature_goes_along_and_can_be_made_before(
    hub: Any, cli: Any, built: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys" / "builder.pem"
    identifier = cli("artifact", "key", str(file)).out.strip()
    assert file.stat().st_mode & 0o077 == 0
    assert cli("artifact", "key", str(file)).code == 2
    hub.answers["GET /v1/builds"] = Builds(b"", (identifier,), "builder")
    hub.answers["POST /v1/objects/missing"] = MissingObjects(())
    hub.answers["POST /v1/builds"] = None
    hub.answers["GET /v1/status"] = HubStatus("acme", "1", "builder", SourceStatus("", ""))
    refused = cli("artifact", "publish", "hello", "1.0", "--from", str(built))
    assert refused.code == 4
    assert "--key" in refused.err
    assert (
        cli("artifact", "sign", "hello", "1.0", "--from", str(built), "--key", str(file)).code == 0
    )
    assert cli("artifact", "publish", "hello", "1.0", "--from", str(built)).code == 0
    sent = base64.b64decode(dict(hub.calls)["POST /v1/builds"]["metadata"])
    builds = trust.parse(sent, Targets, what="builds.json")
    assert list(builds.signed.targets) == ["artifacts/hello/1.0.json"]
    public = load_key(file).public_key
    public.verify_signature(builds.signatures[public.keyid], builds.signed_bytes)


def test_a_key_that_the_hub_does_not_know_signs_nothing(
    hub: Any, cli: Any, built: Path, tmp_path: Path
) -> None:
    cli("artifact", "key", str(tmp_path / "other.pem"))
    hub.answers["GET /v1/builds"] = Builds(b"", ("f" * 64,), "builder")
    done = cli(
        "artifact",
        "publish",
        "hello",
        "1.0",
        "--from",
        str(built),
        "--key",
        str(tmp_path / "other.pem"),
    )
    assert done.code == 4
    assert "does not know the key" in done.err
    assert [call for call, _ in hub.calls] == ["GET /v1/builds"]


def test_json_is_the_artifact_itself(cli: Any, dist: Path, tmp_path: Path) -> None:
    done = cli(
        "artifact", "build", str(dist), "--name", "hello", "--version", "1.0",
        "--to", str(tmp_path / "o"), "-o", "json",
    )  # fmt: skip
    assert done.json == json.loads((tmp_path / "o/artifacts/hello/1.0.json").read_text())


def test_what_was_not_built_is_not_published(hub: Any, cli: Any, tmp_path: Path) -> None:
    done = cli("artifact", "publish", "hello", "1.0", "--from", str(tmp_path))
    assert done.code == 2
    assert "artifact build" in done.err
    assert cli("artifact", "publish", "..", "1.0", "--from", str(tmp_path)).code == 2
    assert hub.calls == []


def test_a_build_script_is_run_for_each_platform(tmp_path: Path) -> None:
    script = tmp_path / "build"
    script.write_text('#!/bin/sh\necho "$TARGETARCH $VERSION" > "$OUTPUT/what"\n')
    line = f"artifact build {script} --name x --version 2 --to {tmp_path / 'b'}".split()
    line += ["--platform", "linux/amd64", "--platform", "linux/arm64"]
    refused = CliRunner().invoke(app, line)
    assert refused.exit_code == 4
    script.chmod(0o755)
    assert CliRunner().invoke(app, line).exit_code == 0
    kept = {f.read_text() for f in (tmp_path / "b" / "objects").rglob("*") if f.is_file()}
    assert kept == {"amd64 2\n", "arm64 2\n"}


def test_publishing_waits_for_the_deltas_and_says_what_each_saves(
    cli: Any, hub: Any, built: Path
) -> None:
    hub.answers["GET /v1/builds"] = Builds(b"", (), "hub")
    hub.answers["POST /v1/objects/missing"] = MissingObjects(())
    hub.answers["POST /v1/builds"] = None
    line = DeltaLine(
        "hello", "1.0", ("linux/amd64",), "0.9", "Ready", "b" * 64, "a" * 64, 1_200_000, 40_000_000
    )
    pack = replace(line, base="", base_version="", size=30_000_000, objects=120)
    poor = replace(line, base="c" * 64, base_version="0.8", state="NotWorth")
    other = replace(line, version="2.0", state="Making")
    hub.answers["GET /v1/deltas"] = DeltaStatus((line, pack, poor, other), 31_200_000, 3)
    done = cli("artifact", "publish", "hello", "1.0", "--from", str(built))
    assert done.code == 0
    assert "from 0.9 on linux/amd64: 1.2 MB of 40.0 MB, 97 % saved" in done.err
    assert "first install on linux/amd64: 30.0 MB of 40.0 MB, 25 % saved, one file" in done.err
    assert "0.8" not in done.err
    hub.calls.clear()
    cli("artifact", "publish", "hello", "1.0", "--from", str(built), "--no-wait")
    assert "GET /v1/deltas" not in dict(hub.calls)


def test_the_hubs_deltas_are_listed_with_what_they_save(cli: Any, hub: Any) -> None:
    line = DeltaLine(
        "hello", "1.0", ("linux/amd64",), "0.9", "Ready", "b" * 64, "a" * 64, 1_200_000, 40_000_000
    )
    pack = replace(line, artifact="stock", base="", base_version="", state="Making", percent=40)
    hub.answers["GET /v1/deltas"] = DeltaStatus((line, pack), 31_200_000, 3)
    done = cli("delta", "ls")
    assert done.code == 0, done.err
    assert "hello 1.0" in done.out
    assert "97 %" in done.out
    assert "Making 40 %" in done.out
    assert "31.2 MB" in done.err
    some = cli("delta", "ls", "stock", "--output", "json")
    assert [one["artifact"] for one in some.json["deltas"]] == ["stock"]
    hub.answers["GET /v1/deltas"] = DeltaStatus((), 0, 0)
    assert "makes none" in cli("delta", "ls").out
