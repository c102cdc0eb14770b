"""The hub's TUF metadata and signing keys as files.

Keys are PEM (PKCS#8, ed25519), mode 0600, one file each, so that ``root.pem`` and
``targets.pem`` can be moved to a safe and brought back for the yearly signing.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key

from edgewise.delivery.trust import MetadataFiles, TrustKeys, public_bytes, tuf_key
from edgewise.model.errors import NeedsPerson
from edgewise.runtime.durable import disk_error, sync_directory, write_durably


class FileMetadata:
    """``directory`` is ``content/tuf``: what a file server hands out."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> bytes | None:
        """See ``MetadataFiles.read``."""
        try:
            return (self._directory / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """See ``MetadataFiles.write``."""
        try:
            write_durably(self._directory / name, data)
        except OSError as error:
            raise disk_error(error, self._directory) from error

    def names(self) -> tuple[str, ...]:
        """Every published file."""
        return tuple(sorted(p.name for p in self._directory.glob("[!.]*.json")))

    def remove(self, name: str) -> None:
        """Idempotent."""
        (self._directory / name).unlink(missing_ok=True)


class FileKeys:
    """``directory`` is the hub's ``keys``; ``offline`` one that is only there for a while,
    with ``root.pem`` or ``targets.pem`` from the safe."""

    def __init__(self, directory: Path, offline: Path | None = None) -> None:
        self._directory = directory
        self._offline = offline
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, name: str) -> Path:
        """Where the key is or would be: successors lie beside what they succeed."""
        first = name.partition(".")[0]
        # The successor alone is there between the two renames of ``promote``.
        known = (f"{first}.pem", f"{first}.next.pem")
        if self._offline is not None and any((self._offline / one).exists() for one in known):
            return self._offline / f"{name}.pem"
        return self._directory / f"{name}.pem"

    def signer(self, name: str) -> CryptoSigner | None:
        """See ``TrustKeys.signer``. Raises NeedsPerson for a damaged or readable-by-all key."""
        path = self.path(name)
        return load_key(path) if path.exists() else None

    def create(self, name: str) -> CryptoSigner:
        """See ``TrustKeys.create``."""
        path = self.path(name)
        return new_key(self.path(f"{name}.next") if path.exists() else path)

    def promote(self, name: str) -> None:
        """See ``TrustKeys.promote``."""
        following = self.path(f"{name}.next")
        if following.exists():
            os.replace(self.path(name), self.path(f"{name}.old"))
            os.replace(following, self.path(name))
            sync_directory(self.path(name).parent)


def new_key(path: Path) -> CryptoSigner:
    """Make an ed25519 key and keep it at ``path``, readable by its owner only."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(path, pem, mode=0o600)
    except OSError as error:
        raise disk_error(error, path.parent) from error
    return CryptoSigner(key)


def public_pem(signer: CryptoSigner) -> bytes:
    """What a hub has to know of a builder's key."""
    head, foot = b"-----BEGIN PUBLIC KEY-----", b"-----END PUBLIC KEY-----"
    return b"\n".join((head, base64.b64encode(public_bytes(signer.public_key)), foot, b""))


def load_public(path: Path) -> Key:
    """The public key in a PEM file. Raises NeedsPerson for anything else."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        why = error.strerror if isinstance(error, OSError) else "it holds no PEM public key"
        raise NeedsPerson(
            f"{path} is not a public key: {why}",
            hint="`edgewise artifact key FILE` writes FILE.pub for this",
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise NeedsPerson(f"{path} is not an ed25519 key", hint="`edgewise artifact key` makes one")
    return tuf_key(key)


def load_key(path: Path) -> CryptoSigner:
    """The signing key in a PEM file. Raises NeedsPerson when it cannot or must not be used."""
    try:
        if path.stat().st_mode & 0o077:
            raise NeedsPerson(f"{path} can be read by others", hint=f"chmod 600 {path}")
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise NeedsPerson(
            f"{path} is not a usable signing key: {error}",
            hint="make one with `edgewise artifact key`",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise NeedsPerson(f"{path} is not an ed25519 key")
    return CryptoSigner(key)


def _meets_its_port(files: FileMetadata, keys: FileKeys) -> tuple[MetadataFiles, TrustKeys]:
    return files, keys
