"""`edgewise up` and its neighbours as real processes, with the mistakes that people make."""

import json
from pathlib import Path

import pytest
from shell_of import Shell

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path / "home")


def test_a_hub_starts_is_found_and_stops_by_ctrl_c(shell: Shell) -> None:
    with shell.up("--org", "acme"):
        status = shell.run("status", "-o", "json")
        assert json.loads(status.stdout)["organisation"] == "acme"
        refused = shell.run("up", "--listen", "127.0.0.1:0")
        assert refused.returncode == 4
        assert "in use by another Edgewise process" in refused.stderr
    gone = shell.run("status")
    assert gone.returncode == 3
    assert "`edgewise up` starts it" in gone.stderr


def test_a_hub_remembers_its_organisation_and_keeps_the_operators_files(shell: Shell) -> None:
    with shell.up("--org", "acme"):
        first = (shell.data / "operator" / "svid.pem").read_bytes()
    other = shell.run("up", "--org", "other", "--listen", "127.0.0.1:0")
    assert other.returncode == 4
    assert "organisation 'acme', not 'other'" in other.stderr
    with shell.up():
        assert shell.run("status").returncode == 0
        assert (shell.data / "operator" / "svid.pem").read_bytes() == first


def test_a_taken_port_is_said_before_anything_else_goes_wrong(shell: Shell) -> None:
    with shell.up() as url:
        port = url.rpartition(":")[2]
        second = shell.run("up", "--data", str(shell.home / "2"), "--listen", f"127.0.0.1:{port}")
        assert second.returncode == 2
        assert "cannot listen on" in second.stderr
        # Where nothing was said, the first hub stays the one that is found.
        assert shell.run("status").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--listen", "nowhere"), "is not HOST:PORT"),
        (("--listen", "0.0.0.0:0"), "add --url"),
        (("--hold", "soon"), "--hold"),
        (("--url", "http://hub"), "is not like https://"),
        (("--org", "Acme Inc"), "is not a DNS label"),
    ],
)
def test_a_wrong_option_names_itself(shell: Shell, arguments: tuple[str, ...], says: str) -> None:
    done = shell.run("up", *(("--listen", "127.0.0.1:0") if "--listen" not in arguments else ()),
                     *arguments)  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_joins_with_a_token_and_says_what_it_is(shell: Shell) -> None:
    with shell.up("--org", "acme"):
        token = shell.run("node", "token", "--region", "east").stdout.strip()
        node = ("--state", str(shell.home / "node"))
        assert shell.run("agent", "run", *node).returncode == 4
        joined = shell.run("agent", "join", token, "--name", "till", *node)
        assert "spiffe://east.acme/node/till" in joined.stdout, joined.stderr
        again = shell.run("agent", "join", token, "--name", "till", *node)
        assert "joined already" in again.stdout
        status = json.loads(shell.run("agent", "status", *node, "-o", "json").stdout)
        assert status["id"] == "spiffe://east.acme/node/till"
        damaged = shell.run("agent", "join", "ew1.x", "--state", str(shell.home / "b"))
        assert damaged.returncode == 2
        assert "Traceback" not in damaged.stderr
