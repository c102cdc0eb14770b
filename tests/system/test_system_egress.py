"""A real agent whose app calls out through its gateway, as its release says."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from test_system_agent import Node, node, until

from edgewise.protocol.egress import EgressRule, EgressRules
from edgewise.roles.agent_egress import read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
assert node, "the fixture"

CALL = """#!/bin/sh
exec {python} -u -c '
import json, sys, time, urllib.error, urllib.request
for url in ({urls}):
    try: answer = urllib.request.urlopen(url, timeout=20)
    except urllib.error.HTTPError as error: answer = error
    print(json.dumps([answer.status, answer.read().decode()]))
print("done")
time.sleep(1000)
'
"""


async def far_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    writer.close()


async def test_an_app_calls_out_as_its_policy_says(node: Node) -> None:
    server = await asyncio.start_server(far_end, "127.0.0.2", 0)
    port = server.sockets[0].getsockname()[1]
    urls = f'"http://127.0.0.2:{port}/", "http://127.0.0.3:{port}/", "http://127.0.0.4:{port}/"'
    app = await node.app("till", CALL.format(python=sys.executable, urls=urls))
    rules = EgressRules(
        "out",
        allow=(
            EgressRule("127.0.0.2", (port,), mtls=False),
            EgressRule("127.0.0.3", (port,), mtls=False, apps=("kiosk",)),
        ),
    )
    release = await node.hub.publish(app, rules)
    assert await node.outcome(release) == "Succeeded"
    log = node.state / "apps/till/log/app.log"
    await until(lambda: "done" in log.read_text(), log.read_text)
    let_out, not_this_app, nowhere = [json.loads(x) for x in log.read_text().splitlines()[:3]]
    assert let_out == [200, "hello"]
    assert json.loads(not_this_app[1])["reason"] == "caller"
    assert "app till may not call" in json.loads(not_this_app[1])["detail"]
    assert json.loads(nowhere[1])["reason"] == "host"

    def counted() -> dict[str, str]:
        state = read_state(node.state)
        assert state is not None
        return {c.host: c.reason for c in state.counts if c.app == "till"}

    await until(lambda: len(counted()) == 3)
    assert counted() == {"127.0.0.2": "", "127.0.0.3": "caller", "127.0.0.4": "host"}
    server.close()
