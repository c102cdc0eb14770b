"""Where the passphrase of the root's key comes from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from edgewise.model.errors import NeedsPerson

CREDENTIAL: Final = "edgewise-root-passphrase"
"""Name of the systemd credential (systemd.exec(5), LoadCredentialEncrypted=)."""


def passphrase_from(file: Path | None, asked: bytes | None = None) -> Callable[[], bytes | None]:
    """A file, else systemd's credential, else what a person typed, else none.

    Files are read each time they are needed: the passphrase does not stay in memory.
    """

    def find() -> bytes | None:
        if file is not None:
            return read_passphrase(file)
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        if directory and (credential := Path(directory) / CREDENTIAL).exists():
            return _read(credential)
        return asked

    return find


def read_passphrase(file: Path) -> bytes:
    """A passphrase file's first line. Raises NeedsPerson when it is missing or others may read
    it."""
    try:
        mode = file.stat().st_mode & 0o777
    except OSError as error:
        raise NeedsPerson(f"cannot read the passphrase {file}: {error.strerror}") from error
    if mode & 0o077:
        raise NeedsPerson(
            f"the passphrase {file} can be read by others (mode {mode:o})", hint=f"chmod 600 {file}"
        )
    return _read(file)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise NeedsPerson(f"cannot read the passphrase {file}: {error.strerror}") from error
