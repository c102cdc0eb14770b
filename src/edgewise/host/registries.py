"""What podman, containerd and k3s need to pull from a relay as this node: small files of theirs
that point at the node's own certificate, which the agent renews in place.

Sources: containers-certs.d(5) and containers-registries.conf(5); containerd docs/hosts.md;
"Private Registry Configuration" of k3s. Nothing is copied, so nothing grows stale.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.runtime.credentials import CredentialFiles, write_private

Engine = Literal["podman", "containerd", "k3s"]
ENGINES: Final[tuple[Engine, ...]] = ("podman", "containerd", "k3s")
NAME: Final = "edgewise.internal"
"""What images are called on every node, whatever relay it has; ``.internal`` is reserved for
private use (ICANN, 2024)."""
MARK: Final = "# Written by `edgewise agent registry`; it replaces this file.\n"


@dataclass(frozen=True)
class Setup:
    """Files to write and links to make, by absolute path."""

    files: dict[str, str]
    links: dict[str, Path]
    remark: str = ""
    """What a person has left to do."""


def setup(engine: Engine, name: str, urls: Iterable[str], own: CredentialFiles) -> Setup:
    """For one engine. Raises BadUsage for a name or URL that would break its file."""
    hosts = [_host(url) for url in urls]
    _host(f"https://{name}")
    for path in (own.chain, own.key, own.roots):
        if not str(path).isprintable() or set('"\\') & set(str(path)):
            raise BadUsage(f"{str(path)!r} cannot be written into a configuration")
    if engine == "podman":
        return _podman(name, hosts, own)
    return (_containerd if engine == "containerd" else _k3s)(name, hosts, own)


def check_key(own: CredentialFiles) -> None:
    """Raises NeedsPerson where there is no key that another program could read."""
    if not own.exist:
        raise NeedsPerson(
            f"this node has not joined: {own.directory} holds no identity",
            hint="edgewise agent join",
        )
    if own.sealed_key.exists():
        raise NeedsPerson(
            "this node's key is sealed in its TPM, and container engines read keys from files",
            hint="let the agent deliver what it runs, or join this node without --tpm",
        )


def _podman(name: str, hosts: list[str], own: CredentialFiles) -> Setup:
    links = {}
    for host in hosts:
        top = f"/etc/containers/certs.d/{host}"
        links[f"{top}/client.cert"] = own.chain
        links[f"{top}/client.key"] = own.key
        links[f"{top}/ca.crt"] = own.roots
    lines = [MARK, "[[registry]]\n", f'prefix = "{name}"\n', f'location = "{hosts[-1]}"\n']
    lines += [f'\n[[registry.mirror]]\nlocation = "{host}"\n' for host in hosts[:-1]]
    place = "/etc/containers/registries.conf.d/50-edgewise.conf"
    return Setup({place: "".join(lines)}, links)


def _containerd(name: str, hosts: list[str], own: CredentialFiles) -> Setup:
    lines = [MARK, f'server = "https://{hosts[0]}"\n']
    for host in hosts:
        lines += [
            f'\n[host."https://{host}"]\n',
            '  capabilities = ["pull", "resolve"]\n',
            f'  ca = "{own.roots}"\n',
            f'  client = [["{own.chain}", "{own.key}"]]\n',
        ]
    return Setup(
        {f"/etc/containerd/certs.d/{name}/hosts.toml": "".join(lines)},
        {},
        'containerd reads it where config.toml has config_path = "/etc/containerd/certs.d"',
    )


def _k3s(name: str, hosts: list[str], own: CredentialFiles) -> Setup:
    lines = [MARK, "mirrors:\n", f'  "{name}":\n', "    endpoint:\n"]
    lines += [f'      - "https://{host}"\n' for host in hosts]
    lines += ["configs:\n"]
    for host in hosts:
        lines += [
            f'  "{host}":\n',
            "    tls:\n",
            f'      cert_file: "{own.chain}"\n',
            f'      key_file: "{own.key}"\n',
            f'      ca_file: "{own.roots}"\n',
        ]
    return Setup(
        {"/etc/rancher/k3s/registries.yaml": "".join(lines)},
        {},
        "k3s reads it when it starts: systemctl restart k3s (or k3s-agent)",
    )


def write(made: Setup, root: Path) -> None:
    """Below ``root``. Idempotent. Raises NeedsPerson, having changed nothing, when a file that
    somebody else wrote is in the way."""
    for path in made.files:
        place = root / path.lstrip("/")
        if place.exists() and not place.read_text(errors="replace").startswith(MARK):
            raise NeedsPerson(
                f"{place} is there already and not ours",
                hint="see what to add with --dry-run",
            )
    for path in made.links:
        place = root / path.lstrip("/")
        if place.exists() and not place.is_symlink():
            raise NeedsPerson(f"{place} is there already and not ours", hint="move it away")
    try:
        for path, text in made.files.items():
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            write_private(place, text.encode(), mode=0o644)
        for path, target in made.links.items():
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            waiting = place.with_name(f".{place.name}.new")
            waiting.unlink(missing_ok=True)
            waiting.symlink_to(target)
            os.replace(waiting, place)
    except OSError as error:
        raise NeedsPerson(f"{error.filename} cannot be written: {error.strerror}") from error


def _host(url: str) -> str:
    """``host`` or ``host:port``."""
    refused = BadUsage(f"{url[:200]!r} is not like https://host:port")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise refused from None
    plain = not set(parts.netloc) & set("\"'\\{}<> ") and url.isprintable()
    if parts.scheme != "https" or not parts.hostname or port == 0 or not plain or parts.username:
        raise refused
    return parts.netloc
