"""Gates that need no telemetry: a command on the hub, or an HTTP request from it.

``exec``: exit status 0 passes, 1 fails; anything else, a timeout included, is inconclusive.
``http``: the expected status passes, another one fails; no answer is inconclusive.
"""

from __future__ import annotations

import asyncio
import shlex
from typing import Literal

import aiohttp

from edgewise.model.quantity import format_duration
from edgewise.model.rules import Gate
from edgewise.rollout.ports import GateCheck

Answer = tuple[Literal["Pass", "Fail", "Inconclusive"], str]
OUTPUT_KEPT = 500
"""Characters of a command's output or of a page that go into the reason."""


class ExecAndHttpGates:
    """Asks ``exec`` and ``http`` gates; others are inconclusive, with the reason."""

    async def ask(self, gate: Gate) -> Answer:
        """The answer, within the gate's timeout."""
        match gate.kind:
            case "exec":
                return await _ask_command(gate)
            case "http":
                return await _ask_url(gate)
            case _:
                return (
                    "Inconclusive",
                    f"gates of kind {gate.kind} need telemetry, which is not here",
                )


async def _ask_command(gate: Gate) -> Answer:
    command = gate.spec.get("command", "")
    try:
        words = shlex.split(command)
    except ValueError as error:
        return "Inconclusive", f"command {command!r} cannot be read: {error}"
    if not words:
        return "Inconclusive", "the gate has no command"
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        return "Inconclusive", f"cannot start {words[0]}: {error.strerror}"
    try:
        async with asyncio.timeout(gate.timeout.total_seconds()):
            output = await _tail(process)
            status = await process.wait()
    except TimeoutError:
        return "Inconclusive", f"no answer within {format_duration(gate.timeout)}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = f": {output}" if output else ""
    if status == 0:
        return "Pass", output
    return ("Fail" if status == 1 else "Inconclusive"), f"exit status {status}{said}"


async def _tail(process: asyncio.subprocess.Process) -> str:
    """The end of what the command says; however much it is, little is kept."""
    kept = b""
    assert process.stdout is not None
    while chunk := await process.stdout.read(65536):
        kept = (kept + chunk)[-4 * OUTPUT_KEPT :]
    return kept.decode(errors="replace").strip()[-OUTPUT_KEPT:]


async def _ask_url(gate: Gate) -> Answer:
    url, expected = gate.spec.get("url", ""), gate.spec.get("expectStatus", "200")
    timeout = aiohttp.ClientTimeout(total=gate.timeout.total_seconds())
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            body = await response.content.read(4 * OUTPUT_KEPT)
            status = response.status
    except TimeoutError:
        return "Inconclusive", f"{url} did not answer within {format_duration(gate.timeout)}"
    except (aiohttp.ClientError, ValueError, OSError) as error:
        return "Inconclusive", f"{url}: {error}"
    text = body.decode(errors="replace").strip()[:OUTPUT_KEPT]
    if str(status) == expected:
        return "Pass", f"status {status}"
    return "Fail", f"status {status}, expected {expected}: {text}".rstrip(": ")


def _meets_its_port(gates: ExecAndHttpGates) -> GateCheck:
    return gates
