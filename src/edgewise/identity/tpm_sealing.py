"""A node's private keys, sealed to its TPM.

The TPM seals one random key; files are encrypted with it (AES-256-GCM, NIST SP 800-38D), each
bound to its own name. So a renewal needs one unsealing and no new object in the chip, a file may
be of any length, and a sealed file cannot take another's place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgewise.identity.ports import OpenTpm, ParameterSession
from edgewise.identity.tpm_session import SaltedSession
from edgewise.identity.tpm_structures import Public, Sealed
from edgewise.model.errors import NeedsPerson

FILE: Final = "seal.json"
"""Of a node's identity: ``Sealed``."""
LARGEST: Final = 4096
"""Bytes of a sealed file: keys of a node have less than 300."""
_MARK: Final = b"edgewise sealed 1\n"
_NONCE: Final = 12


@dataclass(frozen=True, slots=True)
class Vault:
    """Encrypts and opens small files by a key that only this TPM gives out.

    The key is asked of the TPM each time and not kept. Every method raises NeedsPerson when
    the TPM is gone, another one or cleared, and TryLater when it is busy.
    """

    place: str
    sealed: Sealed
    open_tpm: OpenTpm
    draw: Callable[[int], bytes] = field(repr=False)
    """Unpredictable bytes."""

    def wrap(self, name: str, plain: bytes) -> bytes:
        """The content of a file called ``name``."""
        nonce = self.draw(_NONCE)
        return _MARK + nonce + self._cipher().encrypt(nonce, plain, name.encode())

    def unwrap(self, name: str, data: bytes) -> bytes:
        """What ``wrap`` was given. Raises NeedsPerson for a damaged file."""
        head = len(_MARK) + _NONCE
        if not data.startswith(_MARK) or not head <= len(data) <= LARGEST:
            raise _damaged(name)
        try:
            return self._cipher().decrypt(data[len(_MARK) : head], data[head:], name.encode())
        except InvalidTag as error:
            raise _damaged(name) from error

    def _cipher(self) -> AESGCM:
        with self.open_tpm(self.place) as tpm:
            key = tpm.unseal(self.sealed, self._session)
        if len(key) != 32:
            raise _damaged(FILE)
        return AESGCM(key)

    def _session(self, key: Public) -> ParameterSession:
        return SaltedSession(key, self.draw)


def make(place: str, open_tpm: OpenTpm, draw: Callable[[int], bytes]) -> Vault:
    """A new key in the TPM."""
    with open_tpm(place) as tpm:
        sealed = tpm.seal(draw(32), lambda key: SaltedSession(key, draw))
    return Vault(place, sealed, open_tpm, draw)


def _damaged(name: str) -> NeedsPerson:
    return NeedsPerson(
        f"{name} is damaged: it is not what was sealed here",
        hint="put it back; else `edgewise node forget NAME` at the hub, then "
        "`edgewise agent join - --tpm --anew` here",
    )
