"""Keys that sign JWT-SVIDs, as files: ``<region>.<seconds>.key`` (PKCS#8, mode 0600).

The seconds (since 1970) say when a key was made: they survive a backup, unlike file times.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edgewise.backends.pki.certificates import Key, key_pem, make_key, read_key
from edgewise.identity import jwt_svid
from edgewise.identity.jwt_keys import JwtKey, lacks_next, outlived
from edgewise.identity.ports import JwtKeyring
from edgewise.identity.signatures import sign_bytes, spki_of
from edgewise.model.errors import NeedsPerson
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import write_private

_NAME: Final = re.compile(r"([a-z0-9-]+)\.(\d{1,12})\.key")


@dataclass(slots=True)
class JwtKeyFiles:
    """A hub's for each region, or a relay's for its own."""

    directory: Path
    clock: Clock
    _held: dict[str, dict[str, tuple[JwtKey, Key]]] = field(default_factory=dict, init=False)

    def keys(self, region: str) -> tuple[JwtKey, ...]:
        """See ``JwtKeyring``."""
        held = self._read(region)
        if lacks_next([key for key, _ in held.values()], self.clock.now()):
            self._make(region, held)
        return tuple(key for key, _ in held.values())

    def sign(self, region: str, kid: str, data: bytes) -> bytes:
        """See ``JwtKeyring``."""
        found = self._read(region).get(kid)
        if found is None:
            raise NeedsPerson(f"there is no JWT key {kid} in {self.directory}")
        return jwt_svid.raw_signature(sign_bytes(found[1], data))

    def drop(self, region: str, published: Collection[str]) -> None:
        """Remove the keys that nobody needs any more."""
        held = self._read(region)
        for key in outlived([key for key, _ in held.values()], published, self.clock.now()):
            self._path(region, key.made).unlink(missing_ok=True)
            del held[key.kid]

    def _read(self, region: str) -> dict[str, tuple[JwtKey, Key]]:
        if region not in self._held:
            found: dict[str, tuple[JwtKey, Key]] = {}
            for path in sorted(self.directory.glob(f"{region}.*.key")):
                match = _NAME.fullmatch(path.name)
                if match is None or match[1] != region:
                    continue
                private = read_key(path.read_bytes(), str(path))
                _add(found, private, datetime.fromtimestamp(int(match[2]), UTC))
            self._held[region] = found
        return self._held[region]

    def _make(self, region: str, held: dict[str, tuple[JwtKey, Key]]) -> None:
        made = self.clock.now().replace(microsecond=0)
        private = make_key()
        # On disk before anybody hears of it.
        write_private(self._path(region, made), key_pem(private))
        _add(held, private, made)

    def _path(self, region: str, made: datetime) -> Path:
        return self.directory / f"{region}.{int(made.timestamp())}.key"


def _add(held: dict[str, tuple[JwtKey, Key]], private: Key, made: datetime) -> None:
    spki = spki_of(private)
    kid = jwt_svid.key_id(spki)
    held[kid] = (JwtKey(kid, spki, made), private)


def _meets_its_port(files: JwtKeyFiles) -> JwtKeyring:
    return files
