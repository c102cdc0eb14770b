"""Plant bugs into the rollout machine, one at a time: the tests have to catch every one.

PYTHONPATH=src python scripts/mutate_rollout.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROLLOUT = "src/edgewise/rollout"
TESTS = (
    "tests/unit/rollout/test_rollout_waves.py",
    "tests/simulation/test_rollout_stories.py",
    "tests/unit/rollout/test_rollout_properties.py",
)
BUGS = (
    ("stages.py", "if connected < needed:", "if connected < 0:"),
    ("stages.py", 'if n["Succeeded"] < needed:', 'if n["Succeeded"] < 0:'),
    ("stages.py", 'well = n["Succeeded"] - sick', 'well = n["Succeeded"]'),
    ("stages.py", "max(1, rules.min_failures)", "1"),
    ("stages.py", "bad = failed + silent - forgiven", "bad = failed + silent"),
    (
        "stages.py",
        "failure_threshold.exceeded_by(bad, attempted)",
        "failure_threshold.reached_by(bad, attempted)",
    ),
    (
        "waves.py",
        "max(1, rule.max_concurrent.of(total)) - table.in_flight",
        "max(1, rule.max_concurrent.of(total))",
    ),
    ("waves.py", "draft.now >= head.until", "True"),
    ("waves.py", 'g.last != "Pass"]', 'g.last == "Fail"]'),
    ("waves.py", "draft.course.approved < stage", "False"),
    ("waves.py", "fails >= max(1, rule.failure_limit)", "fails > max(1, rule.failure_limit)"),
    ("evidence.py", "and receipt.rollout == plan.id", ""),
    ("evidence.py", "and receipt.running == plan.release", ""),
    ("evidence.py", "not row.told or receipt.sequence <= row.sequence", "not row.told"),
    (
        "evidence.py",
        "not row.told or receipt.sequence <= row.sequence",
        "receipt.sequence <= row.sequence",
    ),
    ("evidence.py", "start = row.contact or row.dispatched\n", "start = row.dispatched\n"),
    ("evidence.py", "contact = row.contact + waited", "contact = row.contact"),
    ("evidence.py", "due += max(row.opens - row.waits, timedelta())", "pass"),
    ("waves.py", "in_window and in_window == table.in_flight", "in_window"),
    ("waves.py", "isinstance(head, WaitingForWindow) and head.opens is not None", "False"),
    ("draft.py", "clock = self.course.clock + (self.now - self.head.since)", "clock = self.now"),
    ("evidence.py", "if grace is not None and draft.now < grace:", "if False:"),
    ("table.py", "row.told and not row.back and", "row.told and"),
    ("table.py", '(row.state == "Failed" and not row.restored)', "False"),
    ("table.py", "if not self._has_room(group, allowed) and not", "if False and not"),
    ("returning.py", "if stuck:", "if False:"),
    ("returning.py", "if table.ready or table.in_flight:", "if table.ready:"),
    ("returning.py", "settled and not row.confirmed and", "settled and"),
    ("returning.py", "row.stage < from_stage", "False"),
    (
        "fleet.py",
        "if bad := state.quarantine_of(new.release):",
        "if False and (bad := state.quarantine_of(new.release)):",
    ),
    (
        "fleet.py",
        "index = fleet.state.next_index",
        "index = len([m for m in fleet.members.values() if not m.gone])",
    ),
    ("fleet.py", "sequence=old.sequence + 1", "sequence=old.sequence"),
    (
        "fleet.py",
        "if not m.gone and (m.runs or self.is_held(n))",
        "if not m.gone and self.is_held(n)",
    ),
    (
        "live.py",
        "self.supersede(new, m, change, keep=False)",
        "self.supersede(new, m, change, keep=True)",
    ),
)


def run(copy: Path, environment: dict[str, str]) -> int:
    """The exit status of the tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    return subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, check=False
    ).returncode


def main() -> int:
    """Exit 1 when a bug survives."""
    survived = 0
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        shutil.copytree(ROOT / "src", copy / "src")
        shutil.copytree(ROOT / "tests", copy / "tests")
        shutil.copy(ROOT / "pyproject.toml", copy)
        environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
        if run(copy, environment) != 0:
            print("the tests fail without any planted bug: repair them first")
            return 1
        for name, good, bad in BUGS:
            path = copy / ROLLOUT / name
            text = path.read_text()
            if good not in text:
                print(f"GONE      {name}: {good}")
                survived += 1
                continue
            path.write_text(text.replace(good, bad, 1))
            status = run(copy, environment)
            path.write_text(text)
            caught = status == 1
            survived += not caught
            print(f"{'caught   ' if caught else 'SURVIVED '} {name}: {good}  =>  {bad}", flush=True)
    print(f"{len(BUGS) - survived} of {len(BUGS)} caught")
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
