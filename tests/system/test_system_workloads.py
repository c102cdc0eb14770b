"""Identities from git to a workload: a real hub, relay and agents, and the ``spiffe`` package."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, fleet_on_laptop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

HELLO = "spiffe://east.demo/app/shops/hello"
PROBE = "spiffe://east.demo/app/shops/probe"
CLIENT = """
import json, os, sys
from spiffe import WorkloadApiClient
with WorkloadApiClient(os.environ["SPIFFE_ENDPOINT_SOCKET"]) as client:
    svid = client.fetch_x509_svid(timeout=30)
    token = client.fetch_jwt_svid(audience={"ledger"}, timeout=30)
    checked = client.validate_jwt_svid(token.token, "ledger", timeout=30)
    print(json.dumps({
        "id": str(svid.spiffe_id),
        "serial": str(svid.leaf.serial_number),
        "token": str(token.spiffe_id),
        "validated": str(checked.spiffe_id),
        "domains": sorted(str(b.trust_domain) for b in client.fetch_x509_bundles().bundles),
        "pid": os.getpid(),
    }))
"""


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


async def ask(fleet: Fleet, name: str) -> dict[str, object]:
    socket = f"unix://{fleet.state(name)}/run/workload.sock"
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT,
        env={**os.environ, "SPIFFE_ENDPOINT_SOCKET": socket},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await client.communicate()
    assert client.returncode == 0, err.decode()[-2000:]
    found: dict[str, object] = json.loads(out)
    return found


async def agent(fleet: Fleet, name: str, *words: str) -> dict[str, object]:
    said = await fleet.laptop.run(
        sys.executable, "-m", "edgewise", "--output", "json", "agent", *words,
        "--state", str(fleet.state(name)),
    )  # fmt: skip
    found: dict[str, object] = json.loads(said)
    return found


async def test_a_commit_gives_workloads_their_identities(fleet: Fleet) -> None:
    files = fleet.files("1.0.0")
    files["edgewise.yaml"] = files["edgewise.yaml"].replace("policies]", "policies, identities]")
    files["apps/hello.yaml"] += "  identity: {}\n"
    files["fleets/shops.yaml"] += "  identities:\n  - {ref: {name: probe}}\n"
    program = os.path.realpath(sys.executable)
    files["identities/probe.yaml"] = (
        "apiVersion: edgewise.dev/v1\nkind: WorkloadIdentity\nmetadata: {name: probe}\nspec:\n"
        "  spiffeID: /app/shops/probe\n  ttl: 1m\n"
        f"  selectors: ['unix:uid:{os.getuid()}', 'unix:path:{program}']\n"
    )
    await fleet.publish("1.0.0")
    ended = await fleet.ended(await fleet.change(files, "identities"))
    assert ended.state == "Succeeded"
    found = await ask(fleet, "node-1")
    assert found["id"] == found["token"] == found["validated"] == PROBE
    assert found["domains"] == ["east.demo", "hub.demo"]

    # The app is another one, and knows where to ask.
    pid = fleet.app_pid("node-1")
    explained = await agent(fleet, "node-1", "explain", str(pid))
    assert explained["identities"][0] == HELLO  # type: ignore[index]
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert f"SPIFFE_ENDPOINT_SOCKET=unix://{fleet.state('node-1')}".encode() in environment

    served = await agent(fleet, "node-1", "svid")
    assert {one["spiffe_id"] for one in served["identities"]} == {HELLO, PROBE}  # type: ignore[attr-defined]
    assert any(seen["pid"] == found["pid"] for seen in served["callers"])  # type: ignore[attr-defined]

    # The next SVID comes while the hub is cut off, and after the agent was killed.
    await fleet.kill("hub")

    async def rotated(name: str, old: object) -> bool:
        return (await ask(fleet, name))["serial"] != old

    for _ in range(60):
        if await rotated("node-1", found["serial"]):
            break
        await asyncio.sleep(1)
    else:
        raise AssertionError("no rotation within a minute")
    await fleet.kill("node-1")
    await fleet.start_agent("node-1")
    again = await ask(fleet, "node-1")
    assert again["id"] == PROBE


async def test_a_process_without_identity_is_told_why(fleet: Fleet) -> None:
    await fleet.roll_out("1.0.0")
    explained = await agent(fleet, "node-1", "explain", str(os.getpid()))
    assert explained["identities"] == []
    served = await agent(fleet, "node-1", "svid")
    assert served["identities"] == []
