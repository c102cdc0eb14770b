"""Secrets: age ciphertext in git for the workspace's key, resealed to each node's own.

The document that sync keeps is canonical JSON ``{"name", "encryption", "data"}`` whose
values are armoured age files. What a node gets is one binary age file; its plaintext is
canonical JSON of file name to text. The hub sees plaintext in memory, for as long as the
resealing takes, and stores none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyrage

from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted
from edgewise.protocol.codec import decode, encode
from edgewise.runtime.credentials import write_private

MOST_PLAINTEXT = 1 << 20
"""Bytes of all values of one Secret; a sealed secret is held in memory on the node."""


class _Document(msgspec.Struct, frozen=True):
    name: str
    data: dict[str, str]
    encryption: str = "age"


@dataclass(frozen=True, slots=True)
class WorkspaceKey:
    """The key that secrets in git are encrypted to (``keys/workspace.age``, 0600)."""

    identity: pyrage.x25519.Identity

    @classmethod
    def open_or_create(cls, path: Path) -> WorkspaceKey:
        """Raises NeedsPerson when the file is damaged: it is never replaced."""
        if not path.exists():
            write_private(path, f"{pyrage.x25519.Identity.generate()}\n".encode())
        try:
            return cls(pyrage.x25519.Identity.from_str(path.read_text().strip()))
        except (OSError, ValueError, pyrage.IdentityError) as error:
            raise NeedsPerson(
                f"the workspace key {path} cannot be read",
                hint="put it back from a backup; without it no secret in git can be opened",
            ) from error

    @property
    def recipient(self) -> str:
        """``age1...``: what people encrypt to. Public."""
        return str(self.identity.to_public())

    def reseal(self, document: bytes, recipient: str) -> bytes:
        """The object for the node with this recipient.

        Two calls give different bytes (age draws a new file key each time), so keep the
        result. Raises Untrusted when a value cannot be opened, BadUsage for the recipient.
        """
        opened = decode(document, _Document, what="a Secret", at_most=4 * MOST_PLAINTEXT)
        plain: dict[str, str] = {}
        for key, value in opened.data.items():
            try:
                text = pyrage.decrypt(value.strip().encode(), [self.identity]).decode()
            except (pyrage.DecryptError, UnicodeDecodeError) as error:
                raise Untrusted(
                    f"secret {opened.name}: {key} cannot be opened with the workspace's key",
                    hint=f"encrypt it again: `edgewise secret seal`, or age -a -r {self.recipient}",
                ) from error
            plain[key] = text
        data = encode(plain)
        if len(data) > MOST_PLAINTEXT:
            raise Untrusted(
                f"secret {opened.name} has {len(data)} bytes, at most {MOST_PLAINTEXT} are possible"
            )
        return bytes(pyrage.encrypt(data, [_recipient(recipient)]))


def seal_value(recipient: str, plaintext: str) -> str:
    """An armoured age file for a Secret document's ``data``. Raises BadUsage."""
    sealed: bytes = pyrage.encrypt(plaintext.encode(), [_recipient(recipient)], armored=True)
    return sealed.decode()


def opened_values(plaintext: bytes) -> dict[str, str]:
    """File name to text, from the plaintext of a sealed object. Raises Untrusted."""
    return decode(plaintext, dict[str, str], what="a sealed secret", at_most=MOST_PLAINTEXT)


def _recipient(text: str) -> pyrage.x25519.Recipient:
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except (ValueError, pyrage.RecipientError) as error:
        raise BadUsage(
            f"{text[:80]!r} is not an age recipient", hint="they start with age1"
        ) from error
