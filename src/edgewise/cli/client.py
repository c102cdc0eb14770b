"""The CLI's side of the operator's API: typed by protocol.api, errors as ours.

The standard library's HTTP client, because it loads in 20 ms and a command makes a few
calls. A Problem document becomes the same exception the hub raised, with its hint and
exit code.
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from edgewise.model.errors import (
    BadUsage,
    Conflict,
    EdgewiseError,
    Forbidden,
    NeedsPerson,
    NotFound,
    TryLater,
    Unauthenticated,
    Untrusted,
)
from edgewise.protocol.api import Page, Problem
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.operator import OperatorContext

T = TypeVar("T")

API_TOKEN = "EDGEWISE_API_TOKEN"
"""Variable with an API token; the context then only says where the hub is and its root."""
MAX_ANSWER = 64 << 20
_MAX_EVENT = 4 << 20
_CHUNK = 1 << 20
_CONNECT_S = 10.0
"""Seconds for connection and handshake: a hub that hangs is told apart from one that works."""
_GIT_STALLS_S = 120
"""Seconds without a byte after which git gives up; a push waits for the compile."""
_OURS: tuple[type[EdgewiseError], ...] = (
    BadUsage, Conflict, Forbidden, NeedsPerson, NotFound, Unauthenticated, Untrusted,
)  # fmt: skip
_BY_NAME: dict[str, type[EdgewiseError]] = {
    **{kind.__name__: kind for kind in _OURS},
    "MethodNotAllowed": BadUsage,
    "TooLarge": BadUsage,
    "TooSlow": TryLater,
}
_BY_CODE: dict[int, type[EdgewiseError]] = {2: BadUsage, 5: Untrusted}


class Context:
    """An OperatorContext with its files found."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise BadUsage(
                f"there is no hub context at {path}",
                hint="start a hub with `edgewise up`, or name one with --context FILE",
            ) from error
        except OSError as error:
            raise NeedsPerson(f"cannot read {path}: {error.strerror}") from error
        try:
            self.told = decode(data, OperatorContext, what=str(path))
        except Untrusted as error:
            raise BadUsage(
                f"{path} is no hub context: {error}",
                hint="name context.json of an operator's folder, or the hub's data directory",
            ) from error
        self._place(path.resolve().parent)

    @classmethod
    def of(cls, folder: Path, told: OperatorContext) -> Context:
        """One whose file is not written yet."""
        context = cls.__new__(cls)
        context.path, context.told = folder / "context.json", told
        context._place(folder)
        return context

    def _place(self, folder: Path) -> None:
        self.certificate = folder / self.told.certificate
        self.key = folder / self.told.key
        self.roots = folder / self.told.roots
        self.token = os.environ.get(API_TOKEN, "").strip()
        """An API token instead of the certificate, for CI."""

    @classmethod
    def find(cls, given: str = "") -> Context:
        """By ``--context``, EDGEWISE_CONTEXT, then ~/.edgewise/context.json.

        A directory stands for the hub's data directory. Raises BadUsage when there is none.
        """
        named = given or os.environ.get("EDGEWISE_CONTEXT", "")
        if named:
            path = Path(named).expanduser()
            below = (path / "context.json", path / "operator" / "context.json")
            return cls(next((one for one in below if one.exists()), path))
        home = Path("~/.edgewise").expanduser()
        own = home / "context.json"
        hub = home / "hub" / "operator" / "context.json"
        return cls(hub if not own.exists() and hub.exists() else own)

    def git_environment(self) -> dict[str, str]:
        """What makes git speak mutual TLS with the hub; variables win over git config."""
        if self.token:
            return {
                "GIT_SSL_CAINFO": str(self.roots),
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"http.{self.told.url.rstrip('/')}/.extraHeader",
                "GIT_CONFIG_VALUE_0": f"Authorization: Bearer {self.token}",
            }
        return {
            "GIT_SSL_CAINFO": str(self.roots),
            "GIT_SSL_CERT": str(self.certificate),
            "GIT_SSL_KEY": str(self.key),
            "GIT_HTTP_LOW_SPEED_LIMIT": "1",
            "GIT_HTTP_LOW_SPEED_TIME": str(_GIT_STALLS_S),
        }

    @property
    def git_url(self) -> str:
        """Where to push."""
        return f"{self.told.url.rstrip('/')}/git/fleet.git/"


class Client:
    """Calls to one hub. Raises TryLater when it cannot be reached."""

    def __init__(
        self,
        context: Context,
        *,
        timeout: timedelta = timedelta(seconds=60),
        anonymous: bool = False,
    ) -> None:
        """``anonymous``: before a login there is no certificate."""
        self.context = context
        self._anonymous = anonymous
        self._timeout = timeout.total_seconds()
        address = urlsplit(context.told.url)
        if address.scheme != "https" or not address.hostname:
            raise BadUsage(f"{context.told.url!r} in {context.path} is not like https://host:port")
        self._host, self._port = address.hostname, address.port or 443
        self._tls: ssl.SSLContext | None = None
        self._stopped = False
        self._open: http.client.HTTPSConnection | None = None

    def get(self, path: str, kind: type[T], **query: Any) -> T:
        """GET ``path``; ``query`` without its empty values."""
        return self._typed("GET", path + _query(query), None, kind)

    def post(self, path: str, body: msgspec.Struct | None, kind: type[T]) -> T:
        """POST ``body`` as canonical JSON."""
        return self._typed("POST", path, encode(body) if body is not None else b"", kind)

    def command(self, path: str, body: msgspec.Struct | None = None) -> None:
        """POST where the answer does not matter."""
        self._call("POST", path, encode(body) if body is not None else b"")

    def delete(self, path: str) -> None:
        """DELETE ``path``."""
        self._call("DELETE", path, None)

    def put_file(self, path: str, file: Path) -> None:
        """PUT a file's bytes, streamed."""
        with file.open("rb") as body:
            length = os.fstat(body.fileno()).st_size
            self._call("PUT", path, body, "application/octet-stream", length)

    def raw(self, path: str) -> tuple[bytes, Mapping[str, str]]:
        """GET bytes as they are, and the answer's headers in lower case."""
        return self._call("GET", path, None)

    def download(self, path: str, sink: IO[bytes], *, at_most: int) -> int:
        """GET bytes into ``sink``, streamed; returns how many. Raises Untrusted for more."""
        token = self.context.token
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self._send("GET", path, None, headers)
        seen = 0
        try:
            while chunk := answer.read(_CHUNK):
                seen += len(chunk)
                if seen > at_most:
                    self.close()
                    raise Untrusted(f"{path} has more than the {at_most:,} bytes it may have")
                sink.write(chunk)
        except http.client.HTTPException as error:
            self.close()
            raise self._unreachable(error) from error
        return seen

    def pages(self, path: str, kind: type[T], *, at_most: int = 10_000, **query: Any) -> Page[T]:
        """All items of a list, page by page, up to ``at_most``."""
        items: list[T] = []
        after: str | None = ""
        while after is not None and len(items) < at_most:
            limit = min(1000, at_most - len(items))
            page: Page[T] = self.get(path, Page[kind], **query, limit=limit, after=after)  # type: ignore[valid-type]
            items += page.items
            after = page.next if page.items else None
        return Page(tuple(items), after)

    def events(self, path: str, kind: type[T]) -> Iterator[T]:
        """Server-sent events until the hub ends them."""
        token = self.context.token
        answer = self._send(
            "GET", path, None, {"Authorization": f"Bearer {token}"} if token else {}
        )
        try:
            while line := answer.readline(_MAX_EVENT):
                if line.startswith(b"data: "):
                    yield decode(line[6:], kind, what=f"event of {path}", at_most=_MAX_EVENT)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            self.close()

    def reach(self) -> None:
        """Connect once, for what another program will do. Raises TryLater, Untrusted."""
        self._connection()
        self.close()

    def beside(self) -> Client:
        """Another connection to the same hub, for another thread."""
        return Client(self.context, anonymous=self._anonymous)

    def abort(self) -> None:
        """Break the call that another thread makes, and all to come: they raise TryLater."""
        self._stopped = True
        opened = self._open
        if opened is not None and opened.sock is not None:
            with suppress(OSError):
                opened.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection; the next call opens another."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _typed(self, method: str, path: str, body: bytes | None, kind: type[T]) -> T:
        data, _ = self._call(method, path, body)
        return decode(data, kind, what=f"answer of {method} {path}", at_most=MAX_ANSWER)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None,
        content: str = "application/json",
        length: int | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        headers = {"Content-Type": content} if body else {}
        if self.context.token and not self._anonymous:
            headers["Authorization"] = f"Bearer {self.context.token}"
        if length is not None:
            headers["Content-Length"] = str(length)
        answer = self._send(method, path, body, headers)
        try:
            data = answer.read(MAX_ANSWER + 1)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from error
        return data, {name.lower(): value for name, value in answer.getheaders()}

    def _send(
        self, method: str, path: str, body: bytes | IO[bytes] | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        for fresh in (self._open is None, True):
            connection = self._connection()
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                break
            except (OSError, http.client.HTTPException) as error:
                self.close()
                # A kept connection may have been closed by the hub; a new one tells.
                if fresh or method != "GET":
                    raise self._unreachable(error) from error
        if answer.status >= 400:
            data = answer.read(1 << 20)
            raise _error(data, answer.status, f"{method} {path}")
        return answer

    def _connection(self) -> http.client.HTTPSConnection:
        if self._stopped:
            raise TryLater("broken off")
        if self._open is None:
            opened = http.client.HTTPSConnection(
                self._host,
                self._port,
                timeout=min(_CONNECT_S, self._timeout),
                context=self._context(),
            )
            try:
                opened.connect()
                opened.sock.settimeout(self._timeout)
            except ssl.SSLError as error:
                raise Untrusted(
                    f"the hub at {self._host}:{self._port} did not prove itself: {error.reason}",
                    hint=f"{self.context.path} may be of another hub; run `edgewise doctor`",
                ) from error
            except OSError as error:
                raise self._unreachable(error) from error
            self._check_hub(opened)
            self._open = opened
        return self._open

    def _check_hub(self, opened: http.client.HTTPSConnection) -> None:
        tls = opened.sock
        fields: Any = tls.getpeercert() if isinstance(tls, ssl.SSLSocket) else None
        names = [value for kind, value in (fields or {}).get("subjectAltName", ()) if kind == "URI"]
        if names != [self.context.told.hub]:
            opened.close()
            raise Untrusted(
                f"{self._host}:{self._port} is {names or 'nobody'}, not {self.context.told.hub}"
            )

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            tls.minimum_version = ssl.TLSVersion.TLSv1_3
            tls.check_hostname = False  # the SPIFFE ID is checked instead
            try:
                tls.load_verify_locations(str(self.context.roots))
                if not self._anonymous and not self.context.token:
                    tls.load_cert_chain(str(self.context.certificate), str(self.context.key))
            except (OSError, ssl.SSLError) as error:
                raise NeedsPerson(
                    f"the certificate files beside {self.context.path} cannot be used: {error}",
                    hint="`edgewise login` again, or copy the hub's operator folder, whole",
                ) from error
            self._tls = tls
        return self._tls

    def _unreachable(self, error: Exception) -> TryLater:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, TimeoutError):
            why = "it does not answer in time"
        return TryLater(
            f"cannot reach the hub at {self.context.told.url}: {why}",
            hint="is it running? `edgewise up` starts it",
        )


def segment(text: str) -> str:
    """One path segment from what a person typed. Raises BadUsage for nothing at all."""
    if not text:
        raise BadUsage("an empty name names nothing", hint="`edgewise status` shows what there is")
    return quote(text, safe="")


def _query(query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value not in ("", None)}
    return f"?{urlencode(given)}" if given else ""


def _error(data: bytes, status: int, call: str) -> EdgewiseError:
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except msgspec.DecodeError:
        return TryLater(f"{call}: the hub answered {status}: {data[:200].decode(errors='replace')}")
    name = problem.type.rpartition("/")[2]
    if name == "TryLater" or (name not in _BY_NAME and problem.exit_code == 3):
        wait = timedelta(seconds=problem.retry_after_s)
        return TryLater(problem.detail, wait=wait, hint=problem.hint)
    kind = _BY_NAME.get(name) or _BY_CODE.get(problem.exit_code, NeedsPerson)
    return kind(problem.detail, hint=problem.hint)
