"""What the person who pushes reads in their terminal. Pure."""

from __future__ import annotations

from edgewise.model.errors import EdgewiseError
from edgewise.protocol.api import SourceProblem
from edgewise.sync.ports import Compiled

MAX_LINES = 20


def accepted(compiled: Compiled) -> tuple[str, ...]:
    """For a commit that compiled: ``accepted main@sha1:..., 2 fleets, 14 nodes``."""
    nodes = sum(len(fleet.members) for fleet in compiled.fleets.values())
    lines = [
        f"accepted {_short(compiled.revision)}, {_count(len(compiled.fleets), 'fleet')}, "
        f"{_count(nodes, 'node')}"
    ]
    if compiled.unplaced:
        names = ", ".join(compiled.unplaced[:5])
        lines.append(f"{_count(len(compiled.unplaced), 'node')} in no fleet: {names}")
    if compiled.held:
        lines.append(f"held: {compiled.held}")
        lines.append("`edgewise rollout approve` lets it go")
    return tuple(lines)


def mistaken(revision: str, problems: tuple[SourceProblem, ...]) -> tuple[str, ...]:
    """For a commit with mistakes: each with file:line, and what the fleets do meanwhile."""
    lines = [f"{_short(revision)} has {_count(len(problems), 'mistake')}:"]
    lines += [f"  {problem}" for problem in problems[:MAX_LINES]]
    if len(problems) > MAX_LINES:
        lines.append(f"  and {len(problems) - MAX_LINES} more; `edgewise validate` lists them")
    return (*lines, "the fleets stay as they are; correct it and push again")


def distrusted(revision: str, error: EdgewiseError) -> tuple[str, ...]:
    """For a commit that is not acted on, such as one without a good signature."""
    lines = [f"{_short(revision)} is not acted on: {error}"]
    return (*lines, error.hint) if error.hint else tuple(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _short(revision: str) -> str:
    branch, mark, commit = revision.partition("@sha1:")
    return f"{branch}{mark}{commit[:12]}" if mark else revision
