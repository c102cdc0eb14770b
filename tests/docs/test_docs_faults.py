"""docs/faults.md and docs/security.md name tests, and every test they name exists."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
FAULTS = (TOP / "docs" / "faults.md").read_text()
SECURITY = (TOP / "docs" / "security.md").read_text()
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", FAULTS + SECURITY)


def test_every_test_that_the_fault_list_names_exists() -> None:
    missing = []
    for file, name in NAMED:
        path = TOP / file
        text = path.read_text() if path.exists() else ""
        if not re.search(rf"^\s*(async )?def {name}\(", text, re.MULTILINE):
            missing.append(f"{file}::{name}")
    assert missing == []
    assert len(NAMED) > 50


def test_every_fault_has_a_test() -> None:
    rows = [line for line in FAULTS.splitlines() if line.startswith("| ")]
    faults = [row for row in rows if not row.startswith("| fault |")]
    assert len(faults) > 35
    assert [row for row in faults if "`tests/" not in row] == []
