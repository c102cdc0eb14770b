"""Whatever is sent, the API answers as it is described and never with a fault of ours."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from edgewise.net.api.everything import description
from edgewise.protocol.channel import Channel
from edgewise.runtime.clock import SystemClock
from edgewise.testing.loopback_hub import OPERATOR, LoopbackHub

pytestmark = pytest.mark.slow
EXAMPLES = 40
CALLERS = {
    "node": "spiffe://eu.acme/node/kiosk-1",
    "relay": "spiffe://eu.acme/relay/frankfurt",
    "anyone": "",
}


class Running:
    """A hub on a thread of its own: schemathesis calls from ordinary functions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.hub = self._do(self._start())

    def _do(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _start(self) -> LoopbackHub:
        clock = SystemClock()
        hub = await LoopbackHub.start(self._folder, clock)
        for name in ("kiosk-1", "kiosk-2"):
            hub.people.add(name, "node", clock)
        hub.people.add("frankfurt", "relay", clock)
        await hub.board.announce(Channel("kiosks", 1, "ab" * 32))
        self._tasks = [asyncio.create_task(part.run()) for part in hub.waiters]
        self._tasks.append(asyncio.create_task(hub.rollouts.run()))
        return hub

    def close(self) -> None:
        for task in self._tasks:
            self._loop.call_soon_threadsafe(task.cancel)
        self._do(self.hub.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("hub"))
    yield running
    running.close()


schema = schemathesis.openapi.from_dict(description())


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described_and_none_is_a_fault(
    case: schemathesis.Case, running: Running
) -> None:
    allowed = case.operation.definition.raw["x-callers"]
    peer = next((CALLERS[role] for role in allowed if role in CALLERS), OPERATOR)
    response = case.call(
        base_url=f"http://127.0.0.1:{running.hub.server.port}", headers={"x-peer": peer}, timeout=20
    )
    assert response.status_code < 500 or response.status_code == 503, response.text
    case.validate_response(
        response,
        excluded_checks=[
            schemathesis.checks.not_a_server_error,  # asserted above: 503 says when to come again
            schemathesis.checks.ignored_auth,
            schemathesis.checks.unsupported_method,
            schemathesis.checks.negative_data_rejection,
            schemathesis.checks.positive_data_acceptance,
        ],
    )


def test_the_hub_had_no_fault_in_its_log(running: Running) -> None:
    assert [line for line in running.hub.log.lines if line[0] == "unexpected error"] == []
