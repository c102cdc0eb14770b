"""`edgewise device` and the ways to join without a token: what is told, and which mistakes."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgewise.cli.agent import invitation
from edgewise.model.errors import BadUsage
from edgewise.protocol import api
from edgewise.protocol.join import Token

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
EK = hashlib.sha256(b"ek").hexdigest()
FAILING = api.NodeIdentity(
    "tpm", f"ek:{EK}", "CN=Maker", "", NOW, "image-1", NOW, "wrong-pcr", "PCR 11 is odd",
    {"7": "ab" * 32, "11": "cd" * 32},
)  # fmt: skip
NODE = api.NodeSummary(
    "pos-1", "", "eu", {}, "Unknown", "Unknown", "Idle", True, NOW, "", "", False,
    "quarantined: attestation: wrong-pcr",
)  # fmt: skip
DETAIL = api.NodeDetail(NODE, "linux/amd64", "0.1", NOW, "hub", identity=FAILING)


def test_node_show_says_how_a_node_proved_itself_and_why_it_fails(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/nodes/pos-1"] = DETAIL
    shown = cli("node", "show", "pos-1").out
    for words in ("its TPM", f"ek:{EK}", "CN=Maker", "boot image-1", "wrong-pcr: PCR 11 is odd"):
        assert words in shown


def test_status_counts_who_is_quarantined_and_who_fails(hub: Any, cli: Any) -> None:
    source = api.SourceStatus("", "")
    hub.answers["GET /v1/status"] = api.HubStatus(
        "acme", "0.1", "hub", source, quarantined=2, failing=3
    )
    shown = cli("status").out
    assert "2: `edgewise node ls`" in shown
    assert "3: `edgewise device ls --failing`" in shown


def test_device_ls_lists_proofs_and_asks_for_those_that_fail(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/attestations"] = api.Page((api.NodeProof("pos-1", {}, FAILING),))
    assert "PCR 11 is odd" in cli("device", "ls").out
    assert cli("device", "ls", "--failing", "-o", "json").json["items"][0]["name"] == "pos-1"
    assert "failing=True" in hub.calls[-1][0]
    hub.answers["GET /v1/attestations"] = api.Page(())
    assert cli("device", "ls", "--failing").out == "No node fails.\n"


def test_a_reference_is_printed_as_the_workspace_takes_it(hub: Any, cli: Any) -> None:
    hub.answers["GET /v1/nodes/pos-1"] = DETAIL
    printed = yaml.safe_load(cli("device", "reference", "pos-1", "--name", "image-2").out)
    [reference] = printed["spec"]["join"]["attestation"]["references"]
    assert reference == {"name": "image-2", "pcrs": {"7": "ab" * 32, "11": "cd" * 32}}
    done = cli("device", "reference", "pos-1", "--pcr", "4")
    assert done.code == 2
    assert "does not quote PCR 4" in done.err
    hub.answers["GET /v1/nodes/pos-1"] = api.NodeDetail(NODE, "", "", NOW, "hub")
    assert cli("device", "reference", "pos-1").code == 4


def test_a_suppliers_file_becomes_a_document_that_passes(cli: Any, tmp_path: Path) -> None:
    file = tmp_path / "kiosks.csv"
    file.write_text(f"name,ek,serial,model\nk1,{EK},S1,x\n,,SN-2,y\n")
    done = cli(
        "device", "import", str(file), "--name", "kiosks", "--region", "eu",
        "--label", "type=pos", "--pattern", "kiosk-{serial}",
    )  # fmt: skip
    assert done.code == 0, done.err
    repo = tmp_path / "repo"
    (repo / "nodes").mkdir(parents=True)
    (repo / "nodes" / "kiosks.yaml").write_text(done.out)
    (repo / "edgewise.yaml").write_text(
        "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: shops}\n"
    )
    assert cli("validate", str(repo)).code == 0
    spec = yaml.safe_load(done.out)["spec"]
    assert spec["defaults"] == {"region": "eu", "labels": {"type": "pos"}}
    assert spec["devices"] == [
        {"name": "k1", "ek": EK, "labels": {"model": "x", "serial": "S1"}},
        {"name": "kiosk-sn-2", "serial": "SN-2", "labels": {"model": "y"}},
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,ek\n", "no rows"),
        ("name,ek\nk1,\n", "neither ek nor serial"),
        (f"name,ek\nK 1,{EK}\n", "cannot be a node's name"),
        ("name,ek\nk1,abc\n", "make no DeviceList"),
        (f"name,ek\nk1,{EK}\nk2,{EK}\n", "stands in two rows"),
    ],
)
def test_a_mistake_in_a_suppliers_file_is_named(
    cli: Any, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "a.csv").write_text(text)
    done = cli("device", "import", str(tmp_path / "a.csv"))
    assert done.code == 2
    assert says in done.err


def test_rules_that_cannot_be_are_told_with_file_and_line(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "edgewise.yaml").write_text(
        "apiVersion: edgewise.dev/v1\nkind: Workspace\nmetadata: {name: shops}\nspec:\n"
        "  join:\n    tpm:\n      manufacturerRoots:\n      - |\n"
        "        -----BEGIN CERTIFICATE-----\n        nonsense\n"
        "    attestation:\n      interval: 1s\n"
    )
    (tmp_path / "nodes" / "d.yaml").write_text(
        "apiVersion: edgewise.dev/v1\nkind: DeviceList\nmetadata: {name: d}\n"
        "spec:\n  defaults: {region: hub}\n"
    )
    done = cli("validate", str(tmp_path))
    assert done.code == 4
    for words in ("edgewise.yaml:8", "interval is below 10 s", "nodes/d.yaml:5"):
        assert words in done.err


def test_an_invitation_is_made_of_url_and_root() -> None:
    root = "ab" * 32
    made = Token.parse(invitation("", ["https://hub:1"], root, ""))
    assert (made.urls, made.root, made.identifier, made.secret) == (
        ("https://hub:1",),
        root,
        "",
        "",
    )
    for given in (("", None, "", ""), ("", ["https://hub:1"], "", ""), ("ew1.x", None, root, "")):
        with pytest.raises(BadUsage):
            invitation(*given)
    with pytest.raises(BadUsage, match="64 lower-case"):
        invitation("", ["https://hub:1"], "AB", "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "where to join, and whom to trust"),
        (("--tpm",), "where to join, and whom to trust"),
        (("--url", "https://h:1", "--root", "ab" * 32), "lets nobody in by itself"),
        (("--factory-cert", "a.pem", "--url", "https://h:1", "--root", "ab" * 32), "go together"),
        (
            ("--tpm", "--factory-cert", "a", "--factory-key", "b", "--url", "https://h:1",
             "--root", "ab" * 32),
            "two ways in",
        ),
        (
            ("--tpm", "--tpm-device", "/nowhere/tpm", "--url", "https://127.0.0.1:9",
             "--root", "ab" * 32),
            "",
        ),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_say_so(
    cli: Any, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    done = cli("agent", "join", "--state", str(tmp_path / "node"), *options)
    assert done.code != 0
    assert says in done.err
    assert "Traceback" not in done.err


def test_a_machine_without_a_tpm_says_so(cli: Any, tmp_path: Path) -> None:
    done = cli("device", "show", "--device", str(tmp_path / "tpmrm0"))
    assert done.code == 4
    assert "there is no TPM" in done.err
