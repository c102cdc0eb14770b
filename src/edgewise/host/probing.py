"""HTTP and TCP probes: one connection, one answer, never an exception."""

from __future__ import annotations

import asyncio

from edgewise.heal.ports import Answer
from edgewise.protocol.content import HttpProbe, TcpProbe

_STATUS_LINE = 512


async def tcp(check: TcpProbe, timeout_s: float) -> Answer:
    """Good when the connection is accepted."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(check.host, check.port)
    except TimeoutError:
        return Answer(False, f"{check.host}:{check.port} did not answer within {timeout_s:g} s")
    except OSError as error:
        return Answer(False, f"{check.host}:{check.port}: {error.strerror or error}")
    writer.transport.abort()
    return Answer(True)


async def http(check: HttpProbe, timeout_s: float) -> Answer:
    """Good when the answer's status is 200 to 399; redirects are not followed."""
    where = f"http://{check.host}:{check.port}{check.path}"
    request = (
        f"GET {check.path} HTTP/1.1\r\nhost: {check.host}:{check.port}\r\n"
        "user-agent: edgewise-probe\r\naccept: */*\r\nconnection: close\r\n\r\n"
    )
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(
                check.host, check.port, limit=_STATUS_LINE
            )
            writer.write(request.encode("latin-1", "replace"))
            line = await reader.readline()
    except TimeoutError:
        return Answer(False, f"{where} did not answer within {timeout_s:g} s")
    except OSError as error:
        return Answer(False, f"{where}: {error.strerror or error}")
    except ValueError:
        return Answer(False, f"{where} did not answer in HTTP")
    finally:
        if writer is not None:
            writer.transport.abort()
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return Answer(False, f"{where} did not answer in HTTP")
    status = int(words[1])
    return Answer(200 <= status < 400, "" if 200 <= status < 400 else f"{where}: status {status}")
