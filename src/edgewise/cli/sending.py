"""Objects on their way to the hub: only what it lacks, small ones together, several at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from edgewise.cli.session import Session, size
from edgewise.model.errors import NotFound

if TYPE_CHECKING:
    from edgewise.cli.client import Client

AT_ONCE: Final = 4
"""Calls in flight, each over a connection that is kept: a hub packs and syncs meanwhile."""
SMALL: Final = 32 << 10
"""Bytes up to which a file travels together with others."""
TOGETHER: Final = 4 << 20
"""Bytes of small files in one call; in base64 a third more, within what the hub takes."""
FILES_TOGETHER: Final = 1000
ASKED_AT_ONCE: Final = 10_000
"""Digests in one question; 67 bytes each."""
TOLD_EVERY: Final = 10
"""Per cent of the bytes that are told anew."""

Batch = tuple[str, ...]
"""Digests that travel in one call."""


def send_objects(session: Session, client: Client, files: Mapping[str, Path]) -> tuple[int, int]:
    """Bytes sent and bytes in all, of contents and manifests. The hub is asked first which of
    them it lacks, so a sending that was interrupted goes on when it is begun again.

    After a mistake or Ctrl-C nothing more is begun, and what is on its way is broken off: the
    hub keeps only what came whole.
    """
    from edgewise.protocol.api import MissingObjects

    sizes = {one: file.stat().st_size for one, file in sorted(files.items())}
    missing: list[str] = []
    names = list(sizes)
    for at in range(0, len(names), ASKED_AT_ONCE):
        asked = MissingObjects(tuple(names[at : at + ASKED_AT_ONCE]))
        missing += client.post("/v1/objects/missing", asked, MissingObjects).sha256
    total = sum(sizes[one] for one in missing)
    if missing:
        session.note(f"sending {len(missing):,} of {len(sizes):,} objects ({size(total)})")
    sent, told = 0, 0
    for batch in _sent(client, files, batches(missing, sizes)):
        sent += sum(sizes[one] for one in batch)
        if sent < total and sent * 100 // total // TOLD_EVERY > told:
            told = sent * 100 // total // TOLD_EVERY
            session.note(f"  {size(sent)} of {size(total)}")
    return sent, sum(sizes.values())


def batches(missing: Iterable[str], sizes: Mapping[str, int]) -> Iterator[Batch]:
    """Which objects travel in one call: large ones alone, small ones together."""
    together: list[str] = []
    weight = 0
    for one in missing:
        if sizes[one] > SMALL:
            yield (one,)
            continue
        if together and (weight + sizes[one] > TOGETHER or len(together) >= FILES_TOGETHER):
            yield tuple(together)
            together, weight = [], 0
        together.append(one)
        weight += sizes[one]
    if together:
        yield tuple(together)


def _sent(client: Client, files: Mapping[str, Path], todo: Iterable[Batch]) -> Iterator[Batch]:
    """Send each batch; yields those that are there. Raises what the first failure was."""
    clients = [client.beside() for _ in range(AT_ONCE)]
    free: SimpleQueue[Client] = SimpleQueue()
    for one in clients:
        free.put(one)

    def send(batch: Batch) -> None:
        line = free.get()
        try:
            _send(line, files, batch)
        finally:
            free.put(line)

    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="send")
    running: dict[Future[None], Batch] = {}
    whole = False
    try:
        for batch in todo:
            running[pool.submit(send, batch)] = batch
            if len(running) > AT_ONCE:
                yield from _finished(running)
        while running:
            yield from _finished(running)
        whole = True
    finally:
        if not whole:
            for one in clients:
                one.abort()
        pool.shutdown(wait=True, cancel_futures=True)
        for one in clients:
            one.close()


def _finished(running: dict[Future[None], Batch]) -> Iterator[Batch]:
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for one in done:
        batch = running.pop(one)
        one.result()
        yield batch


def _send(client: Client, files: Mapping[str, Path], batch: Batch) -> None:
    from edgewise.protocol.api import ObjectsUpload

    if len(batch) > 1:
        contents = {one: files[one].read_bytes() for one in batch}
        try:
            client.command("/v1/objects", ObjectsUpload(contents))
        except NotFound:
            pass  # an older hub, which takes them one by one
        else:
            return
    for one in batch:
        client.put_file(f"/v1/objects/{one}", files[one])
