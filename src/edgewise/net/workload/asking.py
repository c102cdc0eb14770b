"""One question to a running agent over its workload socket, for the command line."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from h2 import events, exceptions
from h2.config import H2Configuration
from h2.connection import H2Connection

from edgewise.model.errors import Forbidden, NeedsPerson, NotFound, TryLater

ANSWER: Final = 4 << 20
"""Bytes of an answer: every identity and caller of a node is far below."""
WAIT_S: Final = 10.0

T = TypeVar("T")


def ask(path: Path, target: str, kind: type[T]) -> T:
    """The agent's answer. Raises NeedsPerson when none runs, Forbidden, NotFound."""
    status, body = _exchange(path, target)
    if status != "200":
        try:
            said = msgspec.json.decode(body, type=dict[str, str])
        except msgspec.DecodeError as error:
            raise TryLater(f"the agent answered {status}") from error
        refused = NotFound if status == "404" else Forbidden
        raise refused(said.get("detail", status), hint=said.get("hint", ""))
    return msgspec.json.decode(body, type=kind)


def _exchange(path: Path, target: str) -> tuple[str, bytes]:
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(WAIT_S)
            line.connect(str(path))
            return _get(line, target)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NeedsPerson(
            f"no agent serves {path}",
            hint="is it running? name its directory with --state, or its --workload-socket",
        ) from error
    except (OSError, exceptions.H2Error) as error:
        raise TryLater(f"the agent at {path} did not answer: {error}") from error


def _get(line: socket.socket, target: str) -> tuple[str, bytes]:
    h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
    h2.initiate_connection()
    head = [(":method", "GET"), (":scheme", "http"), (":path", target), (":authority", "agent")]
    h2.send_headers(1, head, end_stream=True)
    line.sendall(h2.data_to_send())
    status, body, ended = "", bytearray(), False
    while not ended:
        data = line.recv(1 << 16)
        if not data or len(body) > ANSWER:
            raise ConnectionError("it hung up")
        for event in h2.receive_data(data):
            match event:
                case events.ResponseReceived():
                    found = {str(name): str(value) for name, value in event.headers or ()}
                    status = found.get(":status", "")
                case events.DataReceived():
                    body += event.data or b""
                    h2.acknowledge_received_data(event.flow_controlled_length or 0, 1)
                case events.StreamEnded() | events.StreamReset():
                    ended = True
        line.sendall(h2.data_to_send())
    return status, bytes(body)
