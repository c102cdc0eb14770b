"""What identities cost: issuing certificates, and handshakes with both ends proven.

``make bench-identity``. The server half runs under uvloop in a process of its own; times are
CPU seconds of each process, so that neighbours on the machine matter less.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

import egress
import identity_agent
import identity_issue
import workload
from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts, key_pem, make_key
from edgewise.identity.names import Organisation
from edgewise.net.client import Client, Endpoint
from edgewise.net.tls import CredentialFiles, client_context, server_context, small_tls_buffers
from edgewise.runtime.clock import SystemClock
from result import write

ACME = Organisation("acme")
CERTIFICATES, HANDSHAKES, REQUESTS = 3000, 1000, 10_000


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """200 to everything; the body tells the server's CPU seconds."""
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            body = json.dumps(time.process_time()).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def serve(directory: str) -> None:
    """The far process: prints its port, ends with its standard input."""
    tls = server_context(CredentialFiles(Path(directory)))
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def handshakes(url: str, own: CredentialFiles) -> dict[str, float]:
    """CPU microseconds on both sides."""
    endpoint = Endpoint((url,), client_context(own), lambda peer: peer == ACME.hub)

    async def far_cpu() -> float:
        async with Client(endpoint) as client:
            return float((await client.request("GET", "/")).body)

    found = {}
    began, far = time.process_time(), await far_cpu()
    for _ in range(HANDSHAKES):
        async with Client(endpoint) as client:
            await client.request("GET", "/")
    found["handshake_client_us"] = (time.process_time() - began) / HANDSHAKES * 1e6
    found["handshake_server_us"] = (await far_cpu() - far) / HANDSHAKES * 1e6
    async with Client(endpoint) as client:
        began, far = time.process_time(), await far_cpu()
        for _ in range(REQUESTS):
            await client.request("GET", "/")
        found["request_client_us"] = (time.process_time() - began) / REQUESTS * 1e6
        found["request_server_us"] = (await far_cpu() - far) / REQUESTS * 1e6
    return found


def main() -> None:
    """Measure, print, keep."""
    small_tls_buffers()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        authority = Authority.open_or_create(directory / "pki", "acme", SystemClock())
        key = make_key()
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        csr = request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
        node = ACME.node("eu", "kiosk-1")
        issued = authority.issue(node, csr)
        began = time.process_time()
        for _ in range(CERTIFICATES):
            authority.issue(node, csr)
        figures = {"certificates_per_cpu_s": CERTIFICATES / (time.process_time() - began)}
        hub, own = CredentialFiles(directory / "hub"), CredentialFiles(directory / "own")
        authority.issue_hub(hub, Hosts.of(["127.0.0.1"]))
        own.trust(authority.roots)
        own.replace(key_pem=key_pem(key), chain=issued.chain)
        command = [sys.executable, __file__, "--serve", str(hub.directory)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as far:
            assert far.stdout is not None
            port = far.stdout.readline().strip()
            figures |= asyncio.run(handshakes(f"https://127.0.0.1:{port}", own))
            far.communicate("")
        figures |= identity_issue.figures(directory)
    figures |= workload.measure()
    figures |= {k: v for k, v in egress.figures().items() if k.startswith(("gateway_", "nginx_"))}
    figures |= identity_agent.figures()
    write("identity", figures, "make bench-identity")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        import uvloop

        uvloop.run(serve(sys.argv[2]))
    else:
        main()
