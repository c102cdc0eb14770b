"""Secrets as files: below their mount path, on tmpfs where the path lies on one.

Plaintext is written there and nowhere else. What is remembered on disk is which sealed
object each directory came from, never its content or a digest of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from edgewise.host.files import Place
from edgewise.model.errors import NeedsPerson
from edgewise.protocol.content import SealedSecret
from edgewise.protocol.installed import InstalledSecret
from edgewise.runtime.durable import disk_error, write_durably


class Placed(msgspec.Struct, frozen=True):
    """A secret that we wrote."""

    sealed: str
    part: str
    keys: tuple[str, ...]


class SecretFiles:
    """The secrets of this node."""

    def __init__(self, state: Path, place: Place) -> None:
        self._record = state / "secrets.json"
        self._place = place
        self._placed = self._load()

    def _load(self) -> dict[str, Placed]:
        """By mount path."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=dict[str, Placed])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise NeedsPerson(
                f"{self._record} is damaged: {error}",
                hint="remove it, and the files below the secrets' mount paths",
            ) from error

    def _save(self) -> None:
        try:
            write_durably(self._record, msgspec.json.encode(self._placed), mode=0o600)
        except OSError as error:
            raise disk_error(error, self._record) from error

    def missing(self, wanted: Iterable[InstalledSecret]) -> tuple[InstalledSecret, ...]:
        """Those that are not (or not any more, after a boot) in place as they should be."""
        return tuple(w for w in wanted if not self._in_place(w))

    def _in_place(self, wanted: InstalledSecret) -> bool:
        secret = wanted.secret
        placed = self._placed.get(secret.mount_path)
        if placed is None or (placed.sealed, placed.part) != (wanted.sealed, wanted.part):
            return False
        for key in placed.keys:
            found = self._place.read(_file(secret, key))
            if found is None or found[1] != secret.mode:
                return False
        return True

    def write(self, wanted: InstalledSecret, texts: dict[str, str]) -> list[str]:
        """Write every key's file; returns their paths.

        Raises NeedsPerson for a key that is no file name or is missing from the sealed object.
        """
        secret = wanted.secret
        lacking = [key for key in secret.keys if key not in texts]
        if lacking:
            raise NeedsPerson(
                f"secret {secret.name} has no key {lacking[0]!r}",
                hint="add it to the Secret, or take it out of `keys`",
            )
        keys = secret.keys or tuple(sorted(texts))
        old = self._placed.get(secret.mount_path)
        # The claim comes first: what is on disk is always known, so it can be removed.
        claimed = tuple(dict.fromkeys((*keys, *(old.keys if old else ()))))
        self._placed[secret.mount_path] = Placed("", wanted.part, claimed)
        self._save()
        for key in claimed:
            if key in keys:
                data = texts[key].encode()
                self._place.write(_file(secret, key), data, secret.mode, secret.owner)
            else:
                self._place.remove(_file(secret, key))
        self._placed[secret.mount_path] = Placed(wanted.sealed, wanted.part, keys)
        self._save()
        return [_file(secret, key) for key in keys]

    def remove_others(self, wanted: Iterable[InstalledSecret]) -> None:
        """Remove what is not wanted any more."""
        mounts = {w.secret.mount_path for w in wanted}
        for mount in [m for m in self._placed if m not in mounts]:
            for key in self._placed[mount].keys:
                self._place.remove(f"{mount}/{key}")
            del self._placed[mount]
            self._save()


def _file(secret: SealedSecret, key: str) -> str:
    if "/" in key or key in ("", ".", "..") or "\0" in key:
        raise NeedsPerson(
            f"secret {secret.name}: the key {key!r} is no file name", hint="rename the key"
        )
    return f"{secret.mount_path.rstrip('/')}/{key}"
