"""containerd, as Debian has it, pulls images from a real relay over mutual TLS, and so would k3s.

k3s itself is no Debian package and is not run here. What is checked: its registries.yaml has only
fields that its documentation names, and containerd pulls with the hosts.toml that follows from it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "fault"))

from image_region import import_image, publish, shown
from relay_region import Node, RelayProcess, SecureHub, eventually, join_node, region

from edgewise.cli.main import app
from edgewise.net.api.supply import SupplyRoutes
from edgewise.net.routes import Call
from edgewise.testing.images import Layout, member, program, tar

pytestmark = [pytest.mark.slow, pytest.mark.images]

Place = tuple[SecureHub, RelayProcess, Node]


class Containerd:
    """A containerd with a store and a socket of its own."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "c.sock"
        folder.mkdir()
        self._said = folder / "said"
        self._config = folder / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
            f'[grpc]\n  address = "{self.socket}"\n'
        )
        self._process: asyncio.subprocess.Process

    async def open(self) -> None:
        with self._said.open("wb") as said:
            self._process = await asyncio.create_subprocess_exec(
                "containerd", "--config", str(self._config), stdout=said, stderr=said
            )
        await eventually(self._answers, 20)

    async def _answers(self) -> bool:
        return (await self._ctr("version"))[0] == 0

    async def _ctr(self, *command: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            *("ctr", "-a", str(self.socket), *command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    async def pull(self, hosts: Path, image: str) -> str:
        """Every blob of the image; what ctr said."""
        code, said = await self._ctr("content", "fetch", "--hosts-dir", str(hosts), image)
        assert code == 0, said
        return said

    async def blob(self, digest: str) -> bytes:
        code, said = await self._ctr("content", "get", digest)
        assert code == 0, said
        return said.encode()

    async def blobs(self) -> set[str]:
        code, said = await self._ctr("content", "ls", "-q")
        assert code == 0, said
        return set(said.split())

    async def close(self) -> None:
        self._process.terminate()
        await self._process.wait()


@pytest.fixture
async def fetched(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each object was asked for at the hub."""
    counted: Counter[str] = Counter()
    real = SupplyRoutes.content

    async def content(self: SupplyRoutes, call: Call[None]) -> Any:
        counted[call.path["path"]] += call.path["path"].startswith("objects/")
        return await real(self, call)

    monkeypatch.setattr(SupplyRoutes, "content", content)
    return counted


@pytest.fixture
async def place(tmp_path: Path, fetched: Counter[str]) -> AsyncIterator[Place]:
    for needed in ("containerd", "ctr"):
        assert shutil.which(needed), f"{needed} is missing: `make test-oci` installs it"
    assert os.geteuid() == 0, "containerd needs root"
    async with region(tmp_path) as (hub, relay):
        token = await hub.token(role="node", region="eu", via="frankfurt")
        (tmp_path / "node").mkdir()
        yield hub, relay, await join_node(tmp_path / "node", "identity", token)


async def published(place: Place, folder: Path) -> dict[str, Any]:
    """An image of two layers that the relay knows of; what its layout says of it."""
    hub, relay, node = place
    layout, built = Layout(folder / "layout"), folder / "built"
    first = tar({"bin": member("bin", b"5", mode=0o755), "bin/till": program(1)})
    layout.add(layout.image(first, tar({f"etc/{n}": program(n) for n in range(20)})))
    await publish(hub, built, import_image(built, f"oci:{layout.directory}", "till", "1"))
    tls = shown(node.identity.credentials, node.identity.credentials.roots)

    async def known() -> bool:
        async with (
            aiohttp.ClientSession(relay.url) as web,
            web.get("/v2/till/tags/list", ssl=tls) as answer,
        ):
            return answer.status == 200

    await eventually(known, 20)
    index = json.loads((layout.directory / "index.json").read_text())
    manifest = layout.directory / "blobs/sha256" / index["manifests"][0]["digest"][7:]
    found: dict[str, Any] = json.loads(manifest.read_text())
    return found


def set_up(folder: Path, engine: str) -> Path:
    """As a person does on a node; the folder with what was written."""
    state = str(folder / "node")
    line = ("agent", "registry", "--state", state, "--for", engine, "--to", str(folder))
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    return folder / "etc"


async def test_containerd_pulls_by_the_fleets_name_with_the_hosts_toml_that_was_written(
    place: Place, tmp_path: Path
) -> None:
    source = await published(place, tmp_path)
    hosts = set_up(tmp_path, "containerd") / "containerd/certs.d"
    engine = Containerd(tmp_path / "c")
    await engine.open()
    try:
        await engine.pull(hosts, "edgewise.internal/till:1")
        here = await engine.blobs()
        assert source["config"]["digest"] in here, "the image ID is what was imported"
        config = json.loads(await engine.blob(source["config"]["digest"]))
        assert set(config["rootfs"]["diff_ids"]) <= here, "layers are served uncompressed"
    finally:
        await engine.close()


async def test_containerds_that_pull_at_once_cost_the_hub_each_object_once(
    place: Place, tmp_path: Path, fetched: Counter[str]
) -> None:
    await published(place, tmp_path)
    hosts = set_up(tmp_path, "containerd") / "containerd/certs.d"
    engines = [Containerd(tmp_path / f"c{number}") for number in range(4)]
    try:
        for engine in engines:
            await engine.open()
        await asyncio.gather(
            *(engine.pull(hosts, "edgewise.internal/till:1") for engine in engines)
        )
        held = [await engine.blobs() for engine in engines]
    finally:
        for engine in engines:
            await engine.close()
    assert held[0]
    assert all(one == held[0] for one in held)
    objects = {path: count for path, count in fetched.items() if count}
    assert len(objects) > 20
    assert set(objects.values()) == {1}


async def test_a_registries_yaml_of_k3s_leads_its_containerd_to_the_relay(
    place: Place, tmp_path: Path
) -> None:
    await published(place, tmp_path)
    text = (set_up(tmp_path, "k3s") / "rancher/k3s/registries.yaml").read_text()
    hosts = tmp_path / "certs.d"
    for name, toml in as_k3s_does(yaml.safe_load(text)).items():
        (hosts / name).mkdir(parents=True)
        (hosts / name / "hosts.toml").write_text(toml)
    assert [one.name for one in hosts.iterdir()] == ["edgewise.internal"]
    engine = Containerd(tmp_path / "c")
    await engine.open()
    try:
        await engine.pull(hosts, "edgewise.internal/till:1")
        assert await engine.blobs()
    finally:
        await engine.close()


def as_k3s_does(registries: dict[str, Any]) -> dict[str, str]:
    """hosts.toml by registry, of registries.yaml, after "Private Registry Configuration" of k3s'
    documentation. Fields that it does not name fail."""
    assert set(registries) <= {"mirrors", "configs"}
    made = {}
    for name, mirror in registries["mirrors"].items():
        assert set(mirror) <= {"endpoint", "rewrite"}
        lines = [f'server = "https://{name}/v2"', 'capabilities = ["pull", "resolve"]']
        for endpoint in mirror["endpoint"]:
            host = endpoint.removeprefix("https://")
            config = registries["configs"][host]
            assert set(config) <= {"auth", "tls"}
            tls = config["tls"]
            assert set(tls) <= {"cert_file", "key_file", "ca_file", "insecure_skip_verify"}
            lines += [
                f'[host."{endpoint}/v2"]',
                '  capabilities = ["pull", "resolve"]',
                f'  ca = ["{tls["ca_file"]}"]',
                f'  client = [["{tls["cert_file"]}", "{tls["key_file"]}"]]',
            ]
        made[name] = "\n".join((*lines, ""))
    return made
