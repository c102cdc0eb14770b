"""A directory with one identity: a key, its certificates and the roots to trust.

``svid.pem`` is the chain without the root, ``svid.key`` its key (0600), ``roots.pem`` what
peers must chain to. Key and chain change together although they are two files: the new
pair is written beside the old one first, and ``settle`` finishes a change that a crash cut
in two. Standard library only, because the resident agent uses it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgewise.model.errors import NeedsPerson

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class CredentialFiles:
    """Where an identity lies. Nothing needs to exist yet."""

    directory: Path

    @property
    def chain(self) -> Path:
        """PEM certificates, leaf first, without the root."""
        return self.directory / "svid.pem"

    @property
    def key(self) -> Path:
        """PEM PKCS#8 key of the leaf, mode 0600."""
        return self.directory / "svid.key"

    @property
    def roots(self) -> Path:
        """PEM root certificates."""
        return self.directory / "roots.pem"

    @property
    def exist(self) -> bool:
        """Whether there is a whole identity here."""
        self.settle()
        return self.chain.exists() and self.key.exists() and self.roots.exists()

    def settle(self) -> None:
        """Finish a ``replace`` that was cut off after its point of no return."""
        if _next(self.chain).exists():
            # The key was complete before the chain was begun: going on is always right.
            if _next(self.key).exists():
                os.replace(_next(self.key), self.key)
            os.replace(_next(self.chain), self.chain)

    def replace(self, *, key_pem: bytes, chain: Iterable[bytes]) -> None:
        """Change to a new key and chain (DER, leaf first): after a crash, old or new."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settle()
        write_private(_next(self.key), key_pem)
        write_private(_next(self.chain), pem_of(chain).encode(), mode=0o644)
        self.settle()

    def trust(self, roots: Iterable[bytes]) -> None:
        """Replace the roots (DER)."""
        write_private(self.roots, pem_of(roots).encode(), mode=0o644)

    def root_certificates(self) -> tuple[bytes, ...]:
        """The roots as DER. Raises NeedsPerson when there are none."""
        return certificates_in(self.roots)

    def leaf(self) -> bytes:
        """The leaf certificate as DER. Raises NeedsPerson when there is none."""
        self.settle()
        return certificates_in(self.chain)[0]


def certificates_in(path: Path) -> tuple[bytes, ...]:
    """Every certificate of a PEM file as DER. Raises NeedsPerson when there is none."""
    try:
        text = path.read_text(encoding="ascii", errors="replace")
        found = tuple(base64.b64decode(body, validate=False) for body in _PEM.findall(text))
    except (OSError, ValueError) as error:
        raise NeedsPerson(
            f"{path} cannot be read as certificates: {error}", hint="join again with a new token"
        ) from error
    if not found:
        raise NeedsPerson(f"{path} holds no certificate", hint="join again with a new token")
    return found


def pem_of(certificates: Iterable[bytes]) -> str:
    """DER certificates as one PEM text."""
    lines = []
    for der in certificates:
        body = base64.encodebytes(der).decode().replace("\n", "")
        wrapped = "\n".join(body[i : i + 64] for i in range(0, len(body), 64))
        lines.append(f"-----BEGIN CERTIFICATE-----\n{wrapped}\n-----END CERTIFICATE-----\n")
    return "".join(lines)


def fingerprint(der: bytes) -> str:
    """Hex SHA-256, as tokens pin a root."""
    return hashlib.sha256(der).hexdigest()


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that a crash leaves the old one, the new one, or none; never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
