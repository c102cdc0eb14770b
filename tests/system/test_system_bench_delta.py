"""The delta benchmark runs on a small pair, without a network, and on trees with odd things."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOP = Path(__file__).parent.parent.parent


def bench(*words: str | Path) -> dict[str, float]:
    for program in ("ostree", "casync"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is missing: make tools")
    done = subprocess.run(
        [sys.executable, TOP / "bench/delta.py", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    print(done.stdout)
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("pair.")]
    return {name: float(value.replace(",", "")) for name, value in rows}


def test_a_small_update_is_smaller_than_ostrees_and_comes_out_equal():
    found = bench("--quick")
    assert found["pair.bytes_vs_ostree"] < 1
    assert found["pair.bytes_vs_casync"] < 1
    assert found["pair.requests"] <= 6


@pytest.mark.skipif(os.geteuid() != 0, reason="makes devices and owners")
def test_any_two_trees_are_measured_with_what_they_hold(tmp_path: Path):
    old, new = tmp_path / "a", tmp_path / "b"
    for root, text in ((old, "before\n" * 500), (new, "before\n" * 499 + "after\n")):
        (root / "etc").mkdir(parents=True)
        (root / "etc/conf").write_text(text)
        (root / "etc/blank name\u00e4").write_text(text * 2)
        os.link(root / "etc/conf", root / "etc/again")
        (root / "etc/owned").write_text("of another")
        os.chown(root / "etc/owned", 1234, 4321)
        (root / "etc/owned").chmod(0o4750)
        (root / "etc/away").symlink_to("/nowhere")
        (root / os.fsdecode(b"bad\xff")).write_text("its name is not UTF-8")
        os.mkfifo(root / "pipe")
        os.mknod(root / "null", 0o20666, os.makedev(1, 3))
        with (root / "sparse").open("wb") as file:
            file.truncate(1 << 20)
    found = bench("--from", old, "--to", new)
    assert found["pair.bytes"] > 0
    assert (old / "null").exists(), "what was given is left as it was"
