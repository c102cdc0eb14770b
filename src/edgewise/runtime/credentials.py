"""A directory with one identity: a key, its certificates and the roots to trust.

``svid.pem`` is the chain without the root, ``svid.key`` its key (0600), ``roots.pem`` what
peers must chain to. Key and chain change together although they are two files: the new
pair is written beside the old one first, and ``settle`` finishes a change that a crash cut
in two. Standard library only, because the resident agent uses it.

A machine with a TPM has ``svid.key.sealed`` instead (``identity.tpm_sealing``). Where a sealed
file is there, it counts: a plain one beside it is left from the change to sealing, and wiped.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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
    def sealed_key(self) -> Path:
        """The key, encrypted by a key in the TPM."""
        return sealed_path(self.key)

    @property
    def roots(self) -> Path:
        """PEM root certificates."""
        return self.directory / "roots.pem"

    @property
    def exist(self) -> bool:
        """Whether there is a whole identity here."""
        self.settle()
        has_key = self.key.exists() or self.sealed_key.exists()
        return self.chain.exists() and has_key and self.roots.exists()

    def settle(self) -> None:
        """Finish a ``replace`` that was cut off after its point of no return."""
        if _next(self.chain).exists():
            # The key was complete before the chain was begun: going on is always right.
            for key in (self.key, self.sealed_key):
                if _next(key).exists():
                    os.replace(_next(key), key)
            os.replace(_next(self.chain), self.chain)
        if self.sealed_key.exists():
            wipe(self.key)

    def replace(self, *, key_pem: bytes, chain: Iterable[bytes]) -> None:
        """Change to a new key and chain (DER, leaf first): after a crash, old or new."""
        self._change(self.key, key_pem, chain)

    def replace_sealed(self, *, sealed_key: bytes, chain: Iterable[bytes]) -> None:
        """``replace`` by a key that is encrypted already: it is nowhere in plain."""
        self._change(self.sealed_key, sealed_key, chain)

    def _change(self, place: Path, key: bytes, chain: Iterable[bytes]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.settle()
        write_private(_next(place), key)
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
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    os.replace(partial, path)
    _keep_names(path.parent)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _keep_names(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def sealed_path(path: Path) -> Path:
    """Where the sealed form of a private file lies."""
    return path.with_name(f"{path.name}.sealed")


def seal_file(path: Path, wrap: Callable[[bytes], bytes]) -> None:
    """Replace a plain file by its sealed form; repeating it goes on where it was cut off."""
    sealed = sealed_path(path)
    if path.exists() and not sealed.exists():
        write_private(sealed, wrap(path.read_bytes()))
    if sealed.exists():
        wipe(path)


def keys_at_rest(directory: Path) -> Literal["", "tpm", "file"]:
    """How the private keys of an identity lie on the disk; empty where there are none."""
    names = ("svid.key", "age.key", "enrolment.key")
    if any((directory / name).exists() for name in names):
        return "file"
    return "tpm" if sealed_path(directory / names[0]).exists() else ""


def wipe(path: Path) -> None:
    """Overwrite and delete a private file, and what a crash left of writing it.

    Flash and journals may keep the old blocks all the same: this is no erasure.
    """
    pending = _next(path)
    for file in (path, pending, _partial(path), _partial(pending)):
        if file.is_file():
            with file.open("r+b") as content:
                content.write(bytes(file.stat().st_size))
                content.flush()
                os.fsync(content.fileno())
            file.unlink()
            _keep_names(file.parent)


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")
