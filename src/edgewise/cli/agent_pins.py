"""``edgewise agent pin`` and ``unpin``: releases that a node never deletes by itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from edgewise.cli.session import Session, short
from edgewise.model.errors import BadUsage, NeedsPerson, NotFound

if TYPE_CHECKING:
    from edgewise.backends.files.node_store import NodeStore

State = Annotated[Path, typer.Option(help="Directory of this node.")]
Release = Annotated[str, typer.Argument(help="Digest, or how it begins.")]
STATE = Path("/var/lib/edgewise")


class Pins(msgspec.Struct, frozen=True):
    """What ``agent pin`` and ``unpin`` print with ``--output json``."""

    pinned: tuple[str, ...]


def add_to(app: typer.Typer) -> None:
    """The verbs of pins, into ``edgewise agent``."""
    app.command("pin", help="Keep a release that is on this node; without one, list what is kept.")(
        pin
    )
    app.command("unpin", help="Let a kept release be deleted once nothing else needs it.")(unpin)


def pin(ctx: typer.Context, release: Release = "", state: State = STATE) -> None:
    session, store = Session.of(ctx), _store(state)
    if release:
        store.pin(_one(release, {one.release for one in store.installed()}))
    _show(session, store)


def unpin(ctx: typer.Context, release: Release, state: State = STATE) -> None:
    session, store = Session.of(ctx), _store(state)
    store.unpin(_one(release, store.pinned()))
    _show(session, store)


def _store(state: Path) -> NodeStore:
    from edgewise.backends.files.node_store import NodeStore

    state = state.expanduser()
    if not (state / "store").is_dir():
        raise BadUsage(f"{state} holds no releases", hint="name the node's directory with --state")
    try:
        return NodeStore(state)
    except PermissionError as error:
        raise NeedsPerson(f"{error.filename} cannot be read", hint="run it as its owner") from error


def _one(asked: str, known: set[str] | frozenset[str]) -> str:
    begins = asked.removeprefix("sha256:")
    found = sorted(one for one in known if one.startswith(begins))
    if not begins or len(found) != 1:
        there = ", ".join(short(one) for one in sorted(known)) or "none"
        raise NotFound(
            f"{asked!r} names {len(found)} of the releases here", hint=f"there are: {there}"
        )
    return found[0]


def _show(session: Session, store: NodeStore) -> None:
    pinned = tuple(sorted(store.pinned()))
    if session.as_json:
        session.json(Pins(pinned))
    else:
        typer.echo("\n".join(pinned) or "No release is pinned.")
