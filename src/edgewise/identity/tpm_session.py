"""A salted HMAC session with a TPM: what travels to the chip and back is encrypted and checked.

TCG "Trusted Platform Module Library", part 1, revision 1.59: 19.6 (HMAC sessions), 21.2 and
21.3 (parameter encryption with CFB), C.6.1 (the salt by a P-256 key). The salt can be opened
by the TPM alone that holds the key, so whoever listens on the bus learns nothing, and whoever
changes something there is noticed. The authorisation of the object itself is empty.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from edgewise.identity import tpm_keys
from edgewise.identity.tpm_structures import (
    AES,
    CFB,
    ENCRYPTED_IN,
    ENCRYPTED_OUT,
    SHA256,
    Public,
    Reader,
    sized,
)
from edgewise.model.errors import Untrusted

_NONCE: Final = 32


class SaltedSession:
    """One session for one command (``identity.ports.ParameterSession``).

    ``draw``: unpredictable bytes. Raises Untrusted for a key that is no P-256 key.
    """

    def __init__(self, key: Public, draw: Callable[[int], bytes]) -> None:
        point = tpm_keys.key_of(key)
        if not isinstance(point, ec.EllipticCurvePublicKey):
            raise Untrusted("a session is salted with a P-256 key")
        self._salt, ephemeral = tpm_keys.agreed(point, draw(tpm_keys.SEED), b"SECRET")
        self._first, self._ours = draw(_NONCE), draw(_NONCE)
        self._theirs = self._key = b""
        self.start = sized(self._first) + sized(ephemeral)
        self.start += struct.pack(">BHHHH", 0, AES, 128, CFB, SHA256)

    def begun(self, nonce: bytes) -> None:
        """The TPM's answer to ``start``: its nonce, which makes the session's key."""
        self._theirs = nonce
        self._key = tpm_keys.kdfa(self._salt, b"ATH", nonce, self._first, 256)

    def outgoing(self, code: int, name: bytes, parameters: bytes, what: int) -> tuple[bytes, bytes]:
        """The authorisation (TPMS_AUTH_COMMAND without its handle) and the parameters.

        ``name``: of the one object that is authorised. ``what``: ENCRYPTED_IN, ENCRYPTED_OUT.
        """
        if what & ENCRYPTED_IN:
            size = 2 + int.from_bytes(parameters[:2], "big")
            hidden = self._cfb(parameters[2:size], self._ours, self._theirs, opens=False)
            parameters = parameters[:2] + hidden + parameters[size:]
        said = hashlib.sha256(struct.pack(">I", code) + name + parameters).digest()
        proof = self._hmac(said, self._ours, self._theirs, what)
        return sized(self._ours) + bytes([what]) + sized(proof), parameters

    def incoming(self, code: int, parameters: bytes, area: bytes, what: int) -> bytes:
        """The answer's parameters, decrypted. Raises Untrusted when the TPM did not make them."""
        reader = Reader(area, "a TPM's authorisation")
        theirs, attributes, proof = reader.sized(), reader.number(1), reader.sized()
        reader.done()
        said = hashlib.sha256(struct.pack(">II", 0, code) + parameters).digest()
        if not hmac.compare_digest(proof, self._hmac(said, theirs, self._ours, attributes)):
            raise Untrusted(
                "an answer was changed on its way from the TPM",
                hint="is something between the processor and the chip?",
            )
        if not what & ENCRYPTED_OUT:
            return parameters
        if not attributes & ENCRYPTED_OUT:
            raise Untrusted("the TPM's answer is not encrypted")
        size = 2 + int.from_bytes(parameters[:2], "big")
        shown = self._cfb(parameters[2:size], theirs, self._ours, opens=True)
        return parameters[:2] + shown + parameters[size:]

    def _hmac(self, said: bytes, newer: bytes, older: bytes, attributes: int) -> bytes:
        text = said + newer + older + bytes([attributes])
        return hmac.new(self._key, text, hashlib.sha256).digest()

    def _cfb(self, data: bytes, newer: bytes, older: bytes, *, opens: bool) -> bytes:
        made = tpm_keys.kdfa(self._key, b"CFB", newer, older, 256)
        return tpm_keys.aes_cfb(made[:16], made[16:], data, opens=opens)
