"""``edgewise validate DIR``: every mistake with file and line, without a hub or a network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.session import Session, show_problems
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.protocol.api import SourceProblem

if TYPE_CHECKING:
    from edgewise.sync.validate import Checked

_FILES = 20_000
_FILE = 10 << 20


class Validation(msgspec.Struct, frozen=True):
    """What ``--output json`` prints."""

    problems: tuple[SourceProblem, ...]
    warnings: tuple[SourceProblem, ...]
    not_acted_on: tuple[str, ...]
    fleets: dict[str, int]
    """Fleet to the number of its nodes in the repo."""


def verb(
    ctx: typer.Context,
    directory: Annotated[Path, typer.Argument(help="The fleet repo, committed or not.")] = Path(),
) -> None:
    from edgewise.sync.validate import check_files

    session = Session.of(ctx)
    checked = check_files(_files(directory))
    if session.as_json:
        session.json(_validation(checked))
    else:
        _show(checked)
    if checked.problems:
        count = len(checked.problems)
        raise NeedsPerson(
            f"{directory} has {count} mistake{'s' if count > 1 else ''}",
            hint="correct the lines above",
        )


def _show(checked: Checked) -> None:
    show_problems(checked.problems)
    for warning in checked.warnings:
        typer.echo(f"  warning: {warning}", err=True)
    for line in checked.not_acted_on:
        typer.echo(f"accepted, not yet acted on: {line}")
    if checked.compiled is not None:
        for fleet in checked.compiled.fleets.values():
            nodes = len(fleet.members)
            typer.echo(
                f"fleet {fleet.name}: ok, {nodes} node{'' if nodes == 1 else 's'} in the repo"
            )


def _validation(checked: Checked) -> Validation:
    compiled = checked.compiled
    return Validation(
        checked.problems,
        checked.warnings,
        checked.not_acted_on,
        {name: len(fleet.members) for name, fleet in compiled.fleets.items()} if compiled else {},
    )


def _files(directory: Path) -> dict[str, str | bytes]:
    """The YAML files as a commit of this directory would have them."""
    if not directory.is_dir():
        raise BadUsage(f"{directory} is not a directory", hint="name your fleet repo")
    found: dict[str, str | bytes] = {}
    for folder, below, names in os.walk(directory):
        below[:] = sorted(name for name in below if name != ".git")
        for name in sorted(names):
            file = Path(folder) / name
            if not name.endswith((".yaml", ".yml")) or file.is_symlink() or not file.is_file():
                continue
            if file.stat().st_size > _FILE:
                raise NeedsPerson(f"{file} has more than {_FILE} bytes", hint="make it smaller")
            found[file.relative_to(directory).as_posix()] = file.read_bytes()
            if len(found) > _FILES:
                raise NeedsPerson(f"{directory} has more than {_FILES} YAML files")
    return found
