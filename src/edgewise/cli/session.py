"""What every verb has: where the hub is, and how answers are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from edgewise.cli.client import Client
    from edgewise.protocol.api import SourceProblem
    from edgewise.protocol.report import Traffic

Output = Literal["table", "json"]


@dataclass
class Session:
    """The global options of one command."""

    output: Output = "table"
    context: str = ""

    @classmethod
    def of(cls, ctx: typer.Context) -> Session:
        """The session of a verb's context."""
        found = ctx.find_object(cls)
        return found if found is not None else cls()

    @property
    def as_json(self) -> bool:
        """Whether a program reads us."""
        return self.output == "json"

    def client(self) -> Client:
        """The hub of ``--context``."""
        from edgewise.cli.client import Client, Context

        context = Context.find(self.context)
        if context.told.expires is not None and not context.token:
            from edgewise.cli.renewal import keep_login

            context = keep_login(context)
        return Client(context)

    def json(self, value: Any) -> None:
        """One JSON document on standard output: the API's own structs."""
        import msgspec

        data = msgspec.json.encode(value, order="deterministic")
        typer.echo(msgspec.json.format(data, indent=2).decode())

    def json_line(self, value: Any) -> None:
        """One JSON document in one line, for streams."""
        import msgspec

        typer.echo(msgspec.json.encode(value, order="deterministic").decode())

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, none: str) -> None:
        """A table, or the sentence ``none`` when it has no rows."""
        from rich.table import Table
        from rich.text import Text

        filled = list(rows)
        if not filled:
            typer.echo(none)
            return
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            shown.add_column(column, overflow="fold")
        for row in filled:
            # Text, not markup: names and messages may hold brackets.
            shown.add_row(*(Text(cell, style=_STYLE.get(cell, "")) for cell in row))
        console().print(shown)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Name and value, one a line; empty values are left out."""
        given = [(name, value) for name, value in pairs if value]
        width = max((len(name) for name, _ in given), default=0)
        for name, value in given:
            typer.echo(f"{name:<{width}}  {value}")

    def note(self, text: str) -> None:
        """To the person, on standard error, so that pipes stay clean."""
        typer.echo(text, err=True)

    def done(self, text: str) -> None:
        """A mutating verb succeeded."""
        if self.as_json:
            self.json({"done": text})
        else:
            typer.echo(text)


_STYLE = {
    "Synced": "green",
    "Healthy": "green",
    "Succeeded": "green",
    "Passed": "green",
    "ok": "green",
    "OutOfSync": "yellow",
    "Progressing": "yellow",
    "Running": "yellow",
    "Baking": "yellow",
    "warning": "yellow",
    "WaitingForApproval": "magenta",
    "Paused": "magenta",
    "Degraded": "red",
    "Failed": "red",
    "RolledBack": "red",
    "RollingBack": "red",
    "failed": "red",
}


def console(*, stderr: bool = False) -> Console:
    """A rich console on the stream as it is now; wide where nobody looks."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 200, highlight=False)


def ago(moment: datetime | None) -> str:
    """``3m ago``, for a moment in UTC."""
    if moment is None:
        return "never"
    from edgewise.model.quantity import format_duration
    from edgewise.runtime.clock import SystemClock

    seconds = (SystemClock().now() - moment).total_seconds()
    if seconds < 1:
        return "now"
    from datetime import timedelta

    unit = next((one for one in (86400, 3600, 60, 1) if seconds >= one), 1)
    return f"{format_duration(timedelta(seconds=int(seconds // unit) * unit))} ago"


def size(count: float) -> str:
    """Bytes as people read them: ``12.3 MB`` (10**6)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return ""


def by_way(ways: Mapping[str, int], requests: int) -> str:
    """``delta 1.2 MB, document 3.1 kB (7 requests)``."""
    said = ", ".join(f"{way} {size(count)}" for way, count in sorted(ways.items()) if count)
    return f"{said} ({requests} requests)" if said and requests else said


def refusals(traffic: Traffic, *, nodes: bool = False) -> Iterator[str]:
    """Lines as ``refused: delta 3f9a0c11d2e4, 1.2 MB in vain: ...``, of what cost most."""
    for one in traffic.refused:
        what = f"delta {one.what[:12]}" if one.what else f"{one.times} files"
        times = f" by {one.times} nodes" if nodes and one.what and one.times > 1 else ""
        cost = f", {size(one.bytes)} came of it" if one.bytes else ""
        yield f"refused{times}: {what}{cost}: {one.why}"


def stamp(moment: datetime) -> str:
    """``2026-01-31 13:05:00Z``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def short(revision: str) -> str:
    """A revision or digest, at a length for people."""
    branch, mark, commit = revision.partition("@sha1:")
    return f"{branch}@{commit[:10]}" if mark else revision.removeprefix("sha256:")[:12]


def labels(given: dict[str, str]) -> str:
    """``region=eu,ring=canary``."""
    return ",".join(f"{key}={value}" for key, value in sorted(given.items()))


def show_problems(problems: Iterable[SourceProblem]) -> None:
    """Mistakes with file:line, on standard error."""
    for problem in problems:
        typer.echo(f"  {problem}", err=True)
