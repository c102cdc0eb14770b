"""From git to a call between two nodes: a hub, a relay, agents, and their egress gateways.

The far end is a server with an SVID of one node; the caller goes through the gateway of another.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, fleet_on_laptop, free_port

from edgewise.roles.agent_egress import EgressState, read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Peers = list[object]
PROBE = "spiffe://east.demo/app/shops/probe"
TAKE = """
import os, sys
from spiffe import WorkloadApiClient
folder = sys.argv[1]
with WorkloadApiClient(os.environ["SPIFFE_ENDPOINT_SOCKET"]) as client:
    svid = client.fetch_x509_svid(timeout=30)
    bundle = client.fetch_x509_bundles().get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = b"".join(c.public_bytes(Encoding.PEM) for c in svid.cert_chain)
    roots = b"".join(c.public_bytes(Encoding.PEM) for c in bundle.x509_authorities)
    open(f"{folder}/far.pem", "wb").write(key + chain)
    open(f"{folder}/roots.pem", "wb").write(roots)
"""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


def repo(fleet: Fleet, ports: tuple[int, int]) -> dict[str, str]:
    """Everybody who runs this Python may be the probe, and the probe may call itself."""
    files = fleet.files("1.0.0")
    files["edgewise.yaml"] = files["edgewise.yaml"].replace("policies]", "policies, identities]")
    files["fleets/shops.yaml"] += (
        "  identities:\n  - {ref: {name: probe}}\n  egressPolicyRef: {name: out}\n"
    )
    program = os.path.realpath(sys.executable)
    files["identities/probe.yaml"] = (
        "apiVersion: edgewise.dev/v1\nkind: WorkloadIdentity\nmetadata: {name: probe}\nspec:\n"
        "  spiffeID: /app/shops/probe\n"
        f"  selectors: ['unix:uid:{os.getuid()}', 'unix:path:{program}']\n"
    )
    rule = (
        "  - {{host: localhost, ports: [{}], spiffeIDs: ['{}'], identities: [/app/shops/probe],"
        " addresses: [127.0.0.0/8, '::1/128']}}\n"
    )
    files["policies/out.yaml"] = (
        "apiVersion: edgewise.dev/v1\nkind: EgressPolicy\nmetadata: {name: out}\nspec:\n  allow:\n"
        + "".join(rule.format(port, PROBE) for port in ports)
    )
    return files


async def far_end(port: int, folder: Path, asks: ssl.VerifyMode) -> tuple[asyncio.Server, Peers]:
    """A server with the probe's SVID, and whom it saw."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "far.pem")
    tls.load_verify_locations(folder / "roots.pem")
    tls.verify_mode = asks
    seen: Peers = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        seen.append((writer.get_extra_info("peercert") or {}).get("subjectAltName"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port, ssl=tls), seen


def call(gateway: int, port: int) -> tuple[int, bytes]:
    """By urllib, as an app that knows of nothing but HTTP_PROXY."""
    proxy = urllib.request.ProxyHandler({"http": f"http://127.0.0.1:{gateway}"})
    opener = urllib.request.build_opener(proxy)
    try:
        with opener.open(f"http://localhost:{port}/", timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


async def test_a_workload_calls_another_with_identities_from_git(
    fleet: Fleet, tmp_path: Path
) -> None:
    await fleet.publish("1.0.0")
    ports = (free_port(), free_port())
    ended = await fleet.ended(await fleet.change(repo(fleet, ports), "egress"))
    assert ended.state == "Succeeded"
    socket = f"unix://{fleet.state('node-2')}/run/workload.sock"
    taking = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TAKE, str(tmp_path),
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": socket},
    )  # fmt: skip
    assert await taking.wait() == 0

    def listening() -> EgressState | None:
        return read_state(fleet.state("node-1"))

    gateway = (await fleet.until(listening, "the gateway listens")).port
    strict, seen = await far_end(ports[0], tmp_path, ssl.CERT_REQUIRED)
    lax, _ = await far_end(ports[1], tmp_path, ssl.CERT_NONE)
    status, body = await asyncio.to_thread(call, gateway, ports[0])
    assert (status, body) == (200, b"hello"), body
    assert seen == [(("URI", PROBE),)]
    status, body = await asyncio.to_thread(call, gateway, ports[1])
    assert (status, json.loads(body)["reason"]) == (502, "not-mtls")
    status, body = await asyncio.to_thread(call, gateway, 1)
    assert (status, json.loads(body)["reason"]) == (403, "port")
    strict.close()
    lax.close()
