"""A new commit becomes known by every way it can come, and a failed look ends nothing."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from edgewise.backends.git.follow import GitWatch, Rhythm
from edgewise.backends.git.repository import GitRepository, Origin
from edgewise.model.errors import TryLater
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog


class Told(GitRepository):
    """A repository whose head the test moves, as a remote would."""

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory, Origin(url=url))
        self.remote: str | None = None
        self.local: str | None = None
        self.down = False
        self.fetches = 0

    async def refresh(self) -> None:
        self.fetches += 1
        if self.down:
            raise TryLater("git fetch: no route")
        self.local = self.remote

    async def head(self) -> str | None:
        return self.local


class Reader:
    def __init__(self, tmp_path: Path, url: str = "https://git.example/x") -> None:
        self.clock = ManualClock()
        self.log = ListLog()
        self.repository = Told(tmp_path / "r.git", url)
        self.watch = GitWatch(
            self.repository, self.clock, SeededChance(), self.log,
            rhythm=Rhythm(poll=timedelta(seconds=60)),
        )  # fmt: skip
        self.seen: list[str] = []
        self._stream: AsyncIterator[str] = self.watch.changes()

    async def __aenter__(self) -> "Reader":
        self._task = asyncio.create_task(self._read())
        await self.run(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        async for head in self._stream:
            self.seen.append(head)

    async def run(self, seconds: float) -> None:
        await self.clock.run_for(timedelta(seconds=seconds))


async def test_the_head_is_told_at_the_start_and_again_only_when_it_moves(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.repository.remote = "a"
    async with reader:
        assert reader.seen == ["a"]
        await reader.run(200)
        assert reader.seen == ["a"]
        reader.repository.remote = "b"
        await reader.run(67)
        assert reader.seen == ["a", "b"]
        assert 3 <= reader.repository.fetches <= 6


async def test_a_poke_looks_at_once(tmp_path: Path) -> None:
    async with Reader(tmp_path) as reader:
        reader.repository.remote = "a"
        await reader.run(5)
        assert reader.seen == []
        reader.watch.poke()
        await reader.run(0)
        assert reader.seen == ["a"]


async def test_an_unreachable_server_is_tried_again_with_growing_waits_and_told_once(
    tmp_path: Path,
) -> None:
    reader = Reader(tmp_path)
    reader.repository.down = True
    async with reader:
        await reader.run(3600)
        assert 10 < reader.repository.fetches < 60
        assert [what for what, _ in reader.log.lines] == ["source.unreachable"]
        assert str(reader.watch.trouble) == "git fetch: no route"
        reader.repository.down, reader.repository.remote = False, "a"
        await reader.run(300)
        assert reader.seen == ["a"]
        assert reader.watch.trouble is None


async def test_a_push_on_the_disk_is_seen_within_half_a_second(tmp_path: Path) -> None:
    reader = Reader(tmp_path, url="")
    async with reader:
        ref = tmp_path / "r.git" / "refs" / "heads" / "main"
        ref.parent.mkdir(parents=True)
        for head in ("a", "b"):
            reader.repository.remote = head
            ref.write_text(head * 40)
            await reader.run(0.5)
        assert reader.seen == ["a", "b"]
        looked = reader.repository.fetches
        await reader.run(600)
        assert reader.repository.fetches == looked  # a look at a quiet repository is only a stat


async def test_a_commit_in_a_followed_local_directory_is_seen_without_waiting_for_the_poll(
    tmp_path: Path,
) -> None:
    ref = tmp_path / "work" / ".git" / "refs" / "heads" / "main"
    ref.parent.mkdir(parents=True)
    async with Reader(tmp_path, url=str(tmp_path / "work")) as reader:
        reader.repository.remote = "a"
        ref.write_text("a" * 40)
        await reader.run(0.5)
        assert reader.seen == ["a"]
