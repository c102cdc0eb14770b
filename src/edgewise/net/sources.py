"""Content from several places: sibling relays, plain file servers, the hub.

Nobody is believed: whoever reads verifies. This file only chooses whom to ask, keeps to the
rate that the line was given, and moves on to the next when somebody fails or lied. Standard
library and msgspec only: a node's worker uses it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from edgewise.delivery.brake import Brake
from edgewise.delivery.ports import NotHere, Opened, Upstream
from edgewise.delivery.sources import REMEMBERED, Choice
from edgewise.model.errors import BadUsage, EdgewiseError, Forbidden, NotFound, TryLater, Untrusted
from edgewise.net.client import NO_HEADERS, Client, Endpoint
from edgewise.net.tls import public_context
from edgewise.protocol import limits
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

ROOT: Final = "/v1/content/"
ONLY_CACHED: Final = {"cache-control": "only-if-cached"}
"""RFC 9111, section 5.2.1.7: answer from the store, or with 504."""
URLS: Final = 16 << 10
"""Characters of a file with URLs."""
EVER: Final = 64
"""Announced URLs that one process remembers: they change by hand."""
PLAIN_CONNECTIONS: Final = 8
"""To a plain file server: many small files are bound by round trips."""


@dataclass(slots=True)
class Origin:
    """One source of content."""

    name: str
    """For people."""
    client: Client
    root: str = ROOT
    """The content root's path there."""
    wants: Callable[[str], bool] = lambda path: True
    """Whether it is asked for such a path."""
    only_cached: bool = False
    """A sibling: it must not ask others in turn."""
    brake: Brake | None = None
    plain: bool = False
    """A file server or CDN, which knows nobody: that it forbids a file says nothing about us."""

    @asynccontextmanager
    async def open(
        self, path: str, span: tuple[int, int | None], at_most: int
    ) -> AsyncIterator[Opened]:
        """See ``Upstream.open``. Raises NotHere when a sibling does not have it."""
        headers = ONLY_CACHED if self.only_cached else NO_HEADERS
        opening = self.client.open(self.root + path, span, at_most=at_most, headers=headers)
        async with opening as download:
            if download.size < 0:
                raise Untrusted(f"{self.name} does not say how long {path} is")
            yield Opened(download.size, self._paced(download.pieces))

    async def _paced(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        clock = self.client.clock
        async with aclosing(pieces) as inner:  # type: ignore[type-var]
            async for piece in inner:
                wait = self.brake.take(len(piece), clock.monotonic()) if self.brake else 0.0
                yield piece
                if wait > 0:
                    await clock.sleep(timedelta(seconds=wait))


Announced = Callable[[], tuple[str, ...]]


def _nobody() -> tuple[str, ...]:
    return ()


@dataclass
class Sources:
    """Several origins as one (``delivery.ports.Upstream``), the last of which has everything."""

    origins: tuple[Origin, ...]
    clock: Clock
    log: Log | None = None
    announced: Announced = _nobody
    """URLs of file servers that the hub's signed word names at the moment: asked after those we
    were told of here, before the last origin. Its first ``limits.CONTENT_URLS`` count."""
    brake: Brake | None = None
    """For what comes from announced ones."""
    choice: Choice = field(init=False)
    _taken: dict[str, int] = field(init=False, default_factory=dict)
    """Announced URLs, present and past, to indexes of ``origins``; ``EVER`` at most."""
    _withdrawn: frozenset[int] = field(init=False, default=frozenset())
    _last: tuple[str, ...] = field(init=False, default=())
    """What was announced when we looked last."""
    _home: int = field(init=False)
    """Index of the origin that has everything."""
    _whole: OrderedDict[str, None] = field(init=False, default_factory=OrderedDict)
    """Newest paths that were read from start to end."""

    def __post_init__(self) -> None:
        self.choice = Choice(origin.name for origin in self.origins)
        self._home = len(self.origins) - 1

    @asynccontextmanager
    async def open(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[Opened]:
        """See ``Upstream.open``: of the first origin that answers."""
        said: list[EdgewiseError] = []
        self._take_announced()
        async with AsyncExitStack() as held:
            for index in self.choice.order(self.clock.monotonic()):
                origin = self.origins[index]
                if index in self._withdrawn or not origin.wants(path):
                    continue
                try:
                    opening = origin.open(path, (start, end), at_most)
                    opened = await held.enter_async_context(opening)
                except EdgewiseError as error:
                    self._failed(index, path, error)
                    said.append(error)
                    continue
                yield Opened(opened.size, self._counted(index, path, opened.pieces))
                return
        raise _worst(path, said)

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """See ``Source.read``. Whoever reads all of a path again did not like what it got: who
        gave that is asked last for a while."""
        all_of_it = start == 0 and end is None
        if all_of_it and self._whole.pop(path, self) is None and immutable(path):
            self.blame(path, f"{path} was asked for again")
        async with self.open(path, at_most=at_most, start=start, end=end) as opened:
            async with aclosing(opened.pieces) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece
        if all_of_it:
            self._whole[path] = None
            if len(self._whole) > REMEMBERED:
                self._whole.popitem(last=False)

    def blame(self, path: str, why: str) -> None:
        """See ``Upstream.blame``."""
        guilty = self.choice.blame(path, why, self.clock.monotonic())
        if self.log is not None and guilty:
            names = ", ".join(guilty)
            self.log.event("a source is not believed", "warning", source=names, because=why)

    async def close(self) -> None:
        """Close the connections of every origin."""
        for origin in self.origins:
            await origin.client.close()

    def _take_announced(self) -> None:
        urls = self.announced()[: limits.CONTENT_URLS]
        if urls == self._last:
            return
        self._last = urls
        for url in urls:
            if url in self._taken or len(self._taken) >= EVER:
                continue
            try:
                origin = plain_origin(url, self.clock, self.brake)
            except BadUsage as error:  # the hub checks them: it is of another version
                if self.log is not None:
                    self.log.event("an announced URL is not used", "warning", because=str(error))
                continue
            self._taken[url] = len(self.origins)
            self.origins = (*self.origins, origin)
            self.choice.add(origin.name)
        self._withdrawn = frozenset(index for url, index in self._taken.items() if url not in urls)
        if self.log is not None:
            self.log.event("file servers are announced", urls=list(urls))

    async def _counted(
        self, index: int, path: str, pieces: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        try:
            async with aclosing(pieces) as inner:  # type: ignore[type-var]
                async for piece in inner:
                    self.choice.gave(index, path, len(piece))
                    yield piece
        except EdgewiseError as error:
            self._failed(index, path, error)
            raise

    def _failed(self, index: int, path: str, error: EdgewiseError) -> None:
        now = self.clock.monotonic()
        standing = self.choice.standings[index]
        last = index == self._home
        match error:
            case NotHere() | NotFound():
                return  # it is well, it only does not have this
            case Forbidden() if self.origins[index].plain:
                # S3 says so of what is missing, to whoever may not list the bucket.
                standing.refusals += 1
                if self.log is not None and standing.refusals == 1:
                    self.log.event(
                        "a file server forbids a file: missing, or not public",
                        "warning",
                        source=standing.name,
                        path=path,
                    )
                return
            case Untrusted():
                self.choice.lied(index, str(error), now)
            case _:
                self.choice.failed(index, str(error), now)
        if self.log is not None and not last and standing.failures <= 1:
            self.log.event(
                "a source of content fails",
                "warning",
                source=standing.name,
                path=path,
                because=str(error),
            )


def urls_in(file: Path) -> tuple[str, ...]:
    """URLs of plain file servers, one a line; none where there is no such file."""
    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            text = lines.read(URLS)
    except FileNotFoundError:
        return ()
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def plain_origin(url: str, clock: Clock, brake: Brake | None = None) -> Origin:
    """A plain file server or CDN, whose ``url`` stands for the content root. We show it no
    certificate and send it no name or password. Raises BadUsage."""
    origin, root = plain_url(url)
    tls = public_context() if origin.startswith("https:") else None
    client = Client(Endpoint((origin,), tls), clock, PLAIN_CONNECTIONS)
    name = origin.partition("://")[2]
    return Origin(name, client, root, immutable, brake=brake, plain=True)


def checked_urls(urls: Iterable[str]) -> tuple[str, ...]:
    """What a hub may announce. Raises BadUsage for what is no URL, or too many."""
    found = tuple(dict.fromkeys(url.rstrip("/") for url in urls))
    for url in found:
        plain_url(url)
    if len(found) > limits.CONTENT_URLS:
        raise BadUsage(
            f"{len(found)} content URLs; a hub announces {limits.CONTENT_URLS} at most",
            hint="name one CDN: it has many servers itself",
        )
    return found


def plain_url(url: str) -> tuple[str, str]:
    """``https://host:port`` and the path of the content root there. Raises BadUsage for what is
    no URL of a plain file server."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:
        raise BadUsage(f"{url[:200]!r} is no URL") from error
    if len(url) > limits.CONTENT_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise BadUsage(f"{url[:200]!r} is no URL that can be used")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise BadUsage(
            f"{url!r} is not like https://cdn.example/edgewise",
            hint="give scheme, host and path of the content root, without ? and #",
        )
    if parts.username or parts.password:
        raise BadUsage(
            f"the URL of {parts.hostname!r} holds a user or password",
            hint="leave it out: all content is public or sealed, and nodes send no credentials",
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}", parts.path.rstrip("/") + "/"


def immutable(path: str) -> bool:
    """Whether a path always holds the same bytes: a stale copy is then as good as a fresh one.

    The timestamp, and root files, whose absence means "none newer", come from hub or relay.
    """
    return path != "tuf/timestamp.json" and not path.endswith(".root.json")


def on_shelf(path: str) -> bool:
    """Objects and deltas: what siblings are asked for. Metadata is small and comes from the
    hub, by itself."""
    return path.startswith(("objects/", "deltas/"))


def _worst(path: str, said: list[EdgewiseError]) -> EdgewiseError:
    if not said:
        return NotFound(f"no source has {path}")
    if len(said) == 1:
        return said[0]
    for kind in (TryLater, Untrusted):
        real = [e for e in said if isinstance(e, kind) and not isinstance(e, NotHere)]
        if real:
            return kind("; ".join(map(str, real))[:600])
    return said[-1]


def _meets_its_port(sources: Sources) -> Upstream:
    return sources
