"""The command's own pages: quick help, and docs/cli.md that is never behind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from edgewise.cli.main import hoist
from edgewise.cli.reference import text
from edgewise.cli.verbs import VERBS

DOCS = Path(__file__).parents[3] / "docs" / "cli.md"


def test_the_reference_has_every_verb_and_option() -> None:
    assert DOCS.read_text() == text(), "run `python -m edgewise reference`"
    for verb in VERBS:
        assert verb.hidden or f"## `edgewise {verb.name}" in text()


def test_help_loads_neither_verbs_nor_messages() -> None:
    asked = (
        "import sys; from edgewise.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked + "print(sorted(m for m in sys.modules if 'edgewise' in m))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = done.stdout.splitlines()[-1]
    assert "edgewise.cli.main" in loaded
    assert "edgewise.cli.rollout" not in loaded
    assert "edgewise.protocol" not in loaded


def test_global_options_may_stand_anywhere_but_after_two_dashes() -> None:
    assert hoist(["node", "ls", "-o", "json"]) == ["-o", "json", "node", "ls"]
    assert hoist(["status", "--output=json"]) == ["--output=json", "status"]
    assert hoist(["x", "--", "-o", "json"]) == ["x", "--", "-o", "json"]


def test_the_version_is_told(cli: Any) -> None:
    assert cli("--version").out.startswith("edgewise 0.")
