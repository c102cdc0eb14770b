"""Where CA keys live: files, sealed or not. ``pkcs11`` has the same port for tokens.

A sealed key is PKCS#8, encrypted with AES-256-CBC under a key that PBKDF2-HMAC-SHA256 makes
of a passphrase (PBES2, RFC 8018): any OpenSSL reads it. The rounds are ours to choose, which
``cryptography`` does not offer for PKCS#8, so the envelope is put together here.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from edgewise.backends.pki.certificates import Key, key_pem, make_key, read_key
from edgewise.model.errors import BadUsage, NeedsPerson
from edgewise.runtime.credentials import write_private

ROUNDS: Final = 600_000
"""A fifth of a second for each guess (OWASP's advice for PBKDF2-HMAC-SHA256, 2023)."""
SHORTEST_PASSPHRASE: Final = 8
"""Bytes. It is guessed against a stolen file, without anybody to count the tries."""
_SEALED: Final = b"ENCRYPTED PRIVATE KEY"

Passphrase = Callable[[], bytes | None]
"""Asked each time it is needed, so that it does not stay in memory; None: there is none."""


class KeyStore(Protocol):
    """Keys by name. Implementations: ``FileKeys``, pkcs11.TokenKeys.

    Raises NeedsPerson for a key that is there and cannot be used.
    """

    def has(self, name: str) -> bool: ...
    def load(self, name: str) -> Key | None:
        """None when there is no such key."""

    def create(self, name: str) -> Key:
        """A new key; an old one of this name is replaced."""

    def move(self, name: str, to: str) -> None:
        """Rename; one that has the new name is destroyed. Nothing when there is no such key."""

    def destroy(self, name: str) -> None:
        """Idempotent."""


def no_passphrase() -> None:
    """Keys are plain files."""
    return


@dataclass(frozen=True, slots=True)
class FileKeys:
    """Keys as PKCS#8 files with mode 0600 in one directory."""

    directory: Path
    passphrase: Passphrase = no_passphrase
    """New keys are sealed with it, and sealed ones opened."""

    def path(self, name: str) -> Path:
        """Where the key is or would be."""
        return self.directory / f"{name}.key"

    def has(self, name: str) -> bool:
        """See ``KeyStore``."""
        return self.path(name).exists()

    def load(self, name: str) -> Key | None:
        """See ``KeyStore``. Raises NeedsPerson for a sealed key without its passphrase."""
        path = self.path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise NeedsPerson(f"the key {path} cannot be read: {error.strerror}") from error
        if _SEALED not in data:
            return read_key(data, str(path))
        passphrase = self.passphrase()
        if passphrase is None:
            raise NeedsPerson(
                f"the key {path} is sealed, and nobody gave its passphrase",
                hint="start the hub with --root-passphrase-file FILE, or give it the systemd "
                "credential edgewise-root-passphrase (docs/identity.md)",
            )
        return read_key(data, str(path), passphrase)

    def create(self, name: str) -> Key:
        """See ``KeyStore``."""
        key = make_key()
        passphrase = self.passphrase()
        pem = key_pem(key) if passphrase is None else sealed_pem(key, passphrase)
        write_private(self.path(name), pem)
        return key

    def move(self, name: str, to: str) -> None:
        """See ``KeyStore``."""
        if self.has(name):
            os.replace(self.path(name), self.path(to))

    def destroy(self, name: str) -> None:
        """See ``KeyStore``."""
        self.path(name).unlink(missing_ok=True)

    def is_sealed(self, name: str) -> bool:
        """Whether the key's file is encrypted."""
        return self.has(name) and _SEALED in self.path(name).read_bytes()

    def seal(self, name: str, passphrase: bytes) -> None:
        """Encrypt the file of a key, in place. ``passphrase`` opens one that is sealed already.

        Raises NeedsPerson when there is no such key, BadUsage for a passphrase that is too
        short.
        """
        key = self._present(name)
        write_private(self.path(name), sealed_pem(key, passphrase))

    def unseal(self, name: str) -> None:
        """Write the key in the clear again."""
        write_private(self.path(name), key_pem(self._present(name)))

    def _present(self, name: str) -> Key:
        key = self.load(name)
        if key is None:
            raise NeedsPerson(f"there is no key {self.path(name)}", hint="is it in its safe?")
        return key


def sealed_pem(key: Key, passphrase: bytes) -> bytes:
    """PKCS#8 EncryptedPrivateKeyInfo (RFC 5958) as PEM. Raises BadUsage."""
    if len(passphrase) < SHORTEST_PASSPHRASE:
        raise BadUsage(
            f"the passphrase has {len(passphrase)} bytes, at least {SHORTEST_PASSPHRASE} are needed"
        )
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    salt, start = os.urandom(16), os.urandom(16)
    secret = hashlib.pbkdf2_hmac("sha256", passphrase, salt, ROUNDS, 32)
    padder = PKCS7(128).padder()
    padded = padder.update(plain) + padder.finalize()
    encryptor = Cipher(algorithms.AES(secret), modes.CBC(start)).encryptor()
    sealed = encryptor.update(padded) + encryptor.finalize()
    rounds = _tlv(0x02, ROUNDS.to_bytes(3, "big"))
    prf = _tlv(0x30, _HMAC_SHA256 + _tlv(0x05, b""))
    kdf = _tlv(0x30, _PBKDF2 + _tlv(0x30, _tlv(0x04, salt) + rounds + prf))
    cipher = _tlv(0x30, _AES256_CBC + _tlv(0x04, start))
    scheme = _tlv(0x30, _PBES2 + _tlv(0x30, kdf + cipher))
    body = base64.encodebytes(_tlv(0x30, scheme + _tlv(0x04, sealed))).decode().replace("\n", "")
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    head, foot = "-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----"
    return "\n".join((head, *lines, foot, "")).encode()


def _tlv(tag: int, content: bytes) -> bytes:
    """One DER element of at most 64 KiB."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


# Object identifiers of RFC 8018, appendix A and C.
_PBES2: Final = _tlv(0x06, bytes.fromhex("2a864886f70d01050d"))
_PBKDF2: Final = _tlv(0x06, bytes.fromhex("2a864886f70d01050c"))
_HMAC_SHA256: Final = _tlv(0x06, bytes.fromhex("2a864886f70d0209"))
_AES256_CBC: Final = _tlv(0x06, bytes.fromhex("60864801650304012a"))


def _meets_its_port(keys: FileKeys) -> KeyStore:
    return keys
