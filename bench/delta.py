"""Updates of whole trees by Edgewise's deltas, OSTree's and casync, in one run on the same trees.

``make bench-delta`` builds pairs from Debian packages (root; Debian's ostree, casync, mmdebstrap)
and measures all of them; ``ARGS='full app'`` takes some, and keeps the figures of the others.
``make bench-delta FROM=dir TO=dir`` does it on any two trees, ``ARGS=--quick`` on a small pair
that is made here without a network; both keep no result.

The job is the same for all: the producer has published OLD and publishes NEW; the node has OLD
installed and ends with NEW laid out and synced, over HTTP from a server on the loopback that
counts what it sends. What came out is compared with what went in, byte by byte.

Producer: OSTree's commit of NEW and its static delta; our publishing of NEW and its delta.
Processor time is user and system time of all processes. A node's memory is the peak of its
process above that of a Python that does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import delta_pairs
import delta_rivals
from delta_measure import Moved, bare_mib, copy_tree
from delta_ours import SOURCES, Ours
from delta_rivals import Outcome
from result import RESULTS, write

PROGRAMS = ("ostree", "casync", "mmdebstrap")
TIMES = 3


@dataclass
class Found:
    """Everything of one pair."""

    ostree: Outcome
    casync: Outcome
    ours: Outcome
    plain: Outcome | None
    """Ours without compressing gzip files again; None where there are none to."""


def measure(old: Path, new: Path, times: int = TIMES) -> Found:
    """One pair of directories."""
    with scratch(old) as work:
        before, after = work / "old", work / "new"
        for source, target in ((old, before), (new, after)):
            target.mkdir()
            skipped = copy_tree(source, target)
            print(f"  {source}: left out {skipped}", flush=True)
        with room(work, "casync") as place:
            casync = delta_rivals.casync(place, before, after)
            say("casync", casync)
        with room(work, "ostree") as place:
            ostree = delta_rivals.ostree(place, before, after, times)
            say("ostree", ostree)
        with room(work, "edgewise") as place:
            ours = Ours(place, before, after)
            outcomes = ours.measured(times)
            for one in outcomes:
                say("edgewise", one)
        return Found(ostree, casync, outcomes[0], (*outcomes, None)[1])


@contextlib.contextmanager
def scratch(near: Path) -> Iterator[Path]:
    """A folder on a disk with room for five copies of a tree."""
    with tempfile.TemporaryDirectory(prefix="bench-delta-", dir=os.environ.get("TMPDIR")) as name:
        yield Path(name)


@contextlib.contextmanager
def room(work: Path, name: str) -> Iterator[Path]:
    """A folder that is gone afterwards."""
    place = work / f"by-{name}"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place)


def say(name: str, one: Outcome) -> None:
    """One line for people."""
    size = f"{one.bytes / 1e6:.2f}"
    if one.file_bytes:
        size += f" (file {one.file_bytes / 1e6:.2f})"
    print(
        f"  {name:<9} {size:>22} MB {one.requests:>6} requests"
        f"   producer {one.producer.cpu_s:7.2f} s {one.producer.all_mib:5.0f} MiB"
        f"   node {one.node.cpu_s:6.2f} s {one.node.peak_mib:5.0f} MiB"
        f"   {one.node.wall_s:5.1f} s",
        flush=True,
    )


def figures(name: str, found: Found, bare: float) -> dict[str, float]:
    """What is kept of a pair."""
    theirs, ours, plain = found.ostree, found.ours, found.plain or found.ours
    least = min(theirs.bytes, theirs.file_bytes)
    assert theirs.file_node is not None
    said = {
        "bytes": ours.bytes,
        "bytes_vs_ostree": ours.bytes / least,
        "bytes_vs_casync": ours.bytes / found.casync.bytes,
        "requests": ours.requests,
        "producer_cpu_s": ours.producer.cpu_s,
        "producer_cpu_vs_ostree": ours.producer.cpu_s / theirs.producer.cpu_s,
        "producer_mib": ours.producer.all_mib,
        "node_cpu_s": ours.node.cpu_s,
        "node_cpu_vs_ostree": ours.node.cpu_s / theirs.node.cpu_s,
        "node_cpu_vs_ostree_offline": ours.node.cpu_s / theirs.file_node.cpu_s,
        "node_extra_mib": ours.node.peak_mib - bare,
        "node_wall_s": ours.node.wall_s,
        "plain_bytes": plain.bytes,
        "plain_bytes_vs_ostree": plain.bytes / least,
        "plain_producer_cpu_vs_ostree": plain.producer.cpu_s / theirs.producer.cpu_s,
        "plain_node_cpu_s": plain.node.cpu_s,
        "plain_node_cpu_vs_ostree": plain.node.cpu_s / theirs.node.cpu_s,
        "ostree_bytes": theirs.bytes,
        "ostree_bytes_most": max(theirs.runs),
        "ostree_file_bytes": theirs.file_bytes,
        "ostree_requests": theirs.requests,
        "ostree_producer_cpu_s": theirs.producer.cpu_s,
        "ostree_producer_mib": theirs.producer.all_mib,
        "ostree_node_cpu_s": theirs.node.cpu_s,
        "ostree_offline_node_cpu_s": theirs.file_node.cpu_s,
        "ostree_node_mib": theirs.node.peak_mib,
        "ostree_node_wall_s": theirs.node.wall_s,
        "casync_bytes": found.casync.bytes,
        "casync_requests": found.casync.requests,
        "casync_producer_cpu_s": found.casync.producer.cpu_s,
        "casync_node_cpu_s": found.casync.node.cpu_s,
        "casync_node_mib": found.casync.node.peak_mib,
        "casync_node_wall_s": found.casync.node.wall_s,
    }
    return {f"{name}.{key}": value for key, value in said.items()}


def first_install(new: Path) -> dict[str, float]:
    """A first install by a pack against OSTree's first pull of an archive repository."""
    with scratch(new) as work:
        target = work / "new"
        target.mkdir()
        copy_tree(new, target)
        with room(work, "ostree") as place:
            theirs: Moved = delta_rivals.ostree_first(place, target)
        with room(work, "edgewise") as place:
            ours = Ours(place, target, target)
            ours.program("publish", ours.site, target)
            moved, made, node = ours.first_install()
    return {
        "first_install_requests": moved.requests,
        "first_install_bytes": moved.bytes,
        "first_install_bytes_vs_ostree": moved.bytes / theirs.bytes,
        "first_install_producer_cpu_s": made.cpu_s,
        "first_install_node_cpu_s": node.cpu_s,
        "first_install_ostree_requests": theirs.requests,
        "first_install_ostree_bytes": theirs.bytes,
    }


# Which trees


def small_pair(home: Path) -> tuple[Path, Path]:
    """Texts that changed a little, a program that moved, equal and new files, links; 2 MB."""
    chance = random.Random(1)
    old, new = home / "small-old", home / "small-new"
    program = bytearray(chance.randbytes(200_000) * 3)
    for side, root in enumerate((old, new)):
        for number in range(60):
            path = root / f"etc/d{number % 7}/f{number}.conf"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"option_{line} = {(line * 7919) % 97 + number}" for line in range(200)]
            if side and number % 3 == 0:
                lines[50:60] = ["changed = yes"] * 4
            path.write_text("\n".join(lines))
        (root / "bin").mkdir()
        (root / "bin/tool").write_bytes((bytes(512) if side else b"") + program)
        (root / "bin/tool").chmod(0o755)
        (root / "bin/also").symlink_to("tool")
        (root / "empty").touch()
        os.link(root / "bin/tool", root / "bin/same")
        for place in range(0, len(program), 5000):
            program[place] ^= 1
    (new / "added").write_bytes(chance.randbytes(5000))
    return old, new


def about(home: Path) -> dict[str, object]:
    """What a pair was made of: how many packages, and which came instead of which."""
    said = json.loads((home / "packages.json").read_text())
    old, new = set(said["old"]), set(said["new"])
    return {
        "title": said["title"],
        "packages": len(new),
        "all_sha256": hashlib.sha256("\n".join(said["old"] + said["new"]).encode()).hexdigest(),
        "gone": sorted(old - new),
        "came": sorted(new - old),
    }


TARGETS = {
    "bytes_vs_ostree": "0.6",
    "producer_cpu_vs_ostree": "0.6",
    "node_cpu_vs_ostree": "1.5",
    "plain_node_cpu_vs_ostree": "1.0",
    "node_extra_mib": "64",
}


def table() -> str:
    """The kept figures for docs/benchmarks.md: a row for a figure, a column for a pair."""
    document = json.loads((RESULTS / "delta.json").read_text())
    said, names = document["figures"], list(document["pairs"])
    lines = [f"| `PAIR.` | Target | {' | '.join(f'`{name}`' for name in names)} |"]
    lines.append("| --- " * (2 + len(names)) + "|")
    for key in (key for key in said if key.startswith(f"{names[0]}.")):
        row = key.partition(".")[2]
        values = [said[f"{name}.{row}"] for name in names]
        shown = [f"{v:,.0f}" if "bytes" in row and v > 100 else f"{v:,.3f}" for v in values]
        lines.append(f"| `{row}` | {TARGETS.get(row, '')} | {' | '.join(shown)} |")
    first = [key for key in said if key.startswith("first_install")]
    lines += ["", *(f"| `{key}` | {said[key]:,.3f} |" for key in first)]
    for name in names:
        about_pair = document["pairs"][name]
        lines.append(
            f"`{name}`: {about_pair['title']}; {about_pair['packages']} packages,"
            f" {len(about_pair['came'])} of them new."
        )
    return "\n".join(lines)


def of_debian(names: list[str], home: Path) -> None:
    """Measure the named pairs; figures of others that were measured before stay."""
    kept = RESULTS / "delta.json"
    document = json.loads(kept.read_text()) if kept.exists() else {"figures": {}}
    said, pairs = document["figures"], document.get("pairs", {})
    for name in names:
        if name == "first":
            _, new = delta_pairs.prepare("full", delta_pairs.PAIRS["full"], home)
            said |= first_install(new)
            continue
        pair = delta_pairs.PAIRS[name]
        print(f"{name}: {pair.title}", flush=True)
        old, new = delta_pairs.prepare(name, pair, home)
        said |= figures(name, measure(old, new), bare_mib())
        pairs[name] = about(home / name)
    write("delta", said, "make bench-delta", {"pairs": pairs})


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = [*delta_pairs.PAIRS, "first"]
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"of {', '.join(known)}")
    parser.add_argument("--from", dest="old", type=Path, metavar="DIR")
    parser.add_argument("--to", dest="new", type=Path, metavar="DIR")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the kept figures for the docs")
    given = parser.parse_args()
    if given.table:
        print(table())
        return
    needed = PROGRAMS[: 3 if not (given.quick or given.old) else 2]
    missing = [name for name in needed if shutil.which(name) is None]
    if missing:
        sys.exit(f"bench-delta needs {', '.join(missing)}: make bench-delta-rivals")
    if (given.old is None) != (given.new is None):
        sys.exit("--from and --to come together")
    if unknown := set(given.pairs) - set(known):
        sys.exit(f"no pair {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    os.environ["PYTHONPATH"] = SOURCES
    if given.quick or given.old:
        with tempfile.TemporaryDirectory() as home:
            old, new = small_pair(Path(home)) if given.quick else (given.old, given.new)
            found = figures("pair", measure(old, new, 1 if given.quick else TIMES), bare_mib())
        for key, value in found.items():
            print(f"{key:<36}{value:>16,.3f}")
        return
    with contextlib.ExitStack() as stack:
        place = os.environ.get("EDGEWISE_BENCH_TREES")
        home = Path(place or stack.enter_context(tempfile.TemporaryDirectory()))
        of_debian(given.pairs or known, home)


if __name__ == "__main__":
    main()
