"""sd_notify(3) for apps: who sent a message is what the kernel says, not the message.

The socket is an abstract one with a name that stays: after the agent died, sends fail
harmlessly until the next agent has bound it again.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edgewise.heal.ports import Beat

_BYTES: Final = 4096
_CREDENTIALS: Final = struct.Struct("3i")
_STATUS: Final = 300


class NotifySocket:
    """What the apps of one agent tell it."""

    def __init__(self, state: Path, app_of: Callable[[int], str | None]) -> None:
        label = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:16]
        self.address = f"@edgewise-notify-{label}"
        self.beats: dict[str, Beat] = {}
        self._app_of = app_of
        self._socket: socket.socket | None = None

    def open(self) -> socket.socket:
        """Bind. Raises OSError when another agent has the same state directory."""
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            bound.bind("\0" + self.address[1:])
        except OSError:
            bound.close()
            raise
        self._socket = bound
        return bound

    def close(self) -> None:
        """Apps that notify after this get an error, which sd_notify ignores."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def receive(self, now: float) -> str | None:
        """Take one message in; returns the app it came from. None: from nobody of ours."""
        if self._socket is None:
            return None
        try:
            data, ancillary, _, _ = self._socket.recvmsg(
                _BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
            )
        except BlockingIOError:
            return None
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                name = self._app_of(_CREDENTIALS.unpack(value[: _CREDENTIALS.size])[0])
                if name is not None:
                    self._take(self.beats.setdefault(name, Beat()), data, now)
                return name
        return None

    def _take(self, beat: Beat, data: bytes, now: float) -> None:
        for line in data.decode(errors="replace").splitlines():
            key, _, value = line.partition("=")
            match key:
                case "READY":
                    beat.ready = value == "1"
                case "WATCHDOG" if value == "1":
                    beat.last = now
                case "WATCHDOG_USEC" if value.isdecimal():
                    beat.watchdog_s, beat.last = int(value) / 1e6, now
                case "STATUS":
                    beat.status = value[:_STATUS]
                case _:
                    pass  # sd_notify(3) knows more words; they mean nothing here


def tell_parent(message: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send the agent's own READY=1 or WATCHDOG=1 to its service manager, if there is one."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        try:
            line.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
        except OSError:
            return False
    return True
