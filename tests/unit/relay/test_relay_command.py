from __future__ import annotations

from pathlib import Path

import pytest

from edgewise.roles.relay import main


def test_a_relay_that_has_not_joined_says_how_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--state", str(tmp_path)]) == 4
    said = capsys.readouterr().err
    assert "has not joined" in said
    assert "hint: " in said


def test_a_damaged_token_is_refused_without_being_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--state", str(tmp_path), "--listen", "127.0.0.1:7443", "--name", "eu-1"]
    assert main([*given, "--join", "ew1.secret!"]) == 2
    assert "secret!" not in capsys.readouterr().err


def test_a_relay_that_listens_everywhere_must_say_where_nodes_reach_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--state", str(tmp_path), "--listen", "0.0.0.0:7443", "--name", "eu-1"]
    assert main([*given, "--join", "ew1.e30"]) == 2
    assert "--url" in capsys.readouterr().err
