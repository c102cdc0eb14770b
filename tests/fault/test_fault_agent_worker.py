"""The worker as a process: one for an update, gone afterwards, replaced when it dies."""

import os
import sys
from pathlib import Path

import pytest

from edgewise.host.processes import Conversation
from edgewise.host.worker import WorkerProcess
from edgewise.model.errors import EdgewiseError, TryLater

ECHO = (
    "import os, sys\n"
    "for line in sys.stdin:\n"
    "    if line == 'die\\n': os._exit(1)\n"
    "    print(os.getpid(), line, end='', flush=True)\n"
    "    if line == 'leave\\n': break\n"
)


class Asked:
    def __init__(self) -> None:
        self.worker = WorkerProcess(Path("/nowhere"))
        self.worker._command = (sys.executable, "-c", ECHO)

    async def __call__(self, question: str) -> tuple[int, str]:
        said = bytearray()

        def take(data: bytes) -> bool:
            said.extend(data)
            return said.endswith(b"\n")

        await self.worker._ask(f"{question}\n".encode(), take)
        pid, _, text = bytes(said).decode().partition(" ")
        return int(pid), text.strip()


@pytest.fixture
async def ask():
    asked = Asked()
    yield asked
    asked.worker.close()


async def test_the_tasks_of_an_update_share_one_worker(ask) -> None:
    first = await ask("verify")
    second = await ask("fetch")
    assert (first[1], second[1]) == ("verify", "fetch")
    assert first[0] == second[0]


async def test_a_worker_that_has_just_left_is_replaced(ask) -> None:
    first = await ask("leave")
    second = await ask("sign")
    assert second[1] == "sign"
    assert first[0] != second[0]


async def test_a_worker_that_dies_over_a_task_is_an_error_and_not_a_loop(ask) -> None:
    await ask("verify")
    with pytest.raises(EOFError):
        await ask("die")
    assert (await ask("fetch"))[1] == "fetch"


async def test_a_question_larger_than_a_pipe_arrives_whole(ask) -> None:
    text = "x" * 3_000_000
    assert (await ask(text))[1] == text


async def test_ending_a_worker_leaves_no_process(ask) -> None:
    pid, _ = await ask("verify")
    ask.worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_real_worker_without_a_state_says_what_is_wrong(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path)
    with pytest.raises(EdgewiseError) as raised:
        await worker.open_sealed("a" * 64)
    assert not isinstance(raised.value, TryLater)
    with pytest.raises(EdgewiseError):
        await worker.open_sealed("b" * 64)
    worker.close()


async def test_a_command_that_does_not_exist_is_tried_later(tmp_path: Path) -> None:
    worker = WorkerProcess(tmp_path)
    worker._command = ("/does/not/exist",)
    with pytest.raises(TryLater, match="cannot be started"):
        await worker.open_sealed("a" * 64)
    with pytest.raises(OSError):
        Conversation(("/does/not/exist",))
