"""How an agent is told what to do, and what it says of itself without a hub."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import pytest

from edgewise.host.memory import NodeFile
from edgewise.model.errors import BadUsage, TryLater, Untrusted
from edgewise.protocol.tasks import error_of, failed_of
from edgewise.roles.agent import local_status, settings_of
from edgewise.rollout.node import Node
from edgewise.rollout.node_ports import Kept


def test_options_in_both_forms() -> None:
    settings = settings_of(["--state=/s", "--root", "/r", "--stop-apps", "--name", "n"])
    assert (settings.state, settings.root, settings.name) == (Path("/s"), Path("/r"), "n")
    assert settings.stop_apps
    assert not settings.sessions


@pytest.mark.parametrize("bad", [["state"], ["--nonsense"], ["--state"]])
def test_a_wrong_option_is_an_error_that_names_it(bad: list[str]) -> None:
    with pytest.raises(BadUsage, match=bad[0]):
        settings_of(bad)


def test_a_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWISE_TOKEN", "ew1.x")
    assert settings_of(["--token", "ew1.y"]).token == "ew1.y"
    assert settings_of([]).token == "ew1.x"
    assert "EDGEWISE_TOKEN" not in os.environ, "what it starts does not inherit it"
    assert settings_of([]).token == ""


def test_a_token_may_come_from_a_file_or_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("ew1.f\n")
    assert settings_of(["--token", f"@{file}"]).token == "ew1.f"
    monkeypatch.setattr("sys.stdin", StringIO("ew1.s\nmore\n"))
    assert settings_of(["--token", "-"]).token == "ew1.s"
    for empty in ("", "\n"):
        monkeypatch.setattr("sys.stdin", StringIO(empty))
        with pytest.raises(BadUsage, match="holds no token"):
            settings_of(["--token", "-"])
    with pytest.raises(BadUsage, match="cannot be read: No such file"):
        settings_of(["--token", f"@{tmp_path / 'gone'}"])
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadUsage, match="it is no text"):
        settings_of(["--token", f"@{file}"])


def test_a_machine_that_never_joined_says_so_and_nothing_is_made_there(tmp_path: Path) -> None:
    assert "has not joined" in local_status(tmp_path)["problem"]
    NodeFile(tmp_path).save(Kept(Node("n", running="a" * 64)))
    assert local_status(tmp_path)["running"] == "a" * 64
    assert [p.name for p in tmp_path.iterdir()] == ["node.json"]


def test_an_error_of_the_worker_arrives_as_what_it_was() -> None:
    class Special(Untrusted):
        pass

    arrived = error_of(failed_of(Special("forged", hint="look")))
    assert (type(arrived), str(arrived), arrived.hint) == (Untrusted, "forged", "look")
    later = error_of(failed_of(TryLater("soon")))
    assert isinstance(later, TryLater)
    assert later.wait.total_seconds() == 5
