"""What delivery does on a node, in the short-lived worker: fetch and stage a release.

Laws: nothing that arrived is used before a signed digest spoke for it; whatever fails, what
is installed stays as it is. What the hub says is checked by ``Trust`` (backends.tuf.client).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, Final

import msgspec

from edgewise.delivery.applying import Applying, Recompression
from edgewise.delivery.delta import Part as DeltaPart
from edgewise.delivery.delta import Piece
from edgewise.delivery.downloads import TRIES, Cutter, Downloads
from edgewise.delivery.opening import Opened, Shelf
from edgewise.delivery.plan import (
    AT_ONCE,
    RESERVE,
    Copy,
    FetchPlan,
    Metered,
    Whole,
    check_link,
    check_space,
    packed_total,
    plan_fetch,
)
from edgewise.delivery.ports import NodeFiles, Source, Trust
from edgewise.delivery.rates import Bucket
from edgewise.delivery.trees import refuse_privilege
from edgewise.delivery.ways import Choice, Prices, Range, Situation, choose
from edgewise.model.errors import (
    BadUsage,
    EdgewiseError,
    NeedsPerson,
    NotFound,
    TryLater,
    Untrusted,
)
from edgewise.model.names import is_name
from edgewise.protocol import limits
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.codec import decode
from edgewise.protocol.content import (
    Entry,
    FilesConfig,
    NodeSettings,
    NotActedOn,
    Part,
    ProcessApp,
    Release,
    SealedSecret,
    Tree,
    WorkloadRegistration,
)
from edgewise.protocol.delta import delta_path
from edgewise.protocol.egress import EgressRules
from edgewise.protocol.installed import (
    Installed,
    InstalledApp,
    InstalledConfig,
    InstalledEgress,
    InstalledIdentity,
    InstalledSecret,
    without_traffic,
)
from edgewise.protocol.report import Refused, Traffic, dearest
from edgewise.runtime.clock import Clock, SystemClock

SEALED: Final = 1 << 20
"""A sealed secret: Kubernetes' bound for a Secret."""
RANGES_AT_ONCE: Final = 2
"""Each holds a part that comes and one that waits to be applied: at most 8 MiB each."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a release is fetched."""

    platform: str
    """``linux/arm64``."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with unpacked bytes that are here and that were planned."""
    at_once: int = AT_ONCE
    """Downloads at the same time; many small files are bound by round trips."""
    reserve: int = RESERVE
    """Bytes of disk that stay free."""
    prices: Prices = Prices()  # noqa: RUF009 - frozen
    absent: Callable[[str], bool] = lambda sha256: False
    """Whether the source lacks an object whole, as a stick with deltas does: then every other
    way is cheaper."""
    recompression: Recompression | None = None
    """None: what would have to be compressed again comes whole."""
    metered: bool = False
    """Whether the link costs by the byte."""
    metered_policy: Metered = "Allow"
    """Where the release says nothing."""
    clock: Clock = field(default_factory=SystemClock)
    explain: Callable[[Mapping[str, int]], None] = lambda fields: None
    """Called with the plan's figures before the contents travel."""


async def fetch(
    release: str,
    record: NodeRecord,
    terms: Terms,
    *,
    trust: Trust,
    store: NodeFiles,
    source: Source,
) -> Installed:
    """Bring a release here, complete and verified, ready for ``NodeStore.activate``.

    Repeating it after a crash goes on where it was. Raises Untrusted when no builder signed
    the release or the bytes are wrong twice; TryLater when the source breaks off (what came
    is kept); NeedsPerson when the disk is too small or the release has nothing for this
    node. Nothing that is installed changes.
    """
    with store.fetching():
        length = await trust.permission(release, source)
        running = _Fetch(record, terms, store, source)
        try:
            return await running.run(release, length, trust.deltas())
        finally:
            running.close()


class _Fetch:
    """One release on its way."""

    def __init__(self, record: NodeRecord, terms: Terms, store: NodeFiles, source: Source) -> None:
        self._record = record
        self._terms = terms
        self._store = store
        self._limited = Limited(source, terms.clock)
        self._downloads = Downloads(store, self._limited)
        self._installed = store.installed()
        self._shelf = Shelf(store, self._downloads, terms.prices, _trees(self._installed))
        self._contents: Contents | None = None
        self._deltas = ""
        self._extra = 0

    def close(self) -> None:
        """Let go of open files."""
        if self._contents is not None:
            self._contents.close()

    async def run(self, release: str, length: int, deltas: str) -> Installed:
        self._deltas = deltas
        for known in self._installed:
            self._downloads.sizes |= self._store.packed_sizes(known.release)
        installed, trees = await self._documents(release, length)
        already = self._store.staged(release)
        if already is not None and without_traffic(already) == installed:
            return already
        entries = [entry for tree in trees.values() for entry in tree.entries]
        await self._shelf.load(deltas)
        self._contents = Contents(self._terms, self._store, self._downloads, self._shelf)
        by_tree = {app.tree: trees[app.app.name].entries for app in installed.apps}
        planned = await self._contents.bring(by_tree)
        sizes = self._downloads.sizes
        full = packed_total(sizes, entries, ratio=self._terms.prices.whole)
        used = dict(self._downloads.used)
        planned["document"] = used.get("document", 0)
        installed = msgspec.structs.replace(
            installed,
            bytes_fetched=self._downloads.total,
            bytes_full=self._extra + full,
            traffic=Traffic(
                planned,
                used,
                self._downloads.requests,
                dearest([*self._shelf.said(), *self._contents.said()]),
            ),
        )
        self._store.begin(release)
        for name, tree in trees.items():
            self._store.lay_out(release, f"apps/{name}", tree)
        self._store.finish(installed, self._sizes_of(entries))
        return installed

    def _obey(self, settings: NodeSettings) -> None:
        """The new release says how its bytes come: a limit that is lifted helps at once."""
        travel = settings.travel
        self._limited.bucket = Bucket(travel.max_rate)
        if settings.delivery is not msgspec.UNSET:
            self._terms = replace(self._terms, metered_policy=travel.metered)
        if travel.reserve >= 0:
            self._terms = replace(self._terms, reserve=travel.reserve)

    def _sizes_of(self, entries: list[Entry]) -> dict[str, int]:
        sizes = self._downloads.sizes
        return {e.sha256: sizes[e.sha256] for e in entries if e.sha256 in sizes}

    # Documents

    async def _documents(self, release: str, length: int) -> tuple[Installed, dict[str, Tree]]:
        document = await self._document(
            release, Release, min(length, limits.RELEASE), f"release {release[:12]}"
        )
        try:
            self._obey(document.settings)
            selection = document.selection(self._record.node, self._record.labels)
        except KeyError as error:
            raise NeedsPerson(
                f"release {release[:12]} has no variant of {error} for {self._record.node}"
                f" with its labels {self._record.labels}",
                hint="its labels changed after the commit was compiled; push again",
            ) from error
        if document.fleet != self._record.fleet:
            raise Untrusted(f"release {release[:12]} is for fleet {document.fleet}")
        apps, trees = list[InstalledApp](), dict[str, Tree]()
        configs, secrets = list[InstalledConfig](), list[InstalledSecret]()
        identities: list[InstalledIdentity] = []
        ignored: list[NotActedOn] = []
        egress: InstalledEgress | None = None
        for _, name, digest in selection:
            part: Part = await self._document(digest, Part, limits.PART, f"part {name}")
            match part:
                case ProcessApp():
                    apps.append(await self._app(digest, part, trees))
                case FilesConfig():
                    configs.append(InstalledConfig(digest, part))
                case SealedSecret():
                    secrets.append(await self._secret(digest, part))
                case EgressRules():
                    egress = InstalledEgress(digest, part)
                case WorkloadRegistration():
                    identities.append(InstalledIdentity(digest, part))
                case NotActedOn():
                    ignored.append(part)
        return Installed(
            release=release,
            node=self._record.node,
            platform=self._terms.platform,
            apps=tuple(apps),
            configs=tuple(configs),
            secrets=tuple(secrets),
            egress=egress,
            identities=tuple(identities),
            not_acted_on=tuple(ignored),
            settings=document.settings,
        ), trees

    async def _app(self, digest: str, app: ProcessApp, trees: dict[str, Tree]) -> InstalledApp:
        ref = app.trees.get(self._terms.platform)
        if ref is None:
            raise NeedsPerson(
                f"app {app.name} is not built for {self._terms.platform}",
                hint=f"build it with --platform {self._terms.platform}",
            )
        if not is_name(app.name):
            raise Untrusted(f"app name {app.name[:80]!r} is not a name")
        tree = self._shelf.tree(ref.sha256, await self._bytes(ref.sha256, limits.TREE, Tree))
        try:
            refuse_privilege(tree)
        except BadUsage as error:
            raise Untrusted(f"app {app.name}: {error}") from error
        if sum(entry.size for entry in tree.entries) != ref.size:
            raise Untrusted(f"the tree of {app.name} is not of the size that was signed")
        trees[app.name] = tree
        return InstalledApp(digest, app, ref.sha256, f"apps/{app.name}")

    async def _secret(self, digest: str, secret: SealedSecret) -> InstalledSecret:
        sealed = self._record.sealed.get(secret.source)
        if sealed is None:
            raise TryLater(f"secret {secret.name} is not sealed to {self._record.node} yet")
        await self._bytes(sealed, SEALED)
        return InstalledSecret(digest, secret, sealed)

    async def _document(self, sha256: str, kind: Any, at_most: int, what: str) -> Any:
        data = await self._bytes(sha256, at_most, kind)
        return decode(data, kind, what=what, at_most=at_most)

    async def _bytes(self, sha256: str, at_most: int, kind: Any = None) -> bytes:
        data = self._store.document(sha256) or self._shelf.document(sha256)
        if data is None and kind is not Release:
            await self._shelf.load(self._deltas)
            data = self._shelf.document(sha256)
            if data is None and kind is Tree:
                data = await self._shelf.manifest(sha256)
        if data is None:
            collected: list[bytes] = []

            def keep(content: Iterator[bytes]) -> None:
                collected[:] = content

            await self._downloads.object(sha256, at_most, keep, "document")
            data = b"".join(collected)
        self._store.keep_document(sha256, data)
        self._extra += self._downloads.sizes.get(sha256, len(data))
        return data


class Limited:
    """A source that gives no more bytes a second than its bucket lets through."""

    def __init__(self, source: Source, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self.bucket = Bucket(0)

    async def read(
        self, path: str, *, at_most: int, start: int = 0, end: int | None = None
    ) -> AsyncIterator[bytes]:
        """See ``Source.read``."""
        async for chunk in self._source.read(path, at_most=at_most, start=start, end=end):
            wait = self.bucket.take(len(chunk), self._clock.monotonic())
            if wait:
                await self._clock.sleep(timedelta(seconds=wait))
            yield chunk


class Contents:
    """Brings the files of a release: chooses ways, goes them, falls a step when one was wrong."""

    def __init__(self, terms: Terms, store: NodeFiles, downloads: Downloads, shelf: Shelf) -> None:
        self._terms = terms
        self._store = store
        self._downloads = downloads
        self._shelf = shelf
        self._applying: Applying | None = None
        self._one_part = asyncio.Lock()
        self._alone: set[str] = set()
        """Objects that deltas cannot make here."""
        self._damaged = 0
        self._done = 0
        self._total = 0
        self._sizes: dict[str, int] = {}
        self._failed: list[EdgewiseError] = []

    def close(self) -> None:
        """Let go of open files."""
        if self._applying is not None:
            self._applying.close()

    async def bring(self, trees: Mapping[str, tuple[Entry, ...]]) -> dict[str, int]:
        """Have every file of these trees in the store; returns planned bytes by way.

        Each round that does not bring everything has refused a delta, an object's delta or a
        damaged old file, so there are few rounds.
        """
        entries = [entry for each in trees.values() for entry in each]
        plan = plan_fetch(entries, self._store.kept)
        if not all([self._store.verify(*kept) for kept in plan.check]):
            plan = plan_fetch(entries, self._store.kept)
        plan = replace(plan, check=())  # of a large tree, megabytes
        wanted = _wanted(plan)
        self._applying = Applying(
            self._store, {s: step.variants for s, step in wanted.items()}, self._terms.recompression
        )
        self._total = plan.fetch_bytes
        planned: dict[str, int] | None = None
        while True:
            choice = await self._choose(wanted, trees, self._applying)
            if planned is None:
                self._check(plan, choice)
                planned = dict(Counter(choice.bytes) + self._downloads.used)
                self._terms.explain(choice.fields())
            before = self._setbacks()
            await self._perform(wanted, choice, self._applying)
            for step in plan.steps:
                if isinstance(step, Copy):
                    kept = self._store.copy(step.entry.sha256, step.have, step.entry.attributes)
                    self._damaged += not kept
            plan = plan_fetch(entries, self._store.kept)
            wanted = _wanted(plan)
            self._applying.wanted = {s: step.variants for s, step in wanted.items()}
            if not plan.steps:
                return planned
            if self._setbacks() == before:
                raise TryLater(f"{len(plan.steps)} files did not stay in the store")

    def _setbacks(self) -> int:
        return len(self._shelf.refused) + len(self._alone) + self._damaged

    def said(self) -> Iterator[Refused]:
        """Why files came by a dearer way although their deltas are right, for the receipt."""
        if self._alone:
            why = "files that this machine compresses to other bytes came whole"
            yield Refused("", why, times=len(self._alone))
        if self._damaged:
            yield Refused("", "old files were damaged and dropped", times=self._damaged)

    def _check(self, plan: FetchPlan, choice: Choice) -> None:
        free, inodes = self._store.free_bytes(), self._store.free_inodes()
        reserve = self._terms.reserve
        check_space(plan, free, inodes, reserve=reserve, scratch=choice.scratch)
        check_link(choice, self._terms.metered_policy, metered=self._terms.metered)

    # Choosing

    async def _choose(
        self, wanted: Mapping[str, Whole], trees: Mapping[str, tuple[Entry, ...]], by: Applying
    ) -> Choice:
        known: dict[str, bool] = {}

        def here(sha256: str) -> bool:
            if sha256 not in known:
                known[sha256] = bool(self._store.kept(sha256))
            return known[sha256]

        def usable(piece: Piece) -> bool:
            return piece.sha256 not in self._alone and by.usable(piece)

        sizes = {s: step.entry.size for s, step in wanted.items() if step.entry.size}
        objects = {
            tree: {e.sha256 for e in entries if e.kind == "file" and e.sha256 in sizes}
            for tree, entries in trees.items()
        }
        self._sizes |= sizes
        lacking = {sha256: limits.OBJECT for sha256 in sizes if self._terms.absent(sha256)}
        about = Situation(
            here, self._downloads.sizes | lacking if lacking else self._downloads.sizes
        )
        while True:
            offers = self._shelf.offers(usable, by.has)
            choice = choose(sizes, offers, about, self._terms.prices)
            if not await self._shelf.open_next(choice, objects):
                return choice

    # Going

    async def _perform(
        self, wanted: Mapping[str, Whole], choice: Choice, applying: Applying
    ) -> None:
        for step in wanted.values():
            if not step.entry.size:
                self._keep_empty(step)
        applying.passing = choice.passing
        for first in (True, False):
            await self._side_by_side(
                RANGES_AT_ONCE,
                [partial(self._range, step) for step in choice.ranges if step.first == first],
            )
        await self._side_by_side(
            self._terms.at_once, [partial(self._whole, wanted[sha256]) for sha256 in choice.whole]
        )

    async def _side_by_side(self, at_once: int, work: list[Callable[[], Awaitable[None]]]) -> None:
        """Each in its turn; the first error ends it after what is under way."""
        waiting = iter(work)

        async def one_after_the_other() -> None:
            for each in waiting:
                if self._failed:
                    return
                try:
                    await each()
                except EdgewiseError as error:
                    self._failed.append(error)
                    return

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(at_once, len(work))):
                workers.create_task(one_after_the_other())
        if self._failed:
            raise self._failed[0]

    def _arrived(self, sha256: str) -> None:
        self._done += self._sizes.get(sha256, 0)
        self._terms.progress(self._done, self._total)

    def _keep_empty(self, step: Whole) -> None:
        for attributes in step.variants:
            self._store.keep_file(step.entry.sha256, attributes, iter([b""]))

    async def _whole(self, step: Whole) -> None:
        entry = step.entry

        def keep(content: Iterator[bytes]) -> None:
            self._store.keep_file(entry.sha256, step.variants[0], content)

        await self._downloads.object(entry.sha256, entry.size, keep, "whole")
        for attributes in step.variants[1:]:
            self._store.copy(entry.sha256, step.variants[0].key, attributes)
        self._arrived(entry.sha256)

    # Parts

    async def _range(self, step: Range) -> None:
        """Parts of a delta, applied while the next comes. A wrong file is refused, not raised."""
        opened = self._shelf.opened.get(step.file)
        if opened is None:
            return  # refused meanwhile
        cutter = Cutter(self._store, [opened.delta.parts[index] for index in step.parts])
        tries = TRIES
        while cutter.waits and step.file not in self._shelf.refused:
            before = self._downloads.total
            try:
                await self._stream(step, opened, cutter)
            except TryLater:
                tries -= 1
                if not tries or self._downloads.total == before:
                    raise
            except (Untrusted, NotFound) as error:
                self._shelf.refuse(step.file, str(error))

    async def _stream(self, step: Range, opened: Opened, cutter: Cutter) -> None:
        under_way: asyncio.Task[None] | None = None
        try:
            chunks = self._bytes_of(step, opened, cutter.begin())
            async with aclosing(chunks):  # type: ignore[type-var]
                async for chunk in chunks:
                    for part, packed in cutter.feed(chunk):
                        if under_way is not None:
                            await _finished(under_way)
                        under_way = asyncio.ensure_future(self._apply(step.file, part, packed))
                    if step.file in self._shelf.refused:
                        return
        finally:
            cutter.keep()
            if under_way is not None:
                await _finished(under_way)
        if cutter.waits:
            raise Untrusted(f"delta {step.file[:12]} ends early")

    async def _bytes_of(self, step: Range, opened: Opened, start: int) -> AsyncIterator[bytes]:
        if opened.tail:
            lead = opened.ref.lead
            yield opened.tail[start - lead : step.end - lead]
            return
        path, length = delta_path(step.file), step.end - start
        chunks = self._downloads.read(path, step.way, start=start, end=step.end, at_most=length)
        async for chunk in chunks:
            yield chunk

    async def _apply(self, file: str, part: DeltaPart, packed: bytes) -> None:
        applying = self._applying
        async with self._one_part:
            if applying is None or file in self._shelf.refused:
                return
            # In a thread: the next part comes meanwhile. One at a time: memory.
            applied = await asyncio.to_thread(applying.apply, part, packed)
        for sha256 in applied.done:
            self._arrived(sha256)
        self._alone.update(applied.alone)
        self._damaged += len(applied.damaged)
        if applied.wrong and not applied.damaged:
            self._shelf.refuse(file, applied.wrong)


async def _finished(task: asyncio.Task[None]) -> None:
    """Wait for a part that is being applied, also when we are to end: it is at the files."""
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def _wanted(plan: FetchPlan) -> dict[str, Whole]:
    return {step.entry.sha256: step for step in plan.steps if isinstance(step, Whole)}


def _trees(installed: tuple[Installed, ...]) -> tuple[str, ...]:
    """Trees that are here; those of the newest fetch first."""
    return tuple(dict.fromkeys(app.tree for one in installed for app in one.apps))


async def read_all(source: Source, path: str, *, at_most: int) -> bytes:
    """A small file, whole. Raises what ``Source.read`` raises."""
    return b"".join([chunk async for chunk in source.read(path, at_most=at_most)])
