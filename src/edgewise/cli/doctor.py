"""``edgewise doctor``: what may hurt later, each finding with its next move."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import typer

from edgewise.cli.session import Session
from edgewise.model.errors import EdgewiseError, NeedsPerson, NotFound
from edgewise.runtime.clock import Clock, SystemClock

if TYPE_CHECKING:
    from edgewise.cli.client import Client
    from edgewise.protocol.api import HubStatus

_DEPENDENCIES = ("msgspec", "cryptography", "zstandard", "tuf", "aiohttp", "jinja2", "pyyaml")
_SKEW = timedelta(seconds=30)
_SOON = timedelta(days=14)
_FREE = 2 << 30
_OLDEST_GIT = (2, 34)


class Finding(msgspec.Struct, frozen=True):
    """One check: what was found and, unless all is well, the next move."""

    check: str
    level: Literal["ok", "warning", "failed"]
    found: str
    next: str = ""


def verb(ctx: typer.Context) -> None:
    session = Session.of(ctx)
    clock = SystemClock()
    findings = [*_this_machine(), *_hub(session, clock)]
    if session.as_json:
        session.json(findings)
    else:
        session.table(
            ("CHECK", "RESULT", "FOUND", "NEXT MOVE"),
            ((one.check, one.level, one.found, one.next) for one in findings),
            none="",
        )
    failed = [one for one in findings if one.level == "failed"]
    if failed:
        raise NeedsPerson(
            f"{len(failed)} of {len(findings)} checks failed: "
            + ", ".join(one.check for one in failed)
        )


def _this_machine() -> list[Finding]:
    found = [_python(), _git()]
    if shutil.which("ssh-keygen"):
        found.append(Finding("commit signatures", "ok", "ssh-keygen is here"))
    else:
        found.append(
            Finding(
                "commit signatures", "warning", "ssh-keygen is not installed",
                "install openssh-client before you ask for signed commits",
            )
        )  # fmt: skip
    return found


def _python() -> Finding:
    missing = []
    for name in _DEPENDENCIES:
        try:
            version(name)
        except PackageNotFoundError:
            missing.append(name)
    mine = ".".join(map(str, sys.version_info[:3]))
    if missing:
        return Finding(
            "python", "failed", f"{mine} without {', '.join(missing)}",
            f"pip install {' '.join(missing)}",
        )  # fmt: skip
    return Finding("python", "ok", mine)


def _git() -> Finding:
    try:
        done = subprocess.run(["git", "--version"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return Finding("git", "failed", "not installed", "install git 2.34 or newer")
    text = done.stdout.strip().removeprefix("git version ")
    numbers = tuple(int(part) for part in text.split(" ")[0].split(".")[:2] if part.isdigit())
    if numbers < _OLDEST_GIT:
        return Finding("git", "failed", text, "install git 2.34 or newer (SSH signatures)")
    return Finding("git", "ok", text)


def _hub(session: Session, clock: Clock) -> list[Finding]:
    from edgewise.protocol.api import HubStatus

    try:
        client = session.client()
        found = [_certificate(client, clock)]
        _, headers = client.raw("/v1/health")
        status = client.get("/v1/status", HubStatus)
    except EdgewiseError as error:
        return [Finding("hub", "failed", str(error), error.hint)]
    address = client.context.told.url
    found.append(Finding("hub", "ok", f"{address}, edgewise {status.version}"))
    found.append(_clock(headers.get("date", ""), clock))
    found += [*_status(status), *_metadata(client, clock)]
    if client.context.told.data:
        found += _data(Path(client.context.told.data), status)
    return found


def _certificate(client: Client, clock: Clock) -> Finding:
    from cryptography import x509

    try:
        leaf = x509.load_pem_x509_certificate(client.context.certificate.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(
            "your certificate", "failed", f"cannot be read: {error}",
            "copy the hub's operator folder again",
        )  # fmt: skip
    return _expiry(
        "your certificate", leaf.not_valid_after_utc, clock,
        "restart the hub: it renews the certificate in its operator folder",
    )  # fmt: skip


def _expiry(check: str, end: datetime, clock: Clock, next_move: str) -> Finding:
    left = end - clock.now()
    said = f"expires {end.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    if left <= timedelta():
        return Finding(check, "failed", said.replace("expires", "expired"), next_move)
    return Finding(check, "warning" if left < _SOON else "ok", said, next_move * (left < _SOON))


def _clock(date: str, clock: Clock) -> Finding:
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return Finding(
            "time", "warning", "the hub did not tell its time", "check its clock by hand"
        )
    skew = abs(clock.now() - theirs)
    said = f"{skew.total_seconds():.0f} s apart from the hub"
    if skew > _SKEW:
        return Finding("time", "failed", said, "start time synchronisation on both machines")
    return Finding("time", "ok", said)


def _status(status: HubStatus) -> list[Finding]:
    found = []
    if status.trust == "hub":
        found.append(
            Finding(
                "trust", "warning", "the hub may sign what runs: who steals it can run code",
                "sign releases in CI and set trust: builder (docs/trust.md)",
            )
        )  # fmt: skip
    else:
        found.append(Finding("trust", "ok", "only builders sign what runs"))
    stalled = [c for c in status.source.conditions if c.type == "Stalled" and c.status]
    if stalled:
        why = f"{stalled[0].reason}: {stalled[0].message}"
        found.append(Finding("source", "failed", why, "`edgewise status` shows file and line"))
    else:
        found.append(Finding("source", "ok", status.source.revision or "no commit yet"))
    for one in status.federations:
        if one.problem:
            move = "the last good bundle stays in use; ask the other organisation"
            finding = Finding(f"federation {one.trust_domain}", "failed", one.problem, move)
        else:
            said = f"bundle {one.sequence} of {one.url}"
            finding = Finding(f"federation {one.trust_domain}", "ok", said)
        found.append(finding)
    for relay in status.relays:
        if relay.connected:
            found.append(Finding(f"relay {relay.name}", "ok", f"{relay.nodes} nodes"))
        else:
            found.append(
                Finding(
                    f"relay {relay.name}", "failed", f"away, with {relay.nodes} nodes",
                    "read its log on its machine: does it reach the hub?",
                )
            )  # fmt: skip
    return found


def _metadata(client: Client, clock: Clock) -> list[Finding]:
    """Expiry of every TUF role, newest version. Read for dates only; nodes verify it."""
    moves = {
        "timestamp": "is the hub running? it renews this by itself",
        "snapshot": "is the hub running? it renews this by itself",
        "channels": "is the hub running? it renews this by itself",
        "builds": "sign it again with a builder key: `edgewise release sign`",
        "targets": "sign it again with the offline targets key (docs/trust.md)",
        "root": "sign a new root with the offline root key (docs/trust.md)",
    }
    found = []
    try:
        stamp = _signed(client, "timestamp.json")
        found.append(_role("timestamp", stamp, moves, clock))
        number = stamp["meta"]["snapshot.json"]["version"]
        snapshot = _signed(client, f"{number}.snapshot.json")
        found.append(_role("snapshot", snapshot, moves, clock))
        for file, meta in sorted(snapshot["meta"].items()):
            name = file.removesuffix(".json")
            found.append(_role(name, _signed(client, f"{meta['version']}.{file}"), moves, clock))
        found.append(_role("root", _newest_root(client), moves, clock))
    except NotFound:
        found.append(Finding("tuf", "warning", "nothing published yet", "push a first commit"))
    except (EdgewiseError, KeyError, ValueError) as error:
        found.append(
            Finding("tuf", "failed", f"{type(error).__name__}: {error}", "look at the hub's log")
        )
    return found


def _newest_root(client: Client) -> Any:
    newest = _signed(client, "1.root.json")
    for number in range(2, 1000):
        try:
            newest = _signed(client, f"{number}.root.json")
        except NotFound:
            break
    return newest


def _signed(client: Client, name: str) -> Any:
    data, _ = client.raw(f"/v1/content/tuf/{name}")
    return msgspec.json.decode(data)["signed"]


def _role(name: str, signed: Any, moves: dict[str, str], clock: Clock) -> Finding:
    end = datetime.fromisoformat(signed["expires"])
    soon = timedelta() if name in ("timestamp", "snapshot", "channels") else _SOON
    move = moves.get(name, "sign it again")
    left = end - clock.now()
    if timedelta() < left and soon == timedelta():
        return Finding(f"tuf {name}", "ok", f"expires {end:%Y-%m-%d %H:%M}Z")
    return _expiry(f"tuf {name}", end, clock, move)


def _data(data: Path, status: HubStatus) -> list[Finding]:
    found = []
    try:
        free = shutil.disk_usage(data).free
    except OSError as error:
        return [Finding("disk", "warning", f"{data}: {error.strerror}", "correct the context file")]
    said = f"{free / 1e9:.1f} GB free at {data}"
    if free < _FREE:
        found.append(Finding("disk", "failed", said, "free space, or move the data directory"))
    else:
        found.append(Finding("disk", "ok", said))
    if status.trust == "builder":
        keys = sorted(
            p.name for p in (data / "keys").glob("*") if p.name.startswith(("root", "build"))
        )
        if keys:
            found.append(
                Finding(
                    "offline keys", "failed", f"on the hub: {', '.join(keys)}",
                    "move them to a machine without network; the hub needs neither",
                )
            )  # fmt: skip
        else:
            found.append(Finding("offline keys", "ok", "no root or builder key on the hub"))
    return found
