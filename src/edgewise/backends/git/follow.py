"""Following a repository: every way in which a new commit becomes known, as one stream.

Pushes and webhooks call ``poke``; the refs on disk are looked at every half second (a stat,
no process), so a plain ``git push /path`` or a commit in a followed local directory is seen
too; a mirrored URL is fetched at its poll interval, with jitter. A fetch that fails is tried
again with growing waits and never ends the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from edgewise.backends.git.repository import GitRepository, file_stamp
from edgewise.model.errors import EdgewiseError
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often we look: at the refs on disk, and at a mirrored URL."""

    local: timedelta = timedelta(milliseconds=500)
    poll: timedelta = timedelta(minutes=1)
    retry_first: timedelta = timedelta(seconds=2)
    retry_cap: timedelta = timedelta(minutes=5)


class GitWatch:
    """Tells when the head of the followed branch changes. One reader of ``changes``."""

    def __init__(
        self,
        repository: GitRepository,
        clock: Clock,
        chance: Chance,
        log: Log,
        *,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._repository = repository
        self._clock = clock
        self._chance = chance
        self._log = log
        self._rhythm = rhythm or Rhythm()
        self._backoff = Backoff(chance, first=self._rhythm.retry_first, cap=self._rhythm.retry_cap)
        self._poked = asyncio.Event()
        self._watched = _ref_files(repository)
        self.trouble: EdgewiseError | None = None
        """Why the last look failed; None when it did not. For the source's conditions."""

    def poke(self) -> None:
        """Look now: somebody pushed, or a webhook came. Idempotent, never blocks."""
        self._poked.set()

    async def changes(self) -> AsyncIterator[str]:
        """The head now, then every new head, without end. Several quick moves may be one."""
        last: str | None = None
        seen: object = None
        next_fetch = self._clock.monotonic()
        while True:
            now = self._clock.monotonic()
            poked = self._poked.is_set()
            self._poked.clear()
            stamp = self._stamp()
            if poked or stamp != seen or (self._repository.origin.url and now >= next_fetch):
                wait, head = await self._look()
                next_fetch = self._clock.monotonic() + wait.total_seconds()
                if self.trouble is not None:
                    await self._pause(wait)
                    continue
                seen = stamp
                if head is not None and head != last:
                    last = head
                    yield head
                    continue
            await self._pause(self._rhythm.local)

    async def _look(self) -> tuple[timedelta, str | None]:
        """Fetch where there is something to fetch: the wait until the next look, and the head."""
        try:
            await self._repository.refresh()
            head = await self._repository.head()
        except EdgewiseError as error:
            return self._failed(error), None
        self.trouble = None
        self._backoff.reset()
        return self._rhythm.poll * (0.9 + 0.2 * self._chance.fraction()), head

    def _failed(self, error: EdgewiseError) -> timedelta:
        wait = self._backoff.next()
        if self.trouble is None or str(self.trouble) != str(error):
            self._log.event(
                "source.unreachable", "warning", reason=str(error), hint=error.hint, retry_in=wait
            )
        self.trouble = error
        return wait

    async def _pause(self, duration: timedelta) -> None:
        """Until ``duration`` is over or somebody pokes."""
        sleep = asyncio.ensure_future(self._clock.sleep(duration))
        poked = asyncio.ensure_future(self._poked.wait())
        try:
            await asyncio.wait({sleep, poked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            poked.cancel()
            await asyncio.gather(sleep, poked, return_exceptions=True)

    def _stamp(self) -> object:
        """Changes whenever the branch moved on disk (loose ref or packed-refs)."""
        return tuple(file_stamp(path) for path in self._watched)


def _ref_files(repository: GitRepository) -> tuple[Path, ...]:
    """The files that a move of the branch touches, of the repository or of a local origin."""
    directory = repository.directory
    if repository.origin.url:
        local = Path(repository.origin.url.removeprefix("file://"))
        if not local.is_dir():
            return ()
        directory = local / ".git" if (local / ".git").is_dir() else local
    return (directory / repository.ref, directory / "packed-refs")
