"""Challenges for joining, rejoining and attesting: single-use, short-lived, free until used.

A nonce carries its own expiry and a MAC, so handing out a million of them keeps nothing:
nobody can crowd out an honest node. Only used ones are remembered, until they expire. The
MAC key lives as long as the process: a nonce from before a restart is worth nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

LIFETIME: Final = timedelta(minutes=2)
MOST_USED: Final = 100_000
"""Used nonces kept: rejoins in two minutes; beyond that callers wait."""
_RANDOM = 16
_MAC = 16


@dataclass(slots=True)
class Nonces:
    """``key``: at least 32 unpredictable bytes, drawn at start and kept nowhere."""

    key: bytes
    _used: dict[str, int] = field(default_factory=dict, init=False)

    def make(self, now: datetime, random: bytes) -> str:
        """A new nonce; ``random`` is 16 unpredictable bytes."""
        expires = int((now + LIFETIME).timestamp()).to_bytes(8, "big")
        body = random[:_RANDOM] + expires
        return base64.urlsafe_b64encode(body + self._mac(body)).decode()

    def secret(self, nonce: str, context: bytes) -> bytes:
        """32 bytes that only this process can make again, for one nonce and one context."""
        text = b"activation\0" + nonce.encode() + b"\0" + context
        return hmac.new(self.key, text, hashlib.sha256).digest()

    def use(self, nonce: str, now: datetime) -> str:
        """Use it up. Returns why it is no good, or an empty text."""
        try:
            data = base64.urlsafe_b64decode(nonce)
        except ValueError:
            return "it is malformed"
        body, mac = data[:-_MAC], data[-_MAC:]
        if len(body) != _RANDOM + 8 or not hmac.compare_digest(mac, self._mac(body)):
            return "it was not made by this hub since it started"
        expires = int.from_bytes(body[_RANDOM:], "big")
        moment = now.timestamp()
        if moment >= expires:
            return "it has expired"
        # Keyed by the bytes, not the text: base64 has several texts for the same bytes.
        name = body.hex()
        if name in self._used:
            return "it was used before"
        if len(self._used) >= MOST_USED:
            self._used = {n: e for n, e in self._used.items() if e > moment}
            if len(self._used) >= MOST_USED:
                return "too many nodes rejoin at once"
        self._used[name] = expires
        return ""

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self.key, b"rejoin-nonce\0" + body, hashlib.sha256).digest()[:_MAC]
