"""``edgewise login``: a short-lived certificate for a person, by password or OpenID provider."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from edgewise.cli.session import Session, stamp
from edgewise.model.errors import BadUsage, NeedsPerson, TryLater, Untrusted

if TYPE_CHECKING:
    from edgewise.cli.client import Client, Context
    from edgewise.cli.renewal import NewKey
    from edgewise.protocol.people import LoginReply

HOME = Path("~/.edgewise")


def verb(
    ctx: typer.Context,
    hub: Annotated[str, typer.Option(help="https://HOST:PORT; default: as in the context.")] = "",
    root: Annotated[
        str, typer.Option(help="SHA-256 of the hub's root certificate, told by an administrator.")
    ] = "",
    user: Annotated[str, typer.Option(help="Local user; else the OpenID provider is asked.")] = "",
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
) -> None:
    from edgewise.cli.client import Client
    from edgewise.cli.renewal import NewKey
    from edgewise.protocol.people import LoginWays

    session = Session.of(ctx)
    url, roots = _roots(session, hub, root)
    context = _reach(session, url, roots)
    client = Client(context, anonymous=True)
    ways = client.get("/v1/login", LoginWays)
    key = NewKey()
    if user or not ways.oidc:
        if not user and not ways.password:
            raise BadUsage(
                "this hub has neither local users nor an OpenID provider",
                hint="its administrator adds some: `edgewise user add` (docs/people.md)",
            )
        reply = _by_password(client, user, key, from_stdin=password_stdin)
    else:
        reply = _by_provider(session, client, ways.oidc, key)
    kept = key.keep(context.certificate.parent, url, reply)
    linked = not session.context and _link(kept.path)
    if session.as_json:
        session.json(kept.told)
        return
    typer.echo(f"logged in as {reply.user} of {reply.organisation}")
    session.note(f"  until   {stamp(reply.login_until)}, renewed by every command on the way")
    session.note(f"  kept in {kept.path.parent}")
    if not linked:
        session.note(f"  use it with --context {kept.path.parent}")


def _roots(session: Session, hub: str, root: str) -> tuple[str, tuple[bytes, ...]]:
    """The hub's URL, and the roots that it has to prove itself with."""
    from edgewise.runtime.credentials import certificates_in

    known = _known(session)
    url = (hub or (known.told.url if known else "")).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or parts.path:
        raise BadUsage(f"--hub {url!r} is not like https://hub.example.org:8443")
    if known is not None and known.told.url.rstrip("/") == url and not root:
        return url, certificates_in(known.roots)
    return url, _pinned(url, root)


def _known(session: Session) -> Context | None:
    from edgewise.cli.client import Context

    try:
        return Context.find(session.context)
    except (BadUsage, NeedsPerson):
        return None


def _pinned(url: str, root: str) -> tuple[bytes, ...]:
    """First contact: the root with the digest that we were told, or that a person agrees to."""
    from edgewise.net.tls import pinned, unverified_context
    from edgewise.protocol.codec import decode
    from edgewise.protocol.join import Roots
    from edgewise.runtime.credentials import fingerprint

    parts = urlsplit(url)
    try:
        line = http.client.HTTPSConnection(
            str(parts.hostname), parts.port or 443, timeout=20, context=unverified_context()
        )
        line.request("GET", "/v1/roots")
        data = line.getresponse().read(1 << 20)
        line.close()
    except (OSError, http.client.HTTPException) as error:
        raise TryLater(f"cannot reach the hub at {url}: {error}") from error
    roots = decode(data, Roots, what="the hub's roots").roots
    if not roots:
        raise Untrusted(f"{url} shows no root certificate")
    if root:
        return pinned(roots, root.lower().replace(":", ""))
    shown = fingerprint(roots[0])
    if not sys.stdin.isatty():
        raise BadUsage(
            "the hub is not known here and nobody can be asked",
            hint=f"if it is the right one: --root {shown}",
        )
    typer.echo(f"The hub at {url} has the root certificate\n  {shown}", err=True)
    if not typer.confirm("Is that what your administrator told you?", err=True):
        raise Untrusted("the hub's root was not confirmed")
    return (roots[0],)


def _reach(session: Session, url: str, roots: tuple[bytes, ...]) -> Context:
    """A context with no certificate yet, for a hub that has proved which organisation it is."""
    from edgewise.cli.client import Context
    from edgewise.net.tls import peer_id, pinned_context
    from edgewise.protocol.operator import OperatorContext
    from edgewise.runtime.credentials import CredentialFiles

    parts = urlsplit(url)
    line = http.client.HTTPSConnection(
        str(parts.hostname), parts.port or 443, timeout=20, context=pinned_context(roots)
    )
    try:
        line.connect()
        identity = peer_id(line.sock) if isinstance(line.sock, ssl.SSLSocket) else None
    except ssl.SSLError as error:
        raise Untrusted(
            f"the hub at {url} did not prove itself: {error.reason}",
            hint="is it another hub? then give its root with --root",
        ) from error
    except OSError as error:
        raise TryLater(f"cannot reach the hub at {url}: {error}") from error
    finally:
        line.close()
    if identity is None or identity.role != "hub":
        raise Untrusted(f"{url} is {identity or 'nobody'}, not a hub")
    organisation = identity.trust_domain.partition(".")[2]
    folder = _folder(session, organisation)
    told = OperatorContext(
        url, organisation, "", "svid.pem", "svid.key", "roots.pem", str(identity)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        CredentialFiles(folder).trust(roots)
    except OSError as error:
        raise NeedsPerson(f"{folder} cannot be written: {error.strerror}") from error
    return Context.of(folder, told)


def _folder(session: Session, organisation: str) -> Path:
    if not session.context:
        return HOME.expanduser() / "logins" / organisation
    path = Path(session.context).expanduser()
    folder = path.parent if path.suffix == ".json" else path
    if (folder / "hub.db").exists() or (folder.parent / "hub.db").exists():
        raise BadUsage(
            f"{folder} is the hub's own; a login does not belong there",
            hint="give another directory with --context, or none",
        )
    return folder


def _link(context: Path) -> bool:
    """Let ~/.edgewise/context.json lead here, unless it is a file of somebody's own."""
    link = HOME.expanduser() / "context.json"
    if link.exists() and not link.is_symlink():
        return False
    link.unlink(missing_ok=True)
    link.symlink_to(context)
    return True


def _by_password(client: Client, user: str, key: NewKey, *, from_stdin: bool) -> LoginReply:
    from edgewise.protocol.people import LoginReply, PasswordLogin

    name = user or typer.prompt("User", err=True)
    password = read_password("Password", from_stdin=from_stdin)
    return client.post("/v1/login/password", PasswordLogin(name, password, key.csr), LoginReply)


def read_password(prompt: str, *, from_stdin: bool, again: bool = False) -> str:
    """From standard input's first line, or asked without echo. Never from the command line."""
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise BadUsage("nobody can be asked for a password", hint="pass it with --password-stdin")
    return str(typer.prompt(prompt, hide_input=True, confirmation_prompt=again, err=True))


def _by_provider(session: Session, client: Client, issuer: str, key: NewKey) -> LoginReply:
    """RFC 8628: the person agrees in a browser, anywhere."""
    from edgewise.protocol.people import DeviceAnswer, DevicePoll, DeviceStart
    from edgewise.runtime.clock import SystemClock

    start = client.post("/v1/login/device", None, DeviceStart)
    session.note(f"Open {start.verification_uri} and enter the code {start.user_code}")
    if start.verification_uri_complete:
        session.note(f"  or open {start.verification_uri_complete}")
    session.note(f"  waiting for {issuer} ...")
    clock, wait = SystemClock(), start.interval_s
    end = clock.monotonic() + start.expires_s
    while clock.monotonic() < end:
        asyncio.run(clock.sleep(timedelta(seconds=wait)))
        try:
            answer = client.post(
                "/v1/login/device/poll", DevicePoll(start.handle, key.csr), DeviceAnswer
            )
        except TryLater as error:
            wait = max(wait, error.wait.total_seconds())
            continue
        if answer.login is not None:
            return answer.login
        wait = max(1.0, answer.wait_s)
    raise TryLater("nobody agreed in time", hint="run `edgewise login` again")
