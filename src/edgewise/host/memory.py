"""Small files that must survive a power cut: what the node half was doing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from edgewise.model.errors import NeedsPerson
from edgewise.protocol.codec import encode
from edgewise.rollout.node_ports import Kept, NodeMemory
from edgewise.runtime.durable import disk_error, write_durably

FILE: Final = "node.json"


class NodeFile:
    """``node.json`` in the state directory: one file, replaced whole and synced.

    One file and not a database, because one write must hold the decision and the receipts
    that go with it, and because a person can read it.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / FILE

    def load(self) -> Kept | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise NeedsPerson(
                f"{self._path} cannot be read: {error}",
                hint="move it away: the agent then learns from the hub what to run",
            ) from error

    def save(self, kept: Kept) -> None:
        try:
            write_durably(self._path, encode(kept), mode=0o600)
        except OSError as error:
            raise disk_error(error, self._path) from error


def _meets_its_port(file: NodeFile) -> NodeMemory:
    return file
