"""``edgewise agent``: join, run, and what this node is, from its own files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgewise.cli import (
    agent_egress,
    agent_ingress,
    agent_link,
    agent_ostree,
    agent_pins,
    agent_registry,
    agent_svid,
)
from edgewise.cli.relay import become, writable
from edgewise.cli.session import Session, by_way, refusals, short
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.runtime.hidden import TOKEN, hidden

if TYPE_CHECKING:
    from edgewise.protocol.tasks import JoinTask

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

State = Annotated[Path, typer.Option(help="Directory of this node.")]
STATE = Path("/var/lib/edgewise")


@app.callback()
def _group() -> None:
    """The agent of this node."""


Tpm = Annotated[bool, typer.Option("--tpm", help="The key in the TPM, with its proof.")]
TpmDevice = Annotated[
    str, typer.Option(help="With --tpm: the TPM; unix:PATH for a simulator.", metavar="PLACE")
]
DEVICE = "/dev/tpmrm0"
FactoryCert = Annotated[
    Path | None, typer.Option(help="PEM of the factory certificate and its issuers.")
]
FactoryKey = Annotated[Path | None, typer.Option(help="With --factory-cert: its key, PEM.")]
Url = Annotated[list[str] | None, typer.Option(help="Without a token: hub or relay. Repeatable.")]
Root = Annotated[str, typer.Option(help="Without a token: SHA-256 of the hub's root certificate.")]
TufRoot = Annotated[str, typer.Option(help="Without a token: SHA-256 of the first TUF root.")]


@dataclass(frozen=True)
class Proof:
    """What a machine shows when it joins."""

    tpm: bool
    device: str
    certificate: Path | None
    key: Path | None

    def task(self, token: str, name: str) -> JoinTask:
        """The join. Raises BadUsage for options that do not fit each other."""
        from edgewise.protocol.join import Token
        from edgewise.protocol.tasks import JoinTask

        if (self.certificate is None) != (self.key is None):
            raise BadUsage("--factory-cert and --factory-key go together")
        if self.tpm and self.certificate is not None:
            raise BadUsage("--tpm and --factory-cert are two ways in", hint="choose one")
        if not Token.parse(token).identifier and not self.tpm and self.certificate is None:
            raise BadUsage(
                "an invitation lets nobody in by itself",
                hint="add --tpm or --factory-cert, or use a token of `edgewise node token`",
            )
        factory = None
        if self.certificate is not None and self.key is not None:
            factory = str(self.certificate.absolute()), str(self.key.absolute())
        return JoinTask(token, name, self.device if self.tpm else "", factory)


def invitation(token: str, url: list[str] | None, root: str, tuf_root: str) -> str:
    """A token's text, or one made of ``--url`` and ``--root``. Raises BadUsage for neither."""
    from edgewise.protocol.join import Token

    if token:
        if url or root or tuf_root:
            raise BadUsage("a token says where and whom to trust", hint="leave --url, --root out")
        return token
    if not url or not root:
        raise BadUsage(
            "where to join, and whom to trust?",
            hint="give a token or an invitation (`edgewise device invite`), or --url and --root",
        )
    for what, digest in (("--root", root), ("--tuf-root", tuf_root)):
        if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
            raise BadUsage(f"{what} takes 64 lower-case hex digits")
    return Token(tuple(url), root, "", "", tuf_root).text()


def set_aside(state: Path) -> None:
    """Move a joined identity to ``identity.before``; releases and apps stay.

    Raises NeedsPerson while an agent runs on it.
    """
    from edgewise.host.notify import NotifySocket
    from edgewise.runtime.credentials import CredentialFiles

    now = state / "identity"
    if not CredentialFiles(now).exist:
        return  # set aside already, by a join that did not end
    guard = NotifySocket(state, lambda pid: None)  # what an agent has while it runs
    try:
        guard.open()
    except OSError as error:
        raise NeedsPerson(
            f"an agent runs on {state}", hint="stop it first; its apps go on"
        ) from error
    try:
        drop(state / "identity.before")
        now.rename(state / "identity.before")
    finally:
        guard.close()


def drop(identity: Path) -> None:
    """Delete an identity that is not used any more, plain keys first."""
    import shutil

    from edgewise.runtime.credentials import wipe

    for key in identity.glob("*.key"):
        wipe(key)
    shutil.rmtree(identity, ignore_errors=True)


@app.command("join", help="Join this machine as a node. Repeating it is harmless.")
def join(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    token: Annotated[
        str,
        typer.Argument(
            help="Of `edgewise node token` or `edgewise device invite`: `-` for standard input, "
            "@FILE, or the text; left out: EDGEWISE_TOKEN."
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(help="Its name; default: the machine's, or the fleet repo's.")
    ] = "",
    tpm: Tpm = False,
    tpm_device: TpmDevice = DEVICE,
    factory_cert: FactoryCert = None,
    factory_key: FactoryKey = None,
    url: Url = None,
    root: Root = "",
    tuf_root: TufRoot = "",
    anew: Annotated[
        bool,
        typer.Option(
            "--anew", help="Set the identity aside that it has, for a TPM that was cleared."
        ),
    ] = False,
    state: State = STATE,
) -> None:
    import asyncio

    from edgewise.model.names import is_name
    from edgewise.protocol.join import Token
    from edgewise.roles.agent import host_name
    from edgewise.roles.node_certificate import read_card
    from edgewise.roles.worker import InProcessWorker
    from edgewise.runtime.credentials import CredentialFiles

    session = Session.of(ctx)
    state = writable(state)
    if CredentialFiles(state / "identity").exist and not anew:
        session.done(f"joined already as {read_card(state).spiffe_id}")
        return
    token = invitation(hidden(token), url, root, tuf_root)
    if Token.parse(token).identifier:
        name = name or host_name()
    if name and not is_name(name):
        raise BadUsage(
            f"{name!r} cannot be a node's name", hint="give one of a-z, 0-9 and '-' with --name"
        )
    task = Proof(tpm, tpm_device, factory_cert, factory_key).task(token, name)
    if anew:
        set_aside(state)
    asyncio.run(InProcessWorker(state).join(task))
    drop(state / "identity.before")
    session.done(f"joined as {read_card(state).spiffe_id}")
    session.note(f"  next: edgewise agent run --state {state}")


@app.command("run", help="Run what the fleet repo says, until SIGTERM or Ctrl-C.")
def run(  # noqa: PLR0913 - one parameter is one option of the command line
    state: State = STATE,
    root: Annotated[
        Path, typer.Option(help="Prefix of the absolute paths of configs and secrets.")
    ] = Path("/"),
    token: Annotated[
        str,
        typer.Option(
            help="Join first, unless it has: `-` for standard input, @FILE, or the text; left "
            "out: EDGEWISE_TOKEN."
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="With --token: the node's name.")] = "",
    tpm: Tpm = False,
    tpm_device: TpmDevice = DEVICE,
    factory_cert: FactoryCert = None,
    factory_key: FactoryKey = None,
    ready: Annotated[Path | None, typer.Option(help="Written once it supervises.")] = None,
    cgroup: Annotated[
        Path | None, typer.Option(help="Where the apps' cgroups go; found by itself.")
    ] = None,
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Do without cgroups although there are some.")
    ] = False,
    stop_apps: Annotated[
        bool, typer.Option("--stop-apps", help="Stop the apps with the agent; else they go on.")
    ] = False,
    workload_socket: Annotated[
        Path | None, typer.Option(help="Where the SPIFFE Workload API listens.")
    ] = None,
    content_url: Annotated[
        list[str] | None,
        typer.Option(
            help="A plain file server or CDN to fetch from first (docs/cdn.md); kept in "
            "content-urls. Repeatable."
        ),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
) -> None:
    from edgewise.runtime.credentials import CredentialFiles

    state = writable(state)
    if content_url:
        _keep_urls(state, content_url)
    token = hidden(token)
    if not token and not CredentialFiles(state / "identity").exist:
        raise NeedsPerson(
            f"this node has not joined: {state} holds no identity",
            hint="`edgewise agent join -`, with a token of `edgewise node token`",
        )
    given = ["--state", str(state), "--root", str(root.absolute())]
    given += ["--name", name] if name else []
    if token:
        task = Proof(tpm, tpm_device, factory_cert, factory_key).task(token, name)
        given += ["--tpm", task.tpm] if task.tpm else []
        if task.factory is not None:
            given += ["--factory-cert", task.factory[0], "--factory-key", task.factory[1]]
    paths = {"--ready": ready, "--cgroup": cgroup, "--workload-socket": workload_socket}
    for option, path in paths.items():
        given += [option, str(path.absolute())] if path else []
    flags = {"--sessions": sessions, "--stop-apps": stop_apps, "--json-log": log_json}
    # By the environment: a command line can be read by everybody on the machine.
    secret = {TOKEN: token} if token else {}
    become("agent", given + [flag for flag, on in flags.items() if on], secret)


def _keep_urls(state: Path, urls: list[str]) -> None:
    from edgewise.net.sources import plain_origin
    from edgewise.runtime.clock import SystemClock

    for url in urls:
        plain_origin(url, SystemClock())
    (state / "content-urls").write_text("".join(f"{url}\n" for url in urls))


@app.command("status", help="What this node is and runs; needs no hub, network or agent.")
def status(ctx: typer.Context, state: State = STATE) -> None:
    import msgspec

    from edgewise.protocol.report import Traffic
    from edgewise.roles.agent import local_status

    session = Session.of(ctx)
    state = state.expanduser()
    if not state.is_dir():
        raise BadUsage(f"{state} is not there", hint="name the node's directory with --state")
    try:
        found = local_status(state)
    except PermissionError as error:
        raise NeedsPerson(f"{error.filename} cannot be read", hint="run it as its owner") from error
    if session.as_json:
        session.json(found)
        return
    shown = ("id", "fleet", "phase", "reason", "certificate_until", "keys", "problem")
    rest = {"tpm": "sealed to its TPM", "file": "in files"}
    said = {**found, "keys": rest.get(found.get("keys", ""), "")}
    facts = [(key.replace("_", " "), str(said.get(key, "") or "")) for key in shown]
    runs = ("running", "target", "previous")
    facts += [(key, short(found.get(key, "") or "") or "nothing") for key in runs]
    owed = found.get("receipts_owed", 0)
    facts.append(("receipts to send", str(owed) if owed else ""))
    facts.append(("link", "metered" if found.get("metered") else ""))
    if (traffic := found.get("traffic")) and traffic.get("used"):
        facts.append(("fetched", by_way(traffic["used"], traffic.get("requests", 0))))
    session.facts(facts)
    for line in refusals(msgspec.convert(found.get("traffic") or {}, Traffic)):
        typer.echo(line)
    for failed in found.get("failed", ()):
        typer.echo(f"failed: {failed}")
    typer.echo("")
    session.table(
        ("APP", "PID", "RESTARTS", "LOG"),
        (
            (app["name"], str(app["pid"] or "not running"), str(app["restarts"]), app["log"])
            for app in found["apps"]
        ),
        none="No app runs on it.",
    )


agent_egress.add_to(app)
agent_ingress.add_to(app)
agent_registry.add_to(app)
agent_ostree.add_to(app)
agent_pins.add_to(app)
agent_link.add_to(app)
agent_svid.add(app)
