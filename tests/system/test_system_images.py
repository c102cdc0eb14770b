"""podman and skopeo, as Debian has them, pull images from a real relay over mutual TLS."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "fault"))

from image_region import import_image, publish
from relay_region import Node, RelayProcess, SecureHub, eventually, join_node, region

from edgewise.cli.main import app
from edgewise.testing.images import Layout, member, program, rich_layer, tar

pytestmark = [pytest.mark.slow, pytest.mark.images]

Place = tuple[SecureHub, RelayProcess, Node]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    for needed in ("podman", "skopeo"):
        assert shutil.which(needed), f"{needed} is missing: `make test-oci` installs it"
    async with region(tmp_path) as (hub, relay):
        token = await hub.token(role="node", region="eu", via="frankfurt")
        (tmp_path / "node").mkdir()
        yield hub, relay, await join_node(tmp_path / "node", "identity", token)


async def run(*command: str, within: float = 120, **env: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(within):
        out, err = await process.communicate()
    assert process.returncode == 0, f"{command}: {err.decode()[-2000:]}"
    return out.decode()


def set_up(tmp_path: Path, relay: RelayProcess) -> str:
    """As a person does on a node; returns the relay's host and port."""
    state = str(tmp_path / "node")
    done = CliRunner().invoke(
        app, ["agent", "registry", "--state", state, "--for", "podman", "--to", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    return relay.url.removeprefix("https://")


async def test_skopeo_copies_an_image_from_a_relay_with_its_id_unchanged(
    place: Place, tmp_path: Path
) -> None:
    hub, relay, _ = place
    layout, built = Layout(tmp_path / "layout"), tmp_path / "built"
    found = layout.image(rich_layer(), tar({"b": program(1)}), packed="zstd")
    layout.add(found)
    await publish(hub, built, import_image(built, f"oci:{layout.directory}", "till", "1.0"))
    host = set_up(tmp_path, relay)
    certs = str(tmp_path / "etc/containers/certs.d" / host)
    inspect = ("skopeo", "inspect", "--cert-dir", certs)

    await eventually(lambda: relay_knows(certs, host), 20)
    said = json.loads(await run(*inspect, f"docker://{host}/till:1.0"))
    assert said["Architecture"] == "amd64"
    assert len(said["Layers"]) == 2
    raw = json.loads(await run(*inspect, "--raw", f"docker://{host}/till:1.0"))
    source = raw["annotations"]["dev.edgewise.image.source-digest"]
    assert source == found["digest"]
    copied = tmp_path / "copied"
    await run(
        "skopeo", "copy", "--src-cert-dir", certs, f"docker://{host}/till:1.0", f"oci:{copied}:x"
    )
    # And back: what a registry gave is what is imported, so it can move on to another hub.
    again = import_image(tmp_path / "again", f"oci:{copied}:x", "till", "1.0")
    assert again.trees["linux/amd64"].files > 5


async def relay_knows(certs: str, host: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        "skopeo", "list-tags", "--cert-dir", certs, f"docker://{host}/till",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait() == 0


@pytest.fixture
def short() -> Iterator[str]:
    """podman wants its run directory to have at most 50 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield folder


async def test_podman_pulls_images_by_the_fleets_name_and_keeps_their_ids(
    place: Place, tmp_path: Path, short: str
) -> None:
    hub, relay, _ = place
    layout, built = Layout(tmp_path / "layout"), tmp_path / "built"
    first = tar({"bin": member("bin", b"5", mode=0o755), "bin/till": program(1)})
    second = tar({"etc/version": b"2"})
    layout.add(layout.image(first, tar({"etc/version": b"1"})), "1")
    layout.add(layout.image(first, second), "2")
    for tag in ("1", "2"):
        await publish(hub, built, import_image(built, f"oci:{layout.directory}:{tag}", "till", tag))
    host = set_up(tmp_path, relay)
    etc = tmp_path / "etc/containers"
    await eventually(lambda: relay_knows(str(etc / "certs.d" / host), host), 20)
    podman = ("podman", "--root", f"{short}/store", "--runroot", f"{short}/run")
    podman = (*podman, "--storage-driver", "vfs")
    names = {"CONTAINERS_REGISTRIES_CONF": str(etc / "registries.conf.d/50-edgewise.conf")}
    policy = tmp_path / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    certs = str(etc / "certs.d" / host)
    for version in ("1", "2"):
        image = f"edgewise.internal/till:{version}"
        await run(
            *podman, "pull", "-q", "--signature-policy", str(policy), "--cert-dir", certs, image,
            **names,
        )  # fmt: skip
        found = json.loads(await run(*podman, "image", "inspect", image))[0]
        config = json.loads(
            (layout.directory / "blobs" / "sha256" / found["Id"]).read_text()
        )  # the image ID is the digest of the configuration that was imported
        assert found["RootFS"]["Layers"] == config["rootfs"]["diff_ids"]
        saved = tmp_path / f"saved-{version}.tar"
        await run(*podman, "save", "-q", "--format", "docker-archive", "-o", str(saved), image)
        again = import_image(tmp_path / "again", f"docker-archive:{saved}", "till", version)
        assert again.trees.keys() == {"linux/amd64"}
