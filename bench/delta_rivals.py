"""OSTree and casync in ``bench/delta.py``: Debian's packages, with their defaults.

The job is the same for all: on one side the old release as published; publish the new one. On the
other side the old tree as installed; the new one laid out and synced.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from delta_measure import Cost, Moved, Server, compare, run, serving, set_aside


@dataclass
class Outcome:
    """One system on one pair."""

    bytes: int
    """Over the wire, heads included; the largest of the repeats is not hidden: see ``runs``."""
    requests: int
    producer: Cost
    node: Cost
    runs: list[int]
    """Bytes of each repeat."""
    file_bytes: int = 0
    """OSTree: the delta as one file."""
    file_node: Cost | None = None
    """OSTree: applying that file, and the checkout."""
    first_bytes: int = 0
    first_requests: int = 0
    """A first install from nothing."""


def median_of(costs: list[Cost]) -> Cost:
    """Figure by figure."""
    return Cost(*(statistics.median(column) for column in zip(*map(_row, costs), strict=True)))


def _row(cost: Cost) -> tuple[float, float, float, float]:
    return cost.cpu_s, cost.peak_mib, cost.wall_s, cost.all_mib


def repeated(
    times: int, server: Server, node: Callable[[int], Cost]
) -> tuple[list[Cost], list[Moved]]:
    """Run a node some times, each from the same start; what it cost and what the server sent."""
    costs, moved = [], []
    for number in range(times):
        server.reset()
        costs.append(node(number))
        moved.append(server.moved)
    return costs, moved


def ostree(work: Path, old: Path, new: Path, times: int) -> Outcome:
    """An archive repository with a static delta; a bare repository that pulls and checks out."""
    repo, first, second = work / "repo", "old", "new"
    mode = "bare" if os.geteuid() == 0 else "bare-user-only"
    _ostree("init", repo, "--mode=archive")
    commit = ["commit", "--timestamp=@0", "--no-bindings", "--parent=none"]
    ostree_run([*commit, "-b", first, f"--tree=dir={old}"], repo)
    made = ostree_run([*commit, "-b", second, f"--tree=dir={new}"], repo)
    made += ostree_run(["static-delta", "generate", f"--from={first}", f"--to={second}"], repo)
    ostree_run(["summary", "-u"], repo)
    base = work / "node"
    _ostree("init", base, f"--mode={mode}")
    _ostree("pull-local", base, str(repo), first)
    with serving(repo) as server:
        _ostree("remote", base, "add", "--no-gpg-verify", "origin", server.url)

        def update(number: int) -> Cost:
            node, out = work / f"node{number}", work / f"out{number}"
            subprocess.run(["cp", "-al", base, node], check=True)
            # Not shared: it is written in place.
            shutil.copy(base / "config", node / "config.own")
            os.rename(node / "config.own", node / "config")
            cost = ostree_run(["pull", "origin", second], node)
            cost += _checkout(node, second, out)
            if not number:
                compare(new, out)
            set_aside(out)
            set_aside(node)
            return cost

        costs, moved = repeated(times, server, update)
        outcome = Outcome(
            bytes=min(one.bytes for one in moved),
            requests=min(one.requests for one in moved),
            producer=made,
            node=median_of(costs),
            runs=[one.bytes for one in moved],
        )
    outcome.file_bytes, outcome.file_node = _file(work, repo, base, new, times)
    set_aside(base)
    return outcome


def ostree_first(work: Path, new: Path) -> Moved:
    """A first pull from a repository without deltas, as `ostree pull` does it."""
    repo, node = work / "first-repo", work / "first-node"
    _ostree("init", repo, "--mode=archive")
    ostree_run(["commit", "-b", "new", "--fsync=false", f"--tree=dir={new}"], repo)
    _ostree("init", node, "--mode=bare" if os.geteuid() == 0 else "--mode=bare-user-only")
    with serving(repo) as server:
        _ostree("remote", node, "add", "--no-gpg-verify", "origin", server.url)
        ostree_run(["pull", "--disable-fsync", "origin", "new"], node)
        moved = server.moved
    set_aside(repo)
    set_aside(node)
    return moved


def _file(work: Path, repo: Path, base: Path, new: Path, times: int) -> tuple[int, Cost]:
    """The delta as files that need no other: their size, and what applying them costs.

    That is the delta itself unless it leaves large files out, to be fetched beside it.
    """
    name = _ostree("static-delta", repo, "list").split()[-1]
    shown = _ostree("static-delta", repo, "show", name)
    path = next((repo / "deltas").glob("*/*"))
    if "Number of fallback entries: 0\n" not in shown:
        path = work / "delta"
        options = ["--inline", "--min-fallback-size=0", f"--filename={path}"]
        ostree_run(["static-delta", "generate", "--from=old", "--to=new", *options], repo)
    costs = []
    for number in range(times):
        node, out = work / f"file{number}", work / f"file{number}.out"
        subprocess.run(["cp", "-al", base, node], check=True)
        cost = ostree_run(["static-delta", "apply-offline", str(path)], node)
        cost += _checkout(node, _ostree("rev-parse", repo, "new"), out)
        if not number:
            compare(new, out)
        set_aside(out)
        set_aside(node)
        costs.append(cost)
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files), median_of(costs)


def _checkout(node: Path, commit: str, out: Path) -> Cost:
    cost = ostree_run(["checkout", "--require-hardlinks", commit, str(out)], node)
    return cost + run(["sync", "-f", out])


def ostree_run(words: list[str], repo: Path) -> Cost:
    """``ostree`` on a repository."""
    return run(["ostree", f"--repo={repo}", *words])


def _ostree(verb: str, repo: Path, *words: str) -> str:
    command = ["ostree", verb, f"--repo={repo}", *words]
    done = subprocess.run(command, check=True, text=True, capture_output=True)
    return done.stdout.strip()


def casync(work: Path, old: Path, new: Path) -> Outcome:
    """Indexes and a store of chunks; a node that has the old tree as its seed. Measured once."""
    site = work / "site"
    site.mkdir()
    store = f"--store={site / 'store'}"
    run(["casync", "make", store, site / "old.caidx", old])
    made = run(["casync", "make", store, site / "new.caidx", new])
    with serving(site) as server:

        def update(number: int) -> Cost:
            out = work / f"casync{number}"
            cost = run(
                [
                    "casync",
                    "extract",
                    f"--store={server.url}/store",
                    f"--seed={old}",
                    f"{server.url}/new.caidx",
                    out,
                ]
            )
            cost += run(["sync", "-f", out])
            if not number:
                compare(new, out)
            set_aside(out)
            return cost

        costs, moved = repeated(1, server, update)
    return Outcome(
        bytes=moved[0].bytes,
        requests=moved[0].requests,
        producer=made,
        node=median_of(costs),
        runs=[one.bytes for one in moved],
    )
