"""``edgewise key``: the signing keys of a hub, on its machine, while it is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import msgspec
import typer

from edgewise.cli.session import Session
from edgewise.cli.up import DATA
from edgewise.model.errors import BadUsage

if TYPE_CHECKING:
    from edgewise.delivery.on_hub import Publisher

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)
T = TypeVar("T")

Data = Annotated[Path, typer.Option(help="The hub's data directory.")]
Offline = Annotated[
    Path | None,
    typer.Option(help="Where root.pem and targets.pem are, when they are not on the hub."),
]


@app.callback()
def _group() -> None:
    """Who may sign what. docs/trust.md explains each key."""


class KeyRing(msgspec.Struct, frozen=True):
    """What ``key ls --output json`` prints."""

    trust: str
    keys: tuple[dict[str, str], ...]
    builders: tuple[str, ...]
    """Identifiers of the keys that may sign builds."""


@app.command("ls", help="The keys, what they sign until when, and who the builders are.")
def ls(ctx: typer.Context, data: Data = DATA, offline: Offline = None) -> None:
    async def look(publisher: Publisher) -> KeyRing:
        lines = tuple(
            {
                "name": line.name,
                "here": "yes" if line.present else "no",
                "signed_until": f"{line.expires:%Y-%m-%d}",
                "advice": line.advice,
            }
            for line in publisher.key_lines()
        )
        return KeyRing(publisher.mode, lines, publisher.builds().keys)

    session = Session.of(ctx)
    found = _with(data, offline, look)
    if session.as_json:
        session.json(found)
        return
    session.facts([("trust", found.trust)])
    session.table(
        ("KEY", "HERE", "SIGNED UNTIL", "ADVICE"),
        (tuple(line.values()) for line in found.keys),
        none="",
    )
    typer.echo("")
    for one in found.builders:
        typer.echo(f"builder {one}")
    if not found.builders:
        typer.echo("no builder yet: `edgewise key add FILE.pub`")


@app.command("add", help="Let builders sign: their FILE.pub of `artifact key`.")
def add(
    ctx: typer.Context,
    public: Annotated[list[Path], typer.Argument(help="FILE.pub, one or more.")],
    data: Data = DATA,
    offline: Offline = None,
) -> None:
    from edgewise.backends.tuf.repository import load_public

    keys = [load_public(file) for file in public]
    _with(data, offline, lambda publisher: publisher.add_builders(keys))
    Session.of(ctx).done(f"may sign builds: {', '.join(map(str, public))}")


@app.command("remove", help="Trust a builder no longer.")
def remove(
    ctx: typer.Context,
    key: Annotated[str, typer.Argument(help="Of `key ls`; its first 8 digits will do.")],
    data: Data = DATA,
    offline: Offline = None,
) -> None:
    _with(data, offline, lambda publisher: publisher.remove_builder(key))
    session = Session.of(ctx)
    session.done(f"may not sign builds any more: {key}")
    session.note(
        "if it signed the newest list, nodes take nothing new until another builder signs one:"
        "\n  next: edgewise release sign --adopt --key OTHER"
    )


@app.command("rotate", help="Replace the root or the online key; nodes follow by themselves.")
def rotate(
    ctx: typer.Context,
    key: Annotated[Literal["root", "online"], typer.Argument(help="Which one.")],
    data: Data = DATA,
    offline: Offline = None,
) -> None:
    _with(data, offline, lambda publisher: publisher.rotate(key))
    session = Session.of(ctx)
    session.done(f"rotated: {key}")
    session.note(
        f"the old key is kept as {key}.old.pem: destroy it when no node is away any more"
        if key == "root"
        else "start the hub: it signs the record of every node again"
    )


@app.command(
    "renew", help="Sign again what has used up half its life, with the keys that are here."
)
def renew(ctx: typer.Context, data: Data = DATA, offline: Offline = None) -> None:
    done = _with(data, offline, lambda publisher: publisher.refresh())
    Session.of(ctx).done(f"signed again: {', '.join(done)}" if done else "nothing is due")


def _with(data: Path, offline: Path | None, work: Callable[[Publisher], Awaitable[T]]) -> T:
    """Open the repository of a hub that does not run, and do one thing to it.

    Raises NeedsPerson when the hub runs, or a key that is needed is not here.
    """
    from edgewise.backends.files.objects import FileObjects
    from edgewise.backends.sqlite.database import Database
    from edgewise.backends.tuf.repository import FileKeys, FileMetadata
    from edgewise.delivery.on_hub import Publisher
    from edgewise.runtime.clock import SystemClock

    data = data.expanduser()
    if not (data / "content" / "tuf" / "timestamp.json").exists():
        raise BadUsage(f"{data} is no hub's data directory", hint="name it with --data DIR")
    if offline is not None and not offline.is_dir():
        raise BadUsage(f"--offline {offline} is not a directory")

    async def opened() -> T:
        publisher = await Publisher.open(
            FileMetadata(data / "content" / "tuf"),
            FileKeys(data / "keys", offline),
            FileObjects(data / "content"),
            clock=SystemClock(),
            mode=None,
        )
        return await work(publisher)

    database = Database.open(data / "hub.db")  # for its lock: one writer at a time
    try:
        return asyncio.run(opened())
    finally:
        database.close()
