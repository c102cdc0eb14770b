"""Gates with real processes and a real local HTTP server."""

import sys
from datetime import timedelta

import pytest
from aiohttp import web

from edgewise.model.rules import Gate
from edgewise.net.gates import ExecAndHttpGates

SECOND = timedelta(seconds=1)


def command(code: str, timeout: timedelta = 10 * SECOND) -> Gate:
    return Gate("g", "exec", {"command": f"{sys.executable} -c '{code}'"}, timeout=timeout)


@pytest.mark.parametrize(
    ("code", "answer"),
    [("", "Pass"), ("raise SystemExit(1)", "Fail"), ("raise SystemExit(3)", "Inconclusive")],
)
async def test_the_exit_status_of_a_command_is_its_answer(code, answer):
    assert (await ExecAndHttpGates().ask(command(code)))[0] == answer


async def test_a_command_that_hangs_or_cannot_start_is_inconclusive():
    gates = ExecAndHttpGates()
    hangs = command("import time; time.sleep(60)", timeout=timedelta(milliseconds=300))
    assert await gates.ask(hangs) == ("Inconclusive", "no answer within 300ms")
    for bad in ("/no/such/program", "", "unclosed '"):
        answer, why = await gates.ask(Gate("g", "exec", {"command": bad}))
        assert answer == "Inconclusive"
        assert why


async def test_a_talkative_command_is_cut_short():
    answer, why = await ExecAndHttpGates().ask(command('print("x" * 3000000); raise SystemExit(1)'))
    assert answer == "Fail"
    assert len(why) < 600


@pytest.fixture
async def server():
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]), text="17 errors per minute")

    app = web.Application()
    app.router.add_get("/{status}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_the_expected_status_passes_and_another_fails(server):
    gates = ExecAndHttpGates()
    assert (await gates.ask(Gate("g", "http", {"url": f"{server}/200"})))[0] == "Pass"
    expect = {"url": f"{server}/204", "expectStatus": "204"}
    assert (await gates.ask(Gate("g", "http", expect)))[0] == "Pass"
    answer, why = await gates.ask(Gate("g", "http", {"url": f"{server}/503"}))
    assert (answer, "17 errors" in why) == ("Fail", True)


async def test_no_answer_is_inconclusive_and_says_who_did_not():
    for url in ("http://127.0.0.1:1/x", "nonsense", ""):
        answer, why = await ExecAndHttpGates().ask(Gate("g", "http", {"url": url}))
        assert (answer, why.startswith(url)) == ("Inconclusive", True)


async def test_a_gate_that_needs_telemetry_says_so():
    answer, why = await ExecAndHttpGates().ask(Gate("g", "metric", {}))
    assert (answer, "telemetry" in why) == ("Inconclusive", True)
