"""A bucket as the place of a mirror: ``s3://bucket/prefix``.

Credentials and region come from where every tool has them: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, or the machine's role.
Needs the extra ``edgewise[s3]`` (obstore).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from edgewise.model.errors import BadUsage, EdgewiseError, NeedsPerson, NotFound, TryLater

if TYPE_CHECKING:
    from obstore.store import S3Store

AT_ONCE: Final = 16
"""Uploads in flight: many small files are bound by round trips. Each holds at most two parts."""
PART: Final = 8 << 20
"""Bytes of one part of a larger upload; what is smaller goes in one request."""
PARTS_AT_ONCE: Final = 2
RETRIES: Final = 6
PATIENCE: Final = timedelta(minutes=2)
"""For one request, with its retries."""
LISTED_AT_ONCE: Final = 1000
"""Names in one answer, as S3 gives at most."""
IMMUTABLE: Final = "public, max-age=31536000, immutable"
FRESH: Final = "no-cache"
TYPES: Final = {".json": "application/json", ".zst": "application/zstd"}
EXTRA: Final = "pip install 'edgewise[s3]'"
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/([!-~]*))?")
_XML = re.compile(r"<Code>([A-Za-z]+)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


class Copied(Protocol):
    """One file to bring, as ``backends.files.mirroring.Copy``."""

    @property
    def path(self) -> str:
        """Below the root."""

    @property
    def source(self) -> Path:
        """Where its bytes lie."""


C = TypeVar("C", bound=Copied)


class BucketTarget:
    """``backends.files.mirroring.MirrorTarget`` in a bucket.

    Raises NeedsPerson where the store says no, TryLater where it cannot be reached.
    """

    def __init__(self, url: str, endpoint: str = "") -> None:
        """``endpoint``: of a store that is not Amazon's. Raises BadUsage, and NeedsPerson without
        the extra."""
        found = _URL.fullmatch(url)
        if found is None:
            raise BadUsage(f"{url!r} is not like s3://bucket/prefix")
        if endpoint and not re.fullmatch(r"https?://[!-~]+", endpoint):
            raise BadUsage(f"{endpoint!r} is not like https://s3.example")
        try:
            from obstore.store import S3Store
        except ImportError as error:
            raise NeedsPerson("object stores need the extra `s3`", hint=EXTRA) from error
        self.url = url
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            endpoint = endpoint or os.environ.get(name, "")
        more = {"endpoint": endpoint} if endpoint else {}
        prefix = (found[2] or "").strip("/")
        with _Told(self.url):
            self._store: S3Store = S3Store(
                found[1],
                prefix=prefix or None,
                client_options={"allow_http": endpoint.startswith("http://"), "timeout": PATIENCE},
                retry_config={"max_retries": RETRIES, "retry_timeout": PATIENCE},
                **more,  # type: ignore[arg-type]
            )
        self._tags: dict[str, str] = {}

    def sizes(self) -> dict[str, int]:
        """See ``MirrorTarget``."""
        import obstore

        found: dict[str, int] = {}
        with _Told(self.url):
            for page in obstore.list(self._store, chunk_size=LISTED_AT_ONCE):
                for one in page:
                    found[one["path"]] = one["size"]
                    if one["path"].startswith("tuf/"):
                        self._tags[one["path"]] = one["e_tag"] or ""
        return found

    def same(self, path: str, data: bytes) -> bool:
        """See ``MirrorTarget``. By the ETag, which is the MD5 of what was put in one request,
        unless the store encrypts with a key of its own: then it is not known."""
        tag = _MD5.fullmatch(self._tags.get(path, ""))
        return tag is not None and tag[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()

    def bring(self, copies: Iterable[C]) -> Iterator[C]:
        """See ``MirrorTarget``: several at once. After a mistake nothing more is begun."""
        running: dict[Future[bool], C] = {}
        pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="upload")
        try:
            for copy in copies:
                running[pool.submit(self._put, copy.path, copy.source)] = copy
                if len(running) >= 2 * AT_ONCE:
                    yield from _finished(running)
            while running:
                yield from _finished(running)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def replace(self, path: str, data: bytes) -> None:
        """See ``MirrorTarget``."""
        self._put(path, data)

    def remove(self, paths: Iterable[str]) -> None:
        """See ``MirrorTarget``."""
        import obstore

        with _Told(self.url):
            obstore.delete(self._store, list(paths))

    def _put(self, path: str, source: Path | bytes) -> bool:
        """False when the source is gone."""
        import obstore

        kind = TYPES.get(Path(path).suffix, "application/octet-stream")
        fresh = path == "tuf/timestamp.json"
        try:
            file = source if isinstance(source, bytes) else source.open("rb")
        except FileNotFoundError:
            return False
        try:
            with _Told(self.url):
                obstore.put(
                    self._store,
                    path,
                    file,
                    attributes={
                        "Content-Type": kind,
                        "Cache-Control": FRESH if fresh else IMMUTABLE,
                    },
                    chunk_size=PART,
                    max_concurrency=PARTS_AT_ONCE,
                )
        finally:
            if not isinstance(file, bytes):
                file.close()
        return True


def _finished(running: dict[Future[bool], C]) -> Iterator[C]:
    """Wait for one at least; raises what went wrong with it."""
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    for one in done:
        copy = running.pop(one)
        if one.result():
            yield copy


class _Told:
    """Turns what the library raises into our errors."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from obstore import exceptions

        if isinstance(error, FileNotFoundError):
            raise NotFound(f"{self._url}: {_first(error)}", hint="is there such a bucket?")
        if isinstance(error, exceptions.BaseError):
            raise _ours(self._url, error) from error


def _ours(url: str, error: Exception) -> EdgewiseError:
    from obstore import exceptions

    said = _first(error)
    if said.startswith("NoSuchBucket"):
        return NotFound(f"{url}: {said}", hint="make the bucket first, or name another")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return NeedsPerson(
            f"{url} may not be written or listed: {said}",
            hint="allow s3:ListBucket, s3:PutObject and s3:DeleteObject there (docs/cdn.md)",
        )
    if "InvalidAccessKeyId" in said or "SignatureDoesNotMatch" in said or "169.254" in said:
        return NeedsPerson(
            f"{url}: no credentials that the store believes: {said}",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with the machine's role",
        )
    return TryLater(f"{url}: {said}", hint="what is there already is not sent again")


def _first(error: BaseException) -> str:
    """What the store itself said, else the library's message without its debug dump."""
    text = str(error).partition("\n\nDebug source:")[0].strip()
    found = _XML.search(text)
    return f"{found[1]}: {found[2]}"[:400] if found else text[:400]
