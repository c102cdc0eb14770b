"""Deltas on the hub: made one at a time, kept, told of with the channels, removed again.

Laws: what is undone is found by comparing what should be there with what is there, so a hub
that is killed anywhere goes on; a file is synced and checked before any list names it; a job
that fails is said once and tried ``deltas.TRIES`` times; nothing here holds up a rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import msgspec

from edgewise.delivery import deltas
from edgewise.delivery.contents import named_by_part, objects_of_tree
from edgewise.delivery.delta_ports import DeltaMaker, DeltaStore, KeptDelta, PublishedTree
from edgewise.delivery.deltas import DeltaJob, DeltaSettings
from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.ports import ObjectStore
from edgewise.model.errors import EdgewiseError, NotFound, Untrusted
from edgewise.protocol import limits
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.content import Release
from edgewise.protocol.delta import DeltaList, DeltaRef
from edgewise.protocol.travel import DeltaLine, DeltaStatus, TreeBytes, TreeChange
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

RELEASES_READ: Final = 256
"""Releases whose trees are remembered: two for each of 100 fleets, and some before."""
APPS_READ: Final = 2000
"""Variants of apps that are read of one release; the rest of it travels whole."""
SIZES_KEPT: Final = 100_000
"""Objects whose sizes are remembered, about 20 MB."""
TELL_AGAIN: Final = timedelta(minutes=1)
"""The least time between two publications of one channel for the sake of new deltas."""
PAUSE: Final = timedelta(seconds=10)
"""After a failure, before the next job: what failed one (a full disk) may fail all."""
SAID: Final = 50
"""Different failures that are remembered as said."""
CHECK_ALL: Final = timedelta(days=1)
"""How often every byte of every delta is read, as a disk may lose what nobody wrote."""
_SIZES_AT_ONCE: Final = 200
_LARGE: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class DeltaPlaces:
    """What deltas are made from and kept in."""

    publisher: Publisher
    objects: ObjectStore
    store: DeltaStore
    maker: DeltaMaker


@dataclass(frozen=True, slots=True)
class _Contents:
    """What of one release matters here."""

    trees: frozenset[str] = frozenset()
    documents: tuple[str, ...] = ()
    """Itself and its parts, as far as most nodes need them and they are small."""


@dataclass(slots=True)
class _Making:
    job: DeltaJob
    done: int = 0
    total: int = 0


async def _nobody(fleet: str) -> None:
    return None


class HubDeltas:
    """``load`` first, then ``run`` beside the server."""

    def __init__(
        self, places: DeltaPlaces, settings: DeltaSettings, clock: Clock, log: Log
    ) -> None:
        self._at = places
        self._settings = settings
        self._clock = clock
        self._log = log
        self.say_again: Callable[[str], Awaitable[None]] = _nobody
        """Publishes a fleet's channel anew (``Rollouts.say_again``)."""
        self._known: dict[DeltaJob, KeptDelta] = {}
        self._jobs: dict[DeltaJob, None] = {}
        """What should be there, the most useful first."""
        self._trees: dict[str, list[PublishedTree]] = {}
        self._making: _Making | None = None
        self._due = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while nothing is left to make."""
        self._stale = True
        self._looking = asyncio.Lock()
        self._releases: OrderedDict[str, _Contents] = OrderedDict()
        self._sizes: OrderedDict[str, Mapping[str, int]] = OrderedDict()
        self._looked_at: dict[str, tuple[str, str]] = {}
        """Fleet to the stable and candidate releases whose trees were last looked at."""
        self._told: dict[str, float] = {}
        self._said: dict[str, None] = {}

    # Starting and running.

    async def load(self) -> None:
        """Take up what was kept. A file that is gone or has another head is made again."""
        self._known = {
            DeltaJob(k.tree, k.base): k
            for k in await self._at.store.all()
            if k.state != "NotWorth" or k.percent == self._settings.percent
        }
        await self.check(whole=False)

    def nudge(self) -> None:
        """What is published, or what fleets run, has changed."""
        self._stale = True
        self.idle.clear()
        self._due.set()

    async def run(self) -> None:
        """Make what is missing, one after the other, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._check_for_ever())
            tasks.create_task(self._make_for_ever())

    async def _check_for_ever(self) -> None:
        while True:
            with self._said_once():
                await self.check(whole=True)
            await self._clock.sleep(CHECK_ALL)

    async def _make_for_ever(self) -> None:
        while True:
            self._due.clear()
            went_well = False
            with self._said_once():
                went_well = await self._next()
            if not went_well:
                await self._clock.sleep(PAUSE)

    async def _next(self) -> bool:
        """Do the most useful job, or wait for one. Returns False after a failure."""
        await self._look()
        job = deltas.next_job(self._jobs, self._known, self._clock.now())
        if job is not None:
            return await self.make(job)
        await self._tell()
        self.idle.set()
        await self._wait()
        return True

    @contextlib.contextmanager
    def _said_once(self) -> Iterator[None]:
        """Deltas are not worth a hub that stops: what goes wrong is said, the rest goes on."""
        try:
            yield
        except EdgewiseError as error:
            if self._is_new(str(error)):
                self._log.event("deltas wait", "error", because=str(error), hint=error.hint)

    def _is_new(self, text: str) -> bool:
        if text in self._said:
            return False
        self._said[text] = None
        while len(self._said) > SAID:
            del self._said[next(iter(self._said))]
        return True

    async def _wait(self) -> None:
        """Until something changed, or something that failed is due again."""
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._due.wait())}
        now = self._clock.now()
        times = [deltas.retry_at(k) for job, k in self._known.items() if job in self._jobs]
        due = [(at - now) for at in times if at is not None]
        for fleet, at in self._told.items():
            left = at + TELL_AGAIN.total_seconds() - self._clock.monotonic()
            if left > 0 and fleet in self._at.publisher.fleets():
                due.append(timedelta(seconds=left))
        if due:
            waits.add(asyncio.ensure_future(self._clock.sleep(max(timedelta(0), min(due)))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def make(self, job: DeltaJob) -> bool:
        """Do one job, whatever comes of it, and keep that. Returns False when it failed."""
        before = self._known.get(job)
        tries = before.tries if before is not None else 0
        now = self._clock.now()
        kept = KeptDelta(job.tree, job.base, "Trying", now, tries=tries + 1)
        try:
            plain = await self._plain(job)
            kept = msgspec.structs.replace(kept, plain=plain.bytes, objects=plain.objects)
            most = deltas.at_most(job, plain, self._settings)
            ref: DeltaRef | None = None
            if most:
                await self._keep(kept)
                self._making = _Making(job)
                ref = await self._at.maker.make(
                    job.base, job.tree, at_most=most, progress=self._progress
                )
        except asyncio.CancelledError:
            # Stopped, not failed: the next start tries it as if for the first time.
            await self._keep(msgspec.structs.replace(kept, tries=tries))
            raise
        except EdgewiseError as error:
            await self._failed(kept, error)
            return False
        finally:
            self._making = None
        if ref is None:
            why = f"it would save too little of {plain.bytes:,} bytes"
            percent = self._settings.percent
            kept = msgspec.structs.replace(
                kept, state="NotWorth", tries=0, why=why, percent=percent
            )
        else:
            kept = msgspec.structs.replace(kept, state="Made", ref=ref, tries=0)
            self._log.event(
                "delta made", to=self.name_of(job.tree), base=self.name_of(job.base) or "nothing",
                bytes=ref.size, plain=plain.bytes,
            )  # fmt: skip
        await self._keep(msgspec.structs.replace(kept, at=self._clock.now()))
        return True

    async def _keep(self, kept: KeptDelta) -> None:
        self._known[DeltaJob(kept.tree, kept.base)] = kept
        await self._at.store.save(kept)

    async def _failed(self, kept: KeptDelta, error: EdgewiseError) -> None:
        why = f"{error}"
        after = msgspec.structs.replace(kept, state="Failed", at=self._clock.now(), why=why)
        await self._keep(after)
        again = deltas.retry_at(after)
        if self._is_new(why):
            self._log.event(
                "delta failed", "error", because=why, hint=error.hint,
                to=self.name_of(kept.tree), base=self.name_of(kept.base) or "nothing",
                next="nodes fetch whole files; "
                + (f"tried again at {again:%H:%M}" if again else "not tried again"),
            )  # fmt: skip

    def _progress(self, done: int, total: int) -> None:
        if self._making is not None:
            self._making.done, self._making.total = done, total

    # Looking.

    async def _look(self) -> None:
        """What should be there now. Cheap when nothing has changed."""
        async with self._looking:
            if not self._stale:
                return
            self._stale = False
            artifacts = self._at.publisher.artifacts()
            known = {(name, version) for _, name, version in await self._at.store.versions()}
            new = [one for one in artifacts if one not in known]
            if new:
                new.sort(key=lambda one: (one[0], deltas.version_key(one[1])))
                await self._at.store.note(new)
            published = [
                PublishedTree(sequence, name, version, platform, ref.sha256)
                for sequence, name, version in await self._at.store.versions()
                if (artifact := artifacts.get((name, version))) is not None
                for platform, ref in sorted(artifact.trees.items())
            ]
            self._trees = {}
            for one in published:
                self._trees.setdefault(one.tree, []).append(one)
            stable, candidate = await self._named()
            jobs = deltas.wanted(published, stable, candidate, self._settings)
            self._jobs = dict.fromkeys(jobs)

    async def _named(self) -> tuple[frozenset[str], frozenset[str]]:
        """Trees of every fleet's stable and candidate releases."""
        stable: set[str] = set()
        candidate: set[str] = set()
        self._looked_at = {}
        for fleet in self._at.publisher.fleets():
            channel = self._at.publisher.channel(fleet)
            if channel is not None:
                self._looked_at[fleet] = (channel.stable, channel.candidate)
                stable |= (await self._contents(channel.stable)).trees
                candidate |= (await self._contents(channel.candidate)).trees
        return frozenset(stable), frozenset(candidate)

    async def _contents(self, release: str) -> _Contents:
        """What a published release holds; nothing of one that is not here."""
        if release in self._releases:
            self._releases.move_to_end(release)
            return self._releases[release]
        found = _Contents()
        if release:
            with contextlib.suppress(NotFound, Untrusted):
                found = await self._read(release)
                self._releases[release] = found
        while len(self._releases) > RELEASES_READ:
            self._releases.popitem(last=False)
        return found

    async def _read(self, release: str) -> _Contents:
        data = await self._at.publisher.document(release, at_most=limits.RELEASE)
        named = decode(data, Release, what="release", at_most=limits.RELEASE)
        shared = deltas.parts_for_many(named)
        apps = _apps(named)
        trees: set[str] = set()
        documents = [data]
        for digest in dict.fromkeys((*shared, *apps)):
            body = await self._at.publisher.document(digest, at_most=limits.PART)
            if digest in shared:
                documents.append(body)
            if digest in apps:
                trees |= named_by_part(body).trees
        return _Contents(frozenset(trees), deltas.that_fit(documents))

    async def _plain(self, job: DeltaJob) -> deltas.Plain:
        new = await self._sizes_of(job.tree)
        return deltas.lacking([await self._sizes_of(job.base)] if job.base else [], new)

    async def _sizes_of(self, tree: str) -> Mapping[str, int]:
        """Objects of a tree and its manifest, with their packed bytes. Raises NotFound."""
        if tree in self._sizes:
            self._sizes.move_to_end(tree)
            return self._sizes[tree]
        data = await self._at.objects.get(tree, at_most=limits.TREE)
        if len(data) > _LARGE:
            found = await asyncio.to_thread(objects_of_tree, tree, data)
        else:
            found = objects_of_tree(tree, data)
        for number, sha256 in enumerate(found):
            found[sha256] = await self._at.objects.size(sha256)
            if number % _SIZES_AT_ONCE == 0:
                await asyncio.sleep(0)  # others want the loop too
        self._sizes[tree] = found
        while len(self._sizes) > 1 and sum(map(len, self._sizes.values())) > SIZES_KEPT:
            self._sizes.popitem(last=False)
        return found

    async def check(self, *, whole: bool) -> None:
        """What is lost or damaged is forgotten, so that it is made again."""
        for kept in list(self._known.values()):
            ref = kept.ref
            if ref is not None and not await asyncio.to_thread(
                self._at.maker.check, ref, whole=whole
            ):
                await self._lost(ref)

    async def _lost(self, ref: DeltaRef) -> None:
        job = DeltaJob(ref.tree, ref.base)
        self._log.decision(
            "delta made again", because="its file is gone or damaged", delta=ref.sha256[:12]
        )
        self._known.pop(job, None)
        self._at.maker.remove(ref.sha256)
        await self._at.store.drop([job])
        self.idle.clear()
        self._due.set()

    # What others ask.

    async def listing(self, channel: Channel) -> bytes:
        """The list that goes with a channel, encoded; empty when there is nothing to tell.

        A file that is not there, or has another head, is left out and made again. Raises
        nothing: a rollout goes on without.
        """
        names = b""
        with self._said_once():
            names = await self._listing(channel)
        return names

    async def _listing(self, channel: Channel) -> bytes:
        refs, stable, candidate = await self._refs_for(channel)
        chosen = deltas.listed(refs, stable.trees, candidate.trees)
        if self._looked_at.get(channel.fleet) != (channel.stable, channel.candidate):
            self.nudge()  # most publications move a wave, and leave the trees as they are
        texts = deltas.that_fit(
            text.encode() for text in dict.fromkeys((*candidate.documents, *stable.documents))
        )
        if not chosen and len(texts) < deltas.DOCUMENTS_WORTH:
            return b""
        return encode(DeltaList(chosen, texts))

    async def _refs_for(self, channel: Channel) -> tuple[list[DeltaRef], _Contents, _Contents]:
        stable = await self._contents(channel.stable)
        candidate = await self._contents(channel.candidate)
        found: list[DeltaRef] = []
        for kept in list(self._known.values()):
            if kept.ref is None or kept.tree not in stable.trees | candidate.trees:
                continue
            if self._at.maker.check(kept.ref, whole=False):
                found.append(kept.ref)
            else:
                await self._lost(kept.ref)
        return found, stable, candidate

    async def _tell(self) -> None:
        """Channels whose list lacks what has been made since are published again.

        Rarely, and nobody is woken by it: it is for nodes that come later, or wait for their
        window. Most of the time the next stage has published the list before.
        """
        publisher = self._at.publisher
        for fleet in publisher.fleets():
            channel = publisher.channel(fleet)
            if channel is None:
                continue
            refs, stable, candidate = await self._refs_for(channel)
            now = {r.sha256 for r in deltas.listed(refs, stable.trees, candidate.trees)}
            if now <= await self._published(channel):
                continue
            last = self._told.get(fleet)
            if last is None or self._clock.monotonic() - last >= TELL_AGAIN.total_seconds():
                self._told[fleet] = self._clock.monotonic()
                await self.say_again(fleet)

    async def _published(self, channel: Channel) -> frozenset[str]:
        """Digests of the deltas that a channel's list names."""
        if not channel.deltas:
            return frozenset()
        data = await self._at.publisher.document(channel.deltas, at_most=limits.DELTA_LIST)
        names = decode(data, DeltaList, what="delta list", at_most=limits.DELTA_LIST)
        return frozenset(ref.sha256 for ref in names.deltas)

    async def status(self) -> DeltaStatus:
        """What is there, under way, and waits; also of what was published a moment ago."""
        await self._look()
        now = self._clock.now()
        left = [job for job in self._known if job not in self._jobs]
        lines = [self._line(job, deltas.is_due(self._known.get(job), now)) for job in self._jobs]
        lines += [self._line(job, False) for job in sorted(left)]
        disk = sum(kept.ref.size for kept in self._known.values() if kept.ref is not None)
        return DeltaStatus(tuple(lines[: deltas.WANTED]), disk, self._settings.versions)

    def _line(self, job: DeltaJob, due: bool) -> DeltaLine:
        named = self._trees.get(job.tree, [])
        bases = self._trees.get(job.base, [])
        kept = self._known.get(job)
        base = next((one.version for one in reversed(bases)), job.base[:12])
        newest = named[-1] if named else None
        line = DeltaLine(
            newest.name if newest else "",
            newest.version if newest else job.tree[:12],
            tuple(sorted({one.platform for one in named if one.sequence == named[-1].sequence})),
            base,
            "Waiting" if due or kept is None else _STATES[kept.state],
            job.tree,
            job.base,
        )
        if kept is not None:
            line = msgspec.structs.replace(
                line, size=kept.ref.size if kept.ref else 0, plain=kept.plain,
                objects=kept.objects, why=kept.why,
                sha256=kept.ref.sha256 if kept.ref else "",
            )  # fmt: skip
        if self._making is not None and self._making.job == job:
            percent = 100 * self._making.done // max(1, self._making.total)
            line = msgspec.structs.replace(line, state="Making", percent=percent)
        return line

    def name_of(self, tree: str) -> str:
        """As ``hello 1.2.0``, for people."""
        named = self._trees.get(tree)
        return f"{named[-1].name} {named[-1].version}" if named else tree[:12]

    async def weigh(self, changes: Sequence[TreeChange]) -> tuple[TreeBytes, ...]:
        """What would travel for each, with the deltas that are ready now."""
        refs = [kept.ref for kept in self._known.values() if kept.ref is not None]
        found: list[TreeBytes] = []
        for change in changes:
            sizes: dict[str, Mapping[str, int]] = {}
            for tree in (*change.had, *change.new):
                if tree not in sizes:
                    with contextlib.suppress(NotFound, Untrusted):
                        sizes[tree] = await self._sizes_of(tree)
            found.append(deltas.weigh(change, sizes, refs))
        return tuple(found)

    async def collect(self) -> None:
        """Remove what nothing wants and no published list names; call it hourly."""
        await self._look()
        named: set[str] = set()
        for fleet in self._at.publisher.fleets():
            channel = self._at.publisher.channel(fleet)
            if channel is not None:
                named |= await self._published(channel)
        now = self._clock.now()
        gone = deltas.unwanted(list(self._known.values()), self._jobs.keys(), named, now)
        for job in gone:
            self._known.pop(job)
        await self._at.store.drop(gone)
        wanted = {kept.ref.sha256 for kept in self._known.values() if kept.ref} | named
        old = (now - deltas.KEPT_FOR).timestamp()
        for sha256, stored, _ in self._at.maker.kept():
            if sha256 not in wanted and stored < old:
                self._at.maker.remove(sha256)


_STATES: Final[Mapping[str, Any]] = {
    "Made": "Ready",
    "NotWorth": "NotWorth",
    "Trying": "Waiting",
    "Failed": "Failed",
}


def _apps(release: Release) -> Collection[str]:
    """Digests of the variants of parts that may have trees."""
    digests = dict.fromkeys(
        digest
        for ref in release.parts
        if ref.kind in ("app", "other")
        for digest in (*ref.variants.values(), *ref.nodes.values())
        if digest
    )
    return frozenset(list(digests)[:APPS_READ])
