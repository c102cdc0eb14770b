"""What a node's container engines are told about its relay."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgewise.cli.main import app
from edgewise.host import registries
from edgewise.identity.card import FILE, Card
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.protocol.codec import encode
from edgewise.runtime.credentials import CredentialFiles

URLS = ("https://relay-1.shop:8443", "https://10.0.0.7:8443")


@pytest.fixture
def own(tmp_path: Path) -> CredentialFiles:
    files = CredentialFiles(tmp_path / "state" / "identity")
    files.replace(key_pem=b"key", chain=[b"leaf"])
    files.trust([b"root"])
    now = datetime.now(UTC)
    card = Card(
        "spiffe://eu.acme/node/till", "spiffe://hub.acme/hub", "node", "till", "eu", URLS, "1",
        now, now + timedelta(days=1),
    )  # fmt: skip
    (files.directory / FILE).write_bytes(encode(card))
    return files


def run(own: CredentialFiles, *more: str) -> Result:
    state = str(own.directory.parent)
    return CliRunner().invoke(app, ["agent", "registry", "--state", state, *more])


def test_podman_gets_links_to_what_the_agent_renews(own: CredentialFiles, tmp_path: Path) -> None:
    to = tmp_path / "root"
    for _ in range(2):
        done = run(own, "--for", "podman", "--to", str(to))
        assert done.exit_code == 0, done.output
    certs = to / "etc/containers/certs.d/relay-1.shop:8443"
    assert (certs / "client.key").read_bytes() == b"key"
    own.replace(key_pem=b"renewed", chain=[b"leaf 2"])
    assert (certs / "client.key").read_bytes() == b"renewed"
    conf = to / "etc/containers/registries.conf.d/50-edgewise.conf"
    (entry,) = tomllib.loads(conf.read_text())["registry"]
    assert entry["prefix"] == "edgewise.internal"
    assert [one["location"] for one in entry["mirror"]] == ["relay-1.shop:8443"]
    assert entry["location"] == "10.0.0.7:8443"


def test_containerd_and_k3s_get_the_paths_of_the_nodes_own_files(
    own: CredentialFiles, tmp_path: Path
) -> None:
    done = run(own, "--for", "containerd", "--for", "k3s", "--to", str(tmp_path), "--name", "x.y")
    assert done.exit_code == 0, done.output
    hosts = tomllib.loads((tmp_path / "etc/containerd/certs.d/x.y/hosts.toml").read_text())
    assert list(hosts["host"]) == list(URLS)
    assert hosts["host"][URLS[0]]["client"] == [[str(own.chain), str(own.key)]]
    k3s = yaml.safe_load((tmp_path / "etc/rancher/k3s/registries.yaml").read_text())
    assert k3s["mirrors"]["x.y"]["endpoint"] == list(URLS)
    assert k3s["configs"]["10.0.0.7:8443"]["tls"]["ca_file"] == str(own.roots)


def test_a_file_that_somebody_else_wrote_is_left_alone(
    own: CredentialFiles, tmp_path: Path
) -> None:
    theirs = tmp_path / "etc/rancher/k3s/registries.yaml"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mirrors: {}\n")
    assert run(own, "--for", "k3s", "--to", str(tmp_path)).exit_code != 0
    assert theirs.read_text() == "mirrors: {}\n"


def test_a_dry_run_shows_and_writes_nothing(own: CredentialFiles, tmp_path: Path) -> None:
    to = tmp_path / "root"
    done = run(own, "--for", "k3s", "--to", str(to), "--dry-run")
    assert "registries.yaml" in done.stdout
    assert not to.exists()
    shown = CliRunner().invoke(
        app,
        ["--output", "json", "agent", "registry", "--state", str(own.directory.parent), "--for",
         "podman", "--dry-run"],
    )  # fmt: skip
    assert len(json.loads(shown.stdout)["podman"]["links"]) == 6


def test_a_sealed_key_and_a_node_that_has_not_joined_are_refused(
    own: CredentialFiles, tmp_path: Path
) -> None:
    own.replace_sealed(sealed_key=b"sealed", chain=[b"leaf"])
    with pytest.raises(NeedsPerson, match="sealed in its TPM"):
        registries.check_key(own)
    with pytest.raises(NeedsPerson, match="has not joined"):
        registries.check_key(CredentialFiles(tmp_path / "nothing"))


@pytest.mark.parametrize("url", ['https://a"\n[x]', "http://a", "https://", "https://u:p@a:1"])
def test_an_address_that_would_break_a_file_is_refused(own: CredentialFiles, url: str) -> None:
    for engine in registries.ENGINES:
        with pytest.raises(BadUsage, match="not like https"):
            registries.setup(engine, "edgewise.internal", [url], own)


def test_an_ostree_remote_names_the_nodes_own_files(own: CredentialFiles, tmp_path: Path) -> None:
    state = str(own.directory.parent)
    command = ["agent", "ostree-remote", "os", "--state", state, "--dry-run"]
    done = CliRunner().invoke(app, [*command, "--gpg-key", str(tmp_path / "os.gpg")])
    assert done.exit_code == 0, done.output
    assert f"--set=tls-client-key-path={own.key}" in done.stdout
    assert "--set=gpg-verify=true" in done.stdout
    assert f"{URLS[0]}/ostree/os" in done.stdout
    assert CliRunner().invoke(app, command).exit_code != 0, "who signs must be said"
