"""What every memory of commits must do; the fake and SQLite run the same tests."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.source import KEPT, SqliteCommits
from edgewise.protocol.api import SourceProblem
from edgewise.sync.ports import CommitSeen, CompileMemory
from edgewise.testing.commits import MemoryCommits


@pytest.fixture(params=["memory", "sqlite"])
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CompileMemory]:
    if request.param == "memory":
        yield MemoryCommits()
        return
    database = Database.open(tmp_path / "hub.db")
    yield SqliteCommits(database)
    database.close()


def seen(number: int, *problems: SourceProblem, held: str = "") -> CommitSeen:
    return CommitSeen(
        f"main@sha1:{number:040x}"[:51],
        "ann",
        "change",
        datetime(2026, 1, 1, tzinfo=UTC),
        compiled=not problems,
        problems=problems,
        releases={} if problems else {"pos": "a" * 64},
        held=held,
    )


PROBLEM = SourceProblem("apps/a.yaml", 3, 1, "unknown field 'x'", "did you mean 'y'?")


async def test_nothing_is_remembered_at_first(memory: CompileMemory) -> None:
    assert await memory.newest() is None
    assert await memory.last_good() is None
    assert await memory.recall("abcd") is None


async def test_a_commit_comes_back_whole_by_its_id_and_by_a_prefix(memory: CompileMemory) -> None:
    commit = seen(1 << 156, PROBLEM)
    await memory.remember(commit)
    assert await memory.recall(commit.commit) == commit
    assert await memory.recall(commit.commit[:8]) == commit


@pytest.mark.parametrize("wrong", ["", "10", "xyz!", "'; DROP TABLE commits", "%", "f" * 40])
async def test_what_is_no_known_commit_is_not_found(memory: CompileMemory, wrong: str) -> None:
    await memory.remember(seen(1 << 156))
    assert await memory.recall(wrong) is None


async def test_the_last_good_commit_is_the_newest_without_problems_or_a_hold(
    memory: CompileMemory,
) -> None:
    for commit in (seen(1), seen(2), seen(3, PROBLEM), seen(4, held="too many")):
        await memory.remember(commit)
    assert await memory.last_good() == seen(2)
    assert await memory.newest() == seen(4, held="too many")
    await memory.remember(seen(4))
    assert await memory.last_good() == seen(4)


async def test_looking_again_at_an_old_commit_does_not_make_it_the_newest(
    memory: CompileMemory,
) -> None:
    for commit in (seen(1), seen(2), seen(1, PROBLEM)):
        await memory.remember(commit)
    assert await memory.newest() == seen(2)
    assert await memory.recall(seen(1).commit) == seen(1, PROBLEM)


async def test_sqlite_forgets_the_oldest_but_never_the_last_good(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "hub.db")
    memory = SqliteCommits(database)
    await memory.remember(seen(1))
    await memory.remember(seen(2, PROBLEM))
    database.run_blocking(
        lambda c: c.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'commits'", (KEPT,))
    )
    for number in range(3, 7):
        await memory.remember(seen(number, PROBLEM))
    assert await memory.last_good() == seen(1)
    assert await memory.recall(seen(2).commit) is None
    assert await memory.newest() == seen(6, PROBLEM)
    database.close()
