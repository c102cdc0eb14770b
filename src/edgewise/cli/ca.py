"""``edgewise ca``: show, rotate-root, seal, unseal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgewise.cli.session import Session, stamp
from edgewise.cli.up import DATA
from edgewise.model.errors import BadUsage

if TYPE_CHECKING:
    from edgewise.protocol.api import CaStatus

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

_SAYS = {
    "Stable": "one root, no rotation under way",
    "Prepared": "the next root is being trusted",
    "Activated": "the new root signs, the old one is still trusted",
}
_DOES = {
    "prepare": "make the next root; everybody is told to trust it, it signs nothing yet",
    "activate": "the next root signs; the hub, relays and nodes get new certificates",
    "retire": "trust the old root no longer and destroy its key",
    "cancel": "forget the next root, which has signed nothing",
}


@app.callback()
def _group() -> None:
    """The certificate authority. docs/identity.md tells its story."""


@app.command("show", help="Roots, trust domains, and how far a rotation is.")
def show(ctx: typer.Context) -> None:
    from edgewise.protocol.api import CaStatus

    session = Session.of(ctx)
    status = session.client().get("/v1/ca", CaStatus)
    if session.as_json:
        session.json(status)
    else:
        _print(session, status)


@app.command("rotate-root", help="Replace the root step by step: prepare, activate, retire.")
def rotate_root(
    ctx: typer.Context,
    step: Annotated[
        Literal["prepare", "activate", "retire", "cancel"],
        typer.Argument(help="`edgewise ca show` says which one is next."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say whether it would be done, and to whom.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Do not wait: who is away rejoins when it is back."),
    ] = False,
) -> None:
    from edgewise.protocol.api import CaStatus, RotateRoot

    session = Session.of(ctx)
    request = RotateRoot(step, force=force, dry_run=dry_run)
    status = session.client().post("/v1/ca/rotate-root", request, CaStatus)
    if session.as_json:
        session.json(status)
        return
    if dry_run:
        session.note(f"would be done: {_DOES[step]}")
    else:
        session.done(f"done: {step}")
    _print(session, status)
    if status.open_tokens and step == "activate":
        session.note(f"{status.open_tokens} unused join tokens name the root before: make new ones")


def _print(session: Session, status: CaStatus) -> None:
    session.facts(
        [
            ("organisation", status.organisation),
            ("rotation", f"{status.stage}: {_SAYS[status.stage]}"),
            ("bundles", str(status.bundles)),
            ("domains", ", ".join(status.domains)),
        ]
    )
    typer.echo("")
    session.table(
        ("ROOT", "SHA-256", "UNTIL", "KEY"),
        (
            (one.state, one.sha256[:16], stamp(one.not_after), "here" if one.key_here else "away")
            for one in status.roots
        ),
        none="",
    )
    if status.stage == "Stable":
        return
    typer.echo("")
    what = "trust the next root" if status.stage == "Prepared" else "have its certificates"
    typer.echo(f"{status.ready} of {status.machines} machines {what}")
    if status.waiting:
        typer.echo(f"waiting for: {', '.join(status.waiting)}")
    typer.echo(f"  next: edgewise ca rotate-root {status.next_step}")


@app.command("bundle", help="A trust domain's keys as a SPIFFE bundle: what to give to others.")
def bundle(
    ctx: typer.Context,
    trust_domain: Annotated[str, typer.Argument(help="For example eu.acme.")],
) -> None:
    from edgewise.cli.client import segment

    data, _ = Session.of(ctx).client().raw(f"/v1/bundles/{segment(trust_domain)}")
    typer.echo(data.decode())


Data = Annotated[Path, typer.Option(help="The hub's data directory.")]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="File with the passphrase; asked for when not given.")
]


@app.command("seal", help="On the hub's machine: encrypt the root's key with a passphrase.")
def seal(ctx: typer.Context, data: Data = DATA, passphrase_file: PassphraseFile = None) -> None:
    keys, passphrase = _keys(data, passphrase_file, confirm=True)
    from edgewise.backends.pki.keys import FileKeys

    store = FileKeys(keys, lambda: passphrase)
    done = [name for name in ("root", "root-next", "root-old") if store.has(name)]
    for name in done:
        store.seal(name, passphrase)
    session = Session.of(ctx)
    session.done(f"sealed: {', '.join(done) or 'nothing, there is no key here'}")
    session.note("start the hub with --root-passphrase-file FILE, or it will ask for it")


@app.command("unseal", help="On the hub's machine: write the root's key in the clear again.")
def unseal(ctx: typer.Context, data: Data = DATA, passphrase_file: PassphraseFile = None) -> None:
    keys, passphrase = _keys(data, passphrase_file, confirm=False)
    from edgewise.backends.pki.keys import FileKeys

    store = FileKeys(keys, lambda: passphrase)
    done = [name for name in ("root", "root-next", "root-old") if store.is_sealed(name)]
    for name in done:
        store.unseal(name)
    Session.of(ctx).done(f"unsealed: {', '.join(done) or 'nothing was sealed'}")


def _keys(data: Path, file: Path | None, *, confirm: bool) -> tuple[Path, bytes]:
    from edgewise.roles.passphrase import read_passphrase

    directory = data.expanduser() / "pki"
    if not (directory / "root.pem").exists():
        raise BadUsage(f"{data} is no hub's data directory", hint="name it with --data DIR")
    if file is not None:
        return directory, read_passphrase(file)
    text: str = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm)
    return directory, text.encode()
