"""``edgewise up``: a hub in one directory, until Ctrl-C."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer

from edgewise.cli.session import Session
from edgewise.model.errors import NeedsPerson

if TYPE_CHECKING:
    from edgewise.roles.hub import Hub

HOME = Path("~/.edgewise")
DATA = HOME / "hub"

DeltaVersions = Annotated[
    int, typer.Option(help="Make deltas from so many versions before; 0: none (docs/delivery.md).")
]
DeltaPercent = Annotated[
    int, typer.Option(help="Publish a delta of at most this part of what it saves fetching.")
]
DeltaRecompress = Annotated[
    bool,
    typer.Option(help="Let gzip files and kernel images travel expanded; nodes pack them again."),
]
RootKey = Annotated[
    str, typer.Option(help="pkcs11: URI of the token with the root's key (docs/identity.md).")
]
ContentUrl = Annotated[
    list[str] | None,
    typer.Option(
        help="A plain file server or CDN with this hub's content (docs/cdn.md), announced to "
        "relays, and nodes without one, with the next rollout step. Repeatable."
    ),
]


Listen = Annotated[str, typer.Option(metavar="HOST:PORT", help="Port 0: any that is free.")]


def verb(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    data: Annotated[Path, typer.Option(help="Directory of everything it keeps.")] = DATA,
    listen: Listen = "127.0.0.1:8443",
    org: Annotated[
        str,
        typer.Option(help="Organisation: part of every identity, fixed at the first start."),
    ] = "",
    url: Annotated[
        list[str] | None,
        typer.Option(help="Where nodes and people reach it; default: as --listen. Repeatable."),
    ] = None,
    branch: Annotated[str, typer.Option(help="Branch of the fleet repo to follow.")] = "main",
    git_url: Annotated[
        str, typer.Option(help="Repository to follow; default: its own, by `edgewise push`.")
    ] = "",
    poll: Annotated[str, typer.Option(help="How often --git-url is looked at.")] = "1m",
    trust: Annotated[
        Literal["hub", "builder"] | None,
        typer.Option(help="Who signs releases; default: as before, at first hub (docs/trust.md)."),
    ] = None,
    builder_key: Annotated[
        list[Path] | None,
        typer.Option(help="FILE.pub of `artifact key` that may sign builds. Repeatable."),
    ] = None,
    hold: Annotated[str, typer.Option(help="How long polls are held: the heartbeat.")] = "60s",
    webhook_secret: Annotated[
        Path | None, typer.Option(help="File with the webhooks' secret; none: webhooks are off.")
    ] = None,
    oidc: Annotated[
        Path | None, typer.Option(help="File with the OpenID provider (docs/people.md).")
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
    node_life: Annotated[
        str, typer.Option(help="How long nodes' certificates are good: 1m to 90d.")
    ] = "45d",
    root_passphrase_file: Annotated[
        Path | None,
        typer.Option(help="File with the passphrase of the root's key (`edgewise ca seal`)."),
    ] = None,
    root_key: RootKey = "",
    content_url: ContentUrl = None,
    delta_versions: DeltaVersions = 3,
    delta_percent: DeltaPercent = 60,
    delta_recompress: DeltaRecompress = True,
) -> None:
    import uvloop

    from edgewise.delivery.deltas import delta_settings
    from edgewise.identity.rotation import checked_life
    from edgewise.net.sources import checked_urls
    from edgewise.roles.hub import duration, run
    from edgewise.roles.hub_parts import HubSettings
    from edgewise.roles.passphrase import passphrase_from

    session = Session.of(ctx)
    data = data.expanduser()
    settings = HubSettings(
        data=data,
        organisation=org or _organisation(data),
        listen=listen,
        urls=tuple(url or ()),
        branch=branch,
        git_url=git_url,
        poll=duration("--poll", poll),
        trust=trust,
        builder_keys=tuple(builder_key or ()),
        hold=duration("--hold", hold),
        webhook_secret=webhook_secret,
        oidc=oidc,
        log_json=log_json,
        node_life=checked_life("--node-life", duration("--node-life", node_life)),
        root_key=root_key,
        root_passphrase=passphrase_from(root_passphrase_file, _asked(data, root_passphrase_file)),
        deltas=delta_settings(delta_versions, delta_percent, recompress=delta_recompress),
        content_urls=checked_urls(content_url or ()),
    )
    _writable(data)
    uvloop.run(run(settings, lambda hub: _say(session, hub)))


def _asked(data: Path, file: Path | None) -> bytes | None:
    """The passphrase of a sealed root, typed by a person at a terminal; None for none."""
    from edgewise.backends.pki.keys import FileKeys
    from edgewise.roles.passphrase import passphrase_from

    keys = FileKeys(data / "pki")
    if file is not None or not keys.is_sealed("root") or passphrase_from(None)() is not None:
        return None
    if not sys.stdin.isatty():
        return None  # the hub runs without it, and says when it needs the key
    text: str = typer.prompt("Passphrase of the root's key", hide_input=True, err=True)
    return text.encode()


def _organisation(data: Path) -> str:
    """As the first start named it, so that it need not be said again."""
    from edgewise.protocol.operator import OperatorContext

    try:
        told = (data / "operator" / "context.json").read_bytes()
        return msgspec.json.decode(told, type=OperatorContext).organisation
    except (OSError, msgspec.DecodeError):
        return "edgewise"


def _writable(data: Path) -> None:
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise NeedsPerson(
            f"{data} cannot be made: {error.strerror}", hint="choose another with --data DIR"
        ) from error
    if not os.access(data, os.W_OK | os.X_OK):
        raise NeedsPerson(f"{data} cannot be written", hint="choose another with --data DIR")


def _say(session: Session, hub: Hub) -> None:
    """What a person needs next, on standard error: standard output is the log's."""
    own = _link(hub.settings.data)
    at = "" if own else f" --context {hub.settings.data}"
    session.note(
        f"edgewise hub of {hub.settings.organisation}, trust {hub.trust}, at {hub.url}\n"
        f"  data   {hub.settings.data}\n"
        f"  keys   {hub.settings.data / 'keys'}, to be backed up (docs/trust.md)\n"
        "  next, in another shell:\n"
        "    edgewise init shops             a starter fleet repo\n"
        f"    edgewise{at} node token         a token for a node: `edgewise agent join`\n"
        f"    edgewise{at} push               from the repo: a commit reaches the fleet\n"
        f"    edgewise{at} status\n"
        "  Ctrl-C stops the hub; nodes go on with what they have."
    )


def _link(data: Path) -> bool:
    """Make ~/.edgewise/context.json point to this hub where it points to none.

    Returns whether the CLI finds this hub without --context.
    """
    context = (data / "operator" / "context.json").resolve()
    link = HOME.expanduser() / "context.json"
    try:
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            link.unlink(missing_ok=True)  # it points to a hub that is gone
            link.symlink_to(context)
        return link.resolve() == context and not os.environ.get("EDGEWISE_CONTEXT")
    except OSError:
        return False  # no home, or one that is not ours: --context it is
