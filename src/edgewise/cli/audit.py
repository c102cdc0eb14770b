"""``edgewise audit``: the log of mutating calls and decisions, and its chain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli.session import Session, stamp
from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.api import AuditLine
    from edgewise.protocol.audit import Chain, Head

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None, add_completion=False)
PAGE = 1000


@app.callback(invoke_without_command=True)
def ls(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many lines.")] = 200,
) -> None:
    """Who did what, oldest first."""
    if ctx.invoked_subcommand is not None:
        return
    from edgewise.protocol.api import AuditLine

    session = Session.of(ctx)
    page = session.client().pages("/v1/audit", AuditLine, at_most=limit)
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("NO", "AT", "WHO", "FROM", "DID", "TO", "DETAIL"),
        (
            (
                str(one.sequence), stamp(one.at), one.actor, one.address, one.action,
                one.subject, one.detail,
            )
            for one in page.items
        ),
        none="Nothing has been done yet.",
    )  # fmt: skip


@app.command("verify", help="Check that no line was changed, removed, put in between or cut off.")
def verify(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Option(help="An export; the hub is not asked. Else its log.")
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(help="SEQUENCE:HASH noted earlier: must still be there. Repeatable."),
    ] = None,
) -> None:
    from edgewise.protocol.audit import Head

    session = Session.of(ctx)
    heads = [Head.parse(text) for text in head or ()]
    lines = _exported(file) if file is not None else _all(session.client())
    chain = checked(lines, heads)
    if session.as_json:
        session.json({"lines": chain.sequence, "head": f"{chain.sequence}:{chain.hash}"})
        return
    typer.echo(f"verified: {chain.sequence} lines")
    typer.echo(f"head: {chain.sequence}:{chain.hash}")
    session.note("  next: keep the head elsewhere, and pass it as --head from then on")


@app.command("export", help="Write the whole log to a file, one JSON line each, verified.")
def export(
    ctx: typer.Context, file: Annotated[Path, typer.Argument(help="New file; - is stdout.")]
) -> None:
    import sys

    from edgewise.protocol.codec import encode

    session = Session.of(ctx)
    if str(file) != "-" and file.exists():
        raise BadUsage(f"{file} exists", hint="name a new file: an export is never written over")
    lines = _all(session.client())
    try:
        out = sys.stdout.buffer if str(file) == "-" else file.open("xb")
        with out:
            chain = checked(_copied(lines, lambda line: out.write(encode(line) + b"\n")), ())
    except OSError as error:
        raise NeedsPerson(f"{file} cannot be written: {error.strerror}") from error
    session.note(f"exported: {chain.sequence} lines\nhead: {chain.sequence}:{chain.hash}")


def checked(lines: Iterator[AuditLine], heads: list[Head] | tuple[Head, ...]) -> Chain:
    """Follow the whole log. Raises Untrusted where it breaks, or lacks a head noted earlier."""
    from edgewise.protocol.audit import Chain

    chain, wanted = Chain(), {head.sequence: head for head in heads}
    for line in lines:
        if not chain.follow(line):
            raise Untrusted(
                f"the audit log is broken at line {chain.sequence + 1}",
                hint="compare it with an earlier `edgewise audit export`",
            )
        head = wanted.pop(line.sequence, None)
        if head is not None and head.hash != line.hash:
            raise Untrusted(
                f"line {line.sequence} is another than the one whose head was noted",
                hint="the log was written anew from there or before; look at who could",
            )
    if wanted:
        raise Untrusted(
            f"the audit log ends at line {chain.sequence}, before line {max(wanted)}, whose head "
            "was noted",
            hint="lines were cut off at the end, or the hub was restored from a backup",
        )
    return chain


def _all(client: Client) -> Iterator[AuditLine]:
    from edgewise.protocol.api import AuditLine, Page

    after = 0
    while True:
        page: Page[AuditLine] = client.get("/v1/audit", Page[AuditLine], limit=PAGE, after=after)
        yield from page.items
        if page.next is None or not page.items:
            return
        after = page.items[-1].sequence


def _exported(file: Path) -> Iterator[AuditLine]:
    from edgewise.protocol.api import AuditLine
    from edgewise.protocol.codec import decode

    try:
        with file.open("rb") as lines:
            for number, data in enumerate(lines, 1):
                yield decode(data, AuditLine, what=f"{file}:{number}")
    except OSError as error:
        raise BadUsage(f"{file} cannot be read: {error.strerror}") from error


def _copied(
    lines: Iterator[AuditLine], write: Callable[[AuditLine], object]
) -> Iterator[AuditLine]:
    for line in lines:
        write(line)
        yield line
