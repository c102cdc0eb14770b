"""``edgewise secret seal``: plaintext in, a Secret document for the fleet repo out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session
from edgewise.model.errors import BadUsage

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

MAX_VALUE = 64 << 10


@app.callback()
def _group() -> None:
    """Encrypt secrets for the fleet repo."""


@app.command("seal", help="Encrypt values with age for the hub; prints a document to commit.")
def seal(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the Secret.")],
    value: Annotated[
        list[str],
        typer.Option(help="KEY=FILE, or KEY=- for standard input; repeat for more."),
    ],
    mount_path: Annotated[
        str, typer.Option(help="Directory on the node, in memory; default /run/secrets/NAME.")
    ] = "",
    recipient: Annotated[
        list[str] | None, typer.Option(help="age1... key; default: the hub's, from the context.")
    ] = None,
) -> None:
    from edgewise.model.names import is_name

    session = Session.of(ctx)
    if not is_name(name):
        raise BadUsage(f"secret name {name!r} is not a DNS label (a-z, 0-9, '-')")
    keys = recipient or [_of_hub(session)]
    sealed = {key: _armoured(data, keys) for key, data in _values(value).items()}
    document = {
        "apiVersion": "edgewise.dev/v1",
        "kind": "Secret",
        "metadata": {"name": name},
        "spec": {
            "encryption": "age",
            "mountPath": mount_path or f"/run/secrets/{name}",
            "data": sealed,
        },
    }
    if session.as_json:
        session.json(document)
        return
    typer.echo(_as_yaml(document), nl=False)


def _of_hub(session: Session) -> str:
    from edgewise.cli.client import Context

    context = Context.find(session.context)
    if not context.told.age_recipient:
        raise BadUsage(
            f"{context.path} does not name the hub's age key",
            hint="name it with --recipient age1...",
        )
    return context.told.age_recipient


def _values(given: list[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for one in given:
        key, equals, source = one.partition("=")
        if not equals or not key or "/" in key or key in (".", ".."):
            # What follows the "=" is not repeated: it may be the secret itself.
            raise BadUsage("--value is not like password=FILE or password=-")
        try:
            with sys.stdin.buffer if source == "-" else Path(source).open("rb") as file:
                data = file.read(MAX_VALUE + 1)
        except OSError as error:
            raise BadUsage(
                f"--value {key}: the file cannot be read: {error.strerror}",
                hint="values come from a file or standard input, never from the command line",
            ) from error
        if len(data) > MAX_VALUE:
            raise BadUsage(f"--value {key}: more than {MAX_VALUE} bytes")
        found[key] = data
    return found


def _armoured(data: bytes, recipients: list[str]) -> str:
    import pyrage

    keys = []
    for text in recipients:
        try:
            keys.append(pyrage.x25519.Recipient.from_str(text))
        except pyrage.RecipientError as error:
            raise BadUsage(f"{text[:80]!r} is not an age recipient (age1...)") from error
    sealed: bytes = pyrage.encrypt(data, keys, armored=True)
    return sealed.decode()


def _as_yaml(document: object) -> str:
    """With armoured text as blocks, so that diffs are readable."""
    import yaml

    class Blocks(yaml.SafeDumper):
        """Own class: representers are kept on the class."""

    def block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Blocks.add_representer(str, block)
    return yaml.dump(document, Dumper=Blocks, sort_keys=False)
