"""Heads of HTTP/1.1 messages, as a proxy reads and writes them (RFC 9112, RFC 9110 7.6). Pure.

Laws: whatever two readers could understand differently is refused (two lengths, a length and
a coding, folded lines, bare CR or LF, a space before a colon, a Host that is not the URL's);
hop-by-hop fields never pass; what leaves was framed by us, not by whoever sent it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from edgewise.identity.egress import canonical_host

HEAD: Final = 32 << 10
"""Bytes of one head. Browsers and servers stop between 8 and 64 KiB."""
FIELDS: Final = 100
"""Lines of one head."""
AUTHORITIES_KEPT: Final = 512
"""Parsed host names remembered; all go when it is full."""

CHUNKED: Final = -1
"""As a length: the body is chunked."""
TO_END: Final = -2
"""As a length: the body ends with the connection (answers only)."""

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_REQUEST: Final = re.compile(rb"(" + _TOKEN + rb"{1,32}) ([!-~]{1,16384}) HTTP/1\.([01])")
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")
_WHOLE: Final = re.compile(rb"[^\n]*+(?:\n" + _TOKEN + rb"++:[\t\x20-\x7e\x80-\xff]*+\r)*+\n\r\n")
"""A head with its final empty line: no folded line, no bare CR or LF, no space in a name."""
_SPECIAL: Final = re.compile(
    rb"\n(connection|content-length|expect|host|http2-settings|keep-alive|proxy-connection|"
    rb"proxy-authorization|proxy-authenticate|te|trailer|transfer-encoding|upgrade)"
    rb":[ \t]*([^\r]*)\r"
)
"""Fields that end here: hop-by-hop, or written anew. Searched in the head in lower case."""
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")
_AUTHORITY: Final = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\\]+)(?::([0-9]{1,5}))?")

Fields = dict[bytes, bytes]
"""By name, both in lower case; several lines of one name are joined by commas."""

_EXPECTED: Final = frozenset({b"close", b"keep-alive", b"upgrade", b"te", b""})
_NEVER_NAMED: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie", b"via"}
)
"""Connection must not name these: removing them would change what the far end sees."""
_ONCE: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"upgrade", b"expect"})


class Malformed(Exception):
    """A message that breaks the rules; ``status`` is the answer to a client."""

    def __init__(self, what: str, status: int = 400) -> None:
        super().__init__(what)
        self.status = status


@dataclass(slots=True)
class Request:
    """One request's head."""

    method: str
    host: str
    port: int
    default_port: bool
    authority: bytes
    """As written; what the far end is told as Host."""
    path: bytes
    """With its query; empty for CONNECT."""
    minor: int
    """Of HTTP/1.x."""
    fields: bytes
    """Lines that go on as they are, each with its line end."""
    length: int
    """Of the body, or CHUNKED."""
    keep: bool
    """Whether the client wants to send another one afterwards."""
    expects: bool
    """It waits for 100 (Continue) before it sends its body."""
    websocket: bool
    """It asks for Upgrade: websocket. Other protocols are not offered on."""
    secure: bool
    """Its URL was https, though it came to us in plain."""

    def rendered(self) -> bytes:
        """The head for the far end, which is asked to keep the connection."""
        extra = b""
        if self.length > 0:
            extra = b"content-length: %d\r\n" % self.length
        elif self.length == CHUNKED:
            extra = b"transfer-encoding: chunked\r\n"
        elif self.method in ("POST", "PUT", "PATCH"):
            extra = b"content-length: 0\r\n"
        if self.expects:
            extra += b"expect: 100-continue\r\n"
        if self.websocket:
            extra += b"connection: upgrade\r\nupgrade: websocket\r\n"
        return b"%b %b HTTP/1.1\r\nhost: %b\r\n%b%bvia: 1.%d edgewise\r\n\r\n" % (
            self.method.encode(),
            self.path,
            self.authority,
            self.fields,
            extra,
            self.minor,
        )


@dataclass(slots=True)
class Answer:
    """One answer's head."""

    status: int
    phrase: bytes
    fields: bytes
    length: int
    """Of the body, CHUNKED or TO_END."""
    keep: bool
    """Whether the far end keeps the connection."""
    websocket: bool
    content_length: bytes
    """As the far end said it; for HEAD and 304, whose length is not that of a body."""

    def rendered(self, *, chunked: bool, close: bool) -> bytes:
        """The head for the client."""
        extra = b""
        if chunked:
            extra = b"transfer-encoding: chunked\r\n"
        elif self.content_length:
            extra = b"content-length: %b\r\n" % self.content_length
        if self.status == 101:
            extra += b"connection: upgrade\r\nupgrade: websocket\r\n"
        elif close:
            extra += b"connection: close\r\n"
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (self.status, self.phrase, self.fields, extra)


def read_request(head: bytes) -> Request:
    """From a head with its final empty line. Raises Malformed."""
    line = head[: head.index(b"\r\n")]
    match = _REQUEST.fullmatch(line)
    if match is None:
        raise Malformed(f"not an HTTP/1.1 request line: {line[:60]!r}")
    method, target, version = match.groups()
    minor = version[0] - 48
    special, fields = _fields(head, len(line) + 2)
    authority, path, scheme = _target(method, target, special.get(b"host", b""))
    host, port, default_port = _authority(authority, scheme)
    length = _length(special, minor)
    if length == TO_END:
        length = 0
    tokens = _tokens(special)
    keep = minor == 1
    if tokens is not None:
        keep = _keeps(tokens, minor)
        if not tokens <= _EXPECTED:
            fields = _without_named(tokens, fields)
    expects = websocket = False
    if b"expect" in special:
        if special[b"expect"].strip() != b"100-continue":
            raise Malformed("an expectation that nobody can meet", 417)
        expects = minor == 1 and length != 0
    if tokens is not None and b"upgrade" in tokens:
        protocol = special.get(b"upgrade", b"").strip()
        websocket = protocol == b"websocket" and method == b"GET" and length == 0 and minor == 1
    if method == b"CONNECT" and length:
        raise Malformed("a CONNECT with a body")
    return Request(
        method.decode(), host, port, default_port, authority, path, minor, fields, length, keep,
        expects, websocket, scheme == "https",
    )  # fmt: skip


def read_answer(head: bytes, method: str) -> Answer:
    """From a head with its final empty line, to a request with this method.

    Raises Malformed.
    """
    line = head[: head.index(b"\r\n")]
    match = _STATUS.fullmatch(line)
    if match is None:
        raise Malformed(f"not an HTTP/1.1 status line: {line[:60]!r}")
    version, code, phrase = match.groups()
    minor, status = version[0] - 48, int(code)
    special, fields = _fields(head, len(line) + 2)
    length = _length(special, minor)
    said = special.get(b"content-length", b"")
    if status < 200 or status == 204:
        length, said = 0, b""
    elif status == 304 or method == "HEAD":
        length = 0
    tokens = _tokens(special)
    keep = minor == 1
    if tokens is not None:
        keep = _keeps(tokens, minor)
        if not tokens <= _EXPECTED:
            fields = _without_named(tokens, fields)
    upgrade = special.get(b"upgrade", b"").strip() if status == 101 else b""
    return Answer(
        status, phrase or b"", fields, length, keep and length != TO_END, upgrade == b"websocket",
        said,
    )  # fmt: skip


def _fields(head: bytes, begin: int) -> tuple[Fields, bytes]:
    """Fields that end here, and the lines of the others as they are.

    ``begin`` is where the first line has ended.
    """
    if _WHOLE.fullmatch(head) is None:
        raise Malformed("a malformed header line")
    if head.count(b"\n") > FIELDS + 2:
        raise Malformed(f"more than {FIELDS} header lines", 431)
    special: Fields = {}
    passed: list[bytes] = []
    for match in _SPECIAL.finditer(head.lower(), begin - 1):
        name, value = match.groups()
        start = match.start() + 1
        if start > begin:
            passed.append(head[begin:start])
        begin = match.end() + 1
        if name in special:
            if name in _ONCE:
                raise Malformed(f"{name.decode()} twice")
            value = b"%b,%b" % (special[name], value)
        special[name] = value
    passed.append(head[begin:-2])
    return special, b"".join(passed)


def _tokens(special: Fields) -> frozenset[bytes] | None:
    """What Connection (and what some clients say to proxies instead) lists; None for nothing."""
    said = special.get(b"connection")
    proxy = special.get(b"proxy-connection")
    if proxy is not None:
        said = proxy if said is None else b"%b,%b" % (said, proxy)
    if said is None:
        return None
    known = _lists.get(said)
    if known is None:
        known = frozenset(token.strip(b" \t") for token in said.split(b","))
        if len(_lists) >= AUTHORITIES_KEPT:
            _lists.clear()
        _lists[said] = known
    return known


def _without_named(tokens: frozenset[bytes], fields: bytes) -> bytes:
    """Connection names further fields that end here (RFC 9110, section 7.6.1)."""
    if tokens & _NEVER_NAMED:
        raise Malformed("Connection names a field that may not be removed")
    lines = fields.splitlines(keepends=True)
    return b"".join(line for line in lines if line.partition(b":")[0].lower() not in tokens)


def _keeps(tokens: frozenset[bytes], minor: int) -> bool:
    return b"close" not in tokens and (minor == 1 or b"keep-alive" in tokens)


def _length(special: Fields, minor: int) -> int:
    """RFC 9112, section 6.3, without its leniencies."""
    coding = special.get(b"transfer-encoding")
    length = special.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Malformed("both Content-Length and Transfer-Encoding")
        if coding.strip(b" \t") != b"chunked" or minor == 0:
            raise Malformed(f"Transfer-Encoding {coding[:40]!r} is not just chunked", 501)
        return CHUNKED
    if length is None:
        return TO_END
    if _NUMBER.fullmatch(length.strip(b" \t")) is None:
        raise Malformed(f"Content-Length {length[:40]!r} is not one number")
    return int(length)


def _target(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes, str]:
    """Authority, path and scheme of the request target (RFC 9112, section 3.2)."""
    if method == b"CONNECT":
        if host and host != target and _plain(host) != _plain(target):
            raise Malformed("Host is not what CONNECT names")
        return target, b"", "tunnel"
    if target[:1] == b"/":
        if not host:
            raise Malformed("neither a whole URL nor a Host")
        return host.rstrip(b" \t"), target, "http"
    scheme, _, rest = target.partition(b"://")
    if scheme not in (b"http", b"https"):
        raise Malformed("the request target is no http:// or https:// URL")
    authority, slash, path = rest.partition(b"/")
    if b"?" in authority or b"#" in rest:
        authority, slash, path = _split(rest)
    if host and host != authority and _plain(host) != _plain(authority):
        raise Malformed("Host is not the URL's host")
    return authority, slash + path or b"/", "http" if scheme == b"http" else "https"


def _split(rest: bytes) -> tuple[bytes, bytes, bytes]:
    """For a URL with a query right after its host (RFC 9112 asks for a path there)."""
    if b"#" in rest:
        raise Malformed("a fragment in the request target")
    authority, _, query = rest.partition(b"?")
    return authority, b"/?", query


def _plain(authority: bytes) -> bytes:
    low = authority.lower().rstrip(b" \t")
    for port in (b":80", b":443"):
        low = low.removesuffix(port)
    return low.removesuffix(b".")


_lists: dict[bytes, frozenset[bytes]] = {}
_known: dict[tuple[bytes, str], tuple[str, int, bool]] = {}


def _authority(authority: bytes, scheme: str) -> tuple[str, int, bool]:
    key = (authority, scheme)
    known = _known.get(key)
    if known is not None:
        return known
    match = _AUTHORITY.fullmatch(authority)
    host = canonical_host(match[1].decode("latin-1")) if match is not None else None
    if match is None or host is None:
        raise Malformed(f"{authority[:80]!r} is no host")
    if match[2] is None and scheme == "tunnel":
        raise Malformed("CONNECT without a port")
    port = int(match[2] or (b"443" if scheme == "https" else b"80"))
    if not 0 < port < 65536:
        raise Malformed(f"port {port} does not exist")
    if len(_known) >= AUTHORITIES_KEPT:
        _known.clear()
    found = (host, port, match[2] is None and scheme == "http")
    _known[key] = found
    return found
