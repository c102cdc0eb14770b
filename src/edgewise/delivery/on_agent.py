"""What delivery does on a node, in the short-lived worker: fetch and stage a release.

Laws: nothing that arrived is used before a signed digest spoke for it; whatever fails, what
is installed stays as it is. What the hub says is checked by ``Trust`` (backends.tuf.client).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any, Final

import msgspec

from edgewise.delivery import packing
from edgewise.delivery.plan import RESERVE, Copy, Whole, check_space, packed_total, plan_fetch
from edgewise.delivery.ports import NodeFiles, Source, Trust
from edgewise.delivery.trees import refuse_privilege
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
    NotActedOn,
    Part,
    ProcessApp,
    Release,
    SealedSecret,
    Tree,
    WorkloadRegistration,
    object_path,
)
from edgewise.protocol.egress import EgressRules
from edgewise.protocol.installed import (
    Installed,
    InstalledApp,
    InstalledConfig,
    InstalledEgress,
    InstalledIdentity,
    InstalledSecret,
)

SMALL: Final = 256 << 10
"""Packed bytes held in memory; what grows beyond goes to a file that can be resumed."""
TRIES: Final = 5
"""Times that a download which breaks off is taken up again, as long as each brings bytes."""
SEALED: Final = 1 << 20
"""A sealed secret: Kubernetes' bound for a Secret."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a release is fetched."""

    platform: str
    """``linux/arm64``."""
    progress: Callable[[int, int], None] = lambda done, total: None
    """Called with unpacked bytes that are here and that were planned."""
    at_once: int = 8
    """Downloads at the same time; many small files are bound by round trips."""
    reserve: int = RESERVE


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
        return await _Fetch(record, terms, store, source).run(release, length)


class _Fetch:
    """One release on its way."""

    def __init__(self, record: NodeRecord, terms: Terms, store: NodeFiles, source: Source) -> None:
        self._record = record
        self._terms = terms
        self._store = store
        self._source = source
        self._travelled = 0
        self._sizes: dict[str, int] = {}
        self._extra = 0

    async def run(self, release: str, length: int) -> Installed:
        for known in self._store.installed():
            self._sizes |= self._store.packed_sizes(known.release)
        installed, trees = await self._documents(release, length)
        already = self._store.staged(release)
        if (
            already is not None
            and msgspec.structs.replace(already, bytes_fetched=0, bytes_full=0) == installed
        ):
            return already
        entries = [entry for tree in trees.values() for entry in tree.entries]
        await self._files(entries)
        installed = msgspec.structs.replace(
            installed,
            bytes_fetched=self._travelled,
            bytes_full=self._extra + packed_total(self._sizes, entries),
        )
        self._store.begin(release)
        for name, tree in trees.items():
            self._store.lay_out(release, f"apps/{name}", tree)
        self._store.finish(installed, self._sizes_of(entries))
        return installed

    def _sizes_of(self, entries: list[Entry]) -> dict[str, int]:
        return {e.sha256: self._sizes[e.sha256] for e in entries if e.sha256 in self._sizes}

    # Documents

    async def _documents(self, release: str, length: int) -> tuple[Installed, dict[str, Tree]]:
        document = await self._document(
            release, Release, min(length, limits.RELEASE), f"release {release[:12]}"
        )
        try:
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
        tree = await self._document(ref.sha256, Tree, limits.TREE, f"tree of {app.name}")
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
        return decode(await self._bytes(sha256, at_most), kind, what=what, at_most=at_most)

    async def _bytes(self, sha256: str, at_most: int) -> bytes:
        data = self._store.document(sha256)
        if data is None:
            collected: list[bytes] = []

            def keep(content: Iterator[bytes]) -> None:
                collected[:] = content

            await self._object(sha256, at_most, keep)
            data = b"".join(collected)
            self._store.keep_document(sha256, data)
        self._extra += self._sizes.get(sha256, len(data))
        return data

    # Files

    async def _files(self, entries: list[Entry]) -> None:
        plan = plan_fetch(entries, self._store.kept)
        if not all([self._store.verify(*kept) for kept in plan.check]):
            plan = plan_fetch(entries, self._store.kept)
        free, inodes = self._store.free_bytes(), self._store.free_inodes()
        check_space(plan, free, inodes, reserve=self._terms.reserve)
        waiting = iter([step for step in plan.steps if isinstance(step, Whole)])
        done = 0
        failed: list[EdgewiseError] = []

        async def work() -> None:
            nonlocal done
            for step in waiting:
                if failed:
                    return
                try:
                    await self._whole(step)
                except EdgewiseError as error:
                    failed.append(error)
                    return
                done += step.entry.size
                self._terms.progress(done, plan.fetch_bytes)

        async with asyncio.TaskGroup() as workers:
            for _ in range(self._terms.at_once):
                workers.create_task(work())
        if failed:
            raise failed[0]
        for step in plan.steps:
            if isinstance(step, Copy):
                self._store.copy(step.entry.sha256, step.have, step.entry.attributes)

    async def _whole(self, step: Whole) -> None:
        entry = step.entry

        def keep(content: Iterator[bytes]) -> None:
            self._store.keep_file(entry.sha256, step.variants[0], content)

        await self._object(entry.sha256, entry.size, keep)
        for attributes in step.variants[1:]:
            self._store.copy(entry.sha256, step.variants[0].key, attributes)

    # Objects

    async def _object(
        self, sha256: str, at_most: int, keep: Callable[[Iterator[bytes]], None]
    ) -> None:
        """Download one object and hand its content, as it is unpacked, to ``keep``.

        ``keep`` keeps nothing unless its iterator ends by itself, that is verified.
        """
        if self._store.has_partial(sha256):
            try:
                return self._unpack_partial(sha256, at_most, keep)
            except Untrusted:
                # Not whole yet, as a rule: go on from where it broke off.
                if self._store.has_partial(sha256) >= packing.packed_bound(at_most):
                    self._store.drop_partial(sha256)
        try:
            await self._download(sha256, at_most, keep)
        except Untrusted:
            self._store.drop_partial(sha256)
            await self._download(sha256, at_most, keep)

    async def _download(
        self, sha256: str, at_most: int, keep: Callable[[Iterator[bytes]], None]
    ) -> None:
        try:
            held = await self._receive(sha256, packing.packed_bound(at_most))
            if held is None:
                self._unpack_partial(sha256, at_most, keep)
            else:
                keep(packing.unpacked(BytesIO(held), sha256, at_most=at_most))
                self._sizes[sha256] = len(held)
        except Untrusted:
            self._store.drop_partial(sha256)
            raise

    def _unpack_partial(
        self, sha256: str, at_most: int, keep: Callable[[Iterator[bytes]], None]
    ) -> None:
        with self._store.partial(sha256) as file:
            file.seek(0)
            keep(packing.unpacked(file, sha256, at_most=at_most))
            self._sizes[sha256] = file.seek(0, os.SEEK_END)
        self._store.drop_partial(sha256)

    async def _receive(self, sha256: str, bound: int) -> bytes | None:
        """The packed bytes; None when they are in the partial file."""
        for left in reversed(range(TRIES)):
            before = self._travelled
            try:
                return await self._receive_once(sha256, bound)
            except TryLater:
                if not left or self._travelled == before:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _receive_once(self, sha256: str, bound: int) -> bytes | None:
        start = self._store.has_partial(sha256)
        held = bytearray()
        spilled = start > 0
        try:
            chunks = self._source.read(object_path(sha256), at_most=bound - start, start=start)
            async for chunk in chunks:
                self._travelled += len(chunk)
                held += chunk
                if spilled or len(held) > SMALL:
                    self._spill(sha256, held)
                    spilled = True
        except TryLater:
            if held:
                self._spill(sha256, held)
            raise
        except NotFound as error:
            raise TryLater(f"the source does not have object {sha256[:12]} (yet)") from error
        return None if spilled else bytes(held)

    def _spill(self, sha256: str, held: bytearray) -> None:
        with self._store.partial(sha256) as file:
            _append(file, held)
        held.clear()


def _append(file: IO[bytes], data: bytearray) -> None:
    file.seek(0, os.SEEK_END)
    file.write(data)


async def read_all(source: Source, path: str, *, at_most: int) -> bytes:
    """A small file, whole. Raises what ``Source.read`` raises."""
    return b"".join([chunk async for chunk in source.read(path, at_most=at_most)])
