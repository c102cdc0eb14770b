"""A machine joins by its TPM, attests, boots something else, and comes back: real processes."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shell_of import Shell

from edgewise.testing.swtpm import Maker, SwTpm, missing

pytestmark = pytest.mark.slow

MAKER = Maker()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


@pytest.fixture
def chip(tmp_path: Path) -> Iterator[SwTpm]:
    if why := missing():
        pytest.fail(why)
    made = SwTpm(tmp_path / "tpm")
    made.start()
    yield made
    made.stop()


def until(look: Callable[[], Any], what: str, within: float = 60) -> Any:
    """Ask until the answer is true."""
    ends = time.monotonic() + within
    while True:
        if found := look():
            return found
        assert time.monotonic() < ends, f"not within {within:.0f} s: {what}"
        time.sleep(0.2)


class Repo:
    """A fleet repo whose rules of joining change."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.path = shell.home / "shops"
        self.path.mkdir()
        self._git("init", "-q", "-b", "main")
        self.devices = ""

    def _git(self, *arguments: str) -> None:
        named = ("-c", "user.name=T", "-c", "user.email=t@example")
        subprocess.run(["git", *named, *arguments], cwd=self.path, check=True)

    def push(self, *references: str, maker: Maker = MAKER) -> None:
        """Rules with these references, each a line of YAML."""
        pem = "\n".join(f"          {line}" for line in maker.pem.splitlines())
        lines = "\n".join(f"      - {one}" for one in references)
        listed = f"references:\n{lines}" if references else "references: []"
        rules = (
            "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: shops}\nspec:\n"
            "  join:\n    token: {roles: [relay]}\n    tpm:\n      manufacturerRoots:\n"
            f"        - |\n{pem}\n    attestation:\n      interval: 10s\n      grace: 0s\n"
            f"      {listed}\n"
        )
        (self.path / "edgewise.yaml").write_text(rules)
        if self.devices:
            (self.path / "nodes").mkdir(exist_ok=True)
            (self.path / "nodes" / "kiosks.yaml").write_text(self.devices)
        self._git("add", "-A")
        self._git("commit", "-q", "--allow-empty", "-m", "Rules")
        done = self.shell.run("push", cwd=self.path)
        assert done.returncode == 0, done.stderr
        assert "edgewise.yaml:" not in done.stderr, done.stderr


def test_a_machine_joins_by_its_tpm_is_quarantined_for_another_boot_and_comes_back(
    shell: Shell, chip: SwTpm
) -> None:
    MAKER.certify(chip)
    seen = json.loads(shell.run("device", "show", "--device", chip.place, "-o", "json").stdout)
    assert seen["issuer"] == "CN=Test TPMs issuing"
    csv = shell.home / "kiosks.csv"
    csv.write_text(f"name,ek,type\nkiosk-7,{seen['ek']},pos\n")
    node = shell.home / "node"
    with shell.up("--org", "acme", "--poll", "1s"):
        repo = Repo(shell)
        listed = shell.run("device", "import", str(csv), "--name", "kiosks", "--region", "east")
        assert listed.returncode == 0, listed.stderr
        repo.devices = listed.stdout
        repo.push()
        invited = json.loads(shell.run("device", "invite", "-o", "json").stdout)
        bare = shell.run("agent", "join", invited["invitation"], "--state", str(shell.home / "b"))
        assert bare.returncode == 2
        assert "lets nobody in by itself" in bare.stderr
        joined = shell.run(
            "agent", "join", "--tpm", "--tpm-device", chip.place, "--url", invited["urls"][0],
            "--root", invited["root"], "--tuf-root", invited["tuf_root"], "--state", str(node),
        )  # fmt: skip
        assert "spiffe://east.acme/node/kiosk-7" in joined.stdout, joined.stderr
        assert not list(node.rglob("*.key"))
        with agent(shell, node):
            watch(shell, repo, chip)
        clear(shell, chip, node, invited)
        audit = shell.run("audit", "-o", "json").stdout
        for word in ("decision.quarantined", "decision.released", "its TPM"):
            assert word in audit


def watch(shell: Shell, repo: Repo, chip: SwTpm) -> None:
    """The node attests, boots something unknown, and is let go by a new reference."""

    def node() -> Any:
        return json.loads(shell.run("node", "show", "kiosk-7", "-o", "json").stdout)

    first = node()["identity"]["attested"]
    until(lambda: node()["identity"]["attested"] > first, "it attests by itself")
    reference = shell.run("device", "reference", "kiosk-7", "--name", "image-1", "-o", "json")
    repo.push(reference.stdout.replace("\n", " "))
    until(lambda: node()["identity"]["reference"] == "image-1", "it agrees with its reference")
    chip.extend(11, hashlib.sha256(b"something else").digest())
    until(lambda: "wrong-pcr" in node()["summary"]["reason"], "it is quarantined")
    shown = shell.run("node", "show", "kiosk-7").stdout
    assert "fails to attest" in shown
    assert "PCR 11 is not as in any reference (closest: image-1)" in shown
    failing = json.loads(shell.run("device", "ls", "--failing", "-o", "json").stdout)
    assert [one["name"] for one in failing["items"]] == ["kiosk-7"]
    planned = shell.run("device", "reference", "kiosk-7", "--name", "image-2", "-o", "json")
    repo.push(reference.stdout.replace("\n", " "), planned.stdout.replace("\n", " "))
    until(lambda: not node()["identity"]["reason"], "it attests well again")
    until(lambda: "quarantined" not in node()["summary"]["reason"], "it is let go")
    assert node()["identity"]["reference"] == "image-2"


def clear(shell: Shell, chip: SwTpm, node: Path, invited: Any) -> None:
    """The TPM is cleared: the agent says so and goes on; the machine joins anew."""

    def shown() -> Any:
        return json.loads(shell.run("node", "show", "kiosk-7", "-o", "json").stdout)

    assert shown()["keys"] == "tpm"
    status = shell.run("agent", "status", "--state", str(node), "-o", "json").stdout
    assert json.loads(status)["keys"] == "tpm"
    assert "sealed to its TPM" in shell.run("agent", "status", "--state", str(node)).stdout
    assert "sealed to its TPM" in shell.run("node", "show", "kiosk-7").stdout
    chip.clear()
    log = node.parent / "agent.log"
    with agent(shell, node):
        until(lambda: "own key is locked" in log.read_text(), "it says that its key is locked")
        until(lambda: "ready" in log.read_text(), "it serves its apps all the same")
    assert "it was cleared since" in log.read_text()
    assert "--anew" in log.read_text()
    again = ("agent", "join", invited["invitation"], "--tpm", "--tpm-device", chip.place)
    again = (*again, "--state", str(node))
    assert "joined already" in shell.run(*again).stderr + shell.run(*again).stdout
    forgotten = shell.run("node", "forget", "kiosk-7", "--yes")
    assert forgotten.returncode == 0, forgotten.stderr
    joined = shell.run(*again, "--anew")
    assert joined.returncode == 0, joined.stderr
    assert not (node / "identity.before").exists()
    assert not list(node.rglob("*.key"))
    with agent(shell, node):
        until(lambda: shown()["summary"]["online"], "it speaks to its hub again")


class agent:
    """`edgewise agent run`, stopped at the end."""

    def __init__(self, shell: Shell, state: Path) -> None:
        self._command = [sys.executable, "-m", "edgewise", "agent", "run", "--state", str(state)]
        self._command += ["--root", str(state / "root"), "--sessions"]
        self._environment = shell.environment()
        self._log = state.parent / "agent.log"

    def __enter__(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stderr=log)

    def __exit__(self, kind: object, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            if kind is not None:
                sys.stdout.write(self._log.read_text()[-5000:])


def test_certificates_that_swtpm_setup_made_lead_to_their_root(
    shell: Shell, tmp_path: Path
) -> None:
    """Certificates, extensions and NV layout that nobody here wrote (swtpm-tools)."""
    if why := missing():
        pytest.fail(why)
    chip = SwTpm(tmp_path / "made")
    chip.directory.mkdir()
    conf = tmp_path / "ca.conf"
    ca = tmp_path / "ca"
    conf.write_text(
        f"statedir={ca}\nsigningkey={ca}/signkey.pem\nissuercert={ca}/issuer.pem\n"
        f"certserial={ca}/serial\n"
    )
    setup = tmp_path / "setup.conf"
    setup.write_text(
        f"create_certs_tool=/usr/bin/swtpm_localca\ncreate_certs_tool_config={conf}\n"
        f"create_certs_tool_options=/etc/swtpm-localca.options\n"
    )
    done = subprocess.run(
        [
            "swtpm_setup", "--tpm2", "--tpmstate", str(chip.directory), "--create-ek-cert",
            "--create-platform-cert", "--lock-nvram", "--overwrite", "--config", str(setup),
        ],
        capture_output=True, text=True, check=False,
        env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    chip.start()
    try:
        join_with(shell, chip, (ca / "swtpm-localca-rootca-cert.pem").read_text(),
                  (ca / "issuer.pem").read_text())  # fmt: skip
    finally:
        chip.stop()


def join_with(shell: Shell, chip: SwTpm, root: str, issuer: str) -> None:
    class Found(Maker):
        @property
        def pem(self) -> str:
            return f"{root.strip()}\n{issuer.strip()}"

    seen = json.loads(shell.run("device", "show", "--device", chip.place, "-o", "json").stdout)
    assert seen["kind"] == "RSA 2048"
    with shell.up("--org", "acme"):
        repo = Repo(shell)
        row = f"- {{name: kiosk-1, ek: {seen['ek']}}}"
        repo.devices = (
            "apiVersion: edgewise.dev/v1\nkind: DeviceList\nmetadata: {name: all}\n"
            f"spec:\n  devices:\n  {row}\n"
        )
        repo.push(maker=Found())
        invited = shell.run("device", "invite").stdout.strip()
        joined = shell.run(
            "agent", "join", invited, "--tpm", "--tpm-device", chip.place,
            "--state", str(shell.home / "node"),
        )  # fmt: skip
        assert "spiffe://default.acme/node/kiosk-1" in joined.stdout, joined.stderr
        shown = shell.run("node", "show", "kiosk-1").stdout
        assert "swtpm-localca" in shown
