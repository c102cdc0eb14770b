"""What a route is: a typed function, who may call it, and what can go wrong.

The server (net/server.py) and the API description (net/openapi.py) both read these, so
neither can drift from what is served.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from edgewise.identity.people import NOBODY, Rights
from edgewise.model.errors import BadUsage, EdgewiseError, Forbidden
from edgewise.model.names import SpiffeId
from edgewise.model.roles import Role
from edgewise.protocol import limits
from edgewise.protocol.api import Page

Caller = Literal["anyone", "hub", "relay", "node", "user"]
Needs = Role | Literal["self"]
"""A person's role; ``self``: any person who has logged in, about itself."""
Reach = Literal["everything", "nodes"]
"""``everything``: the call concerns the whole organisation, so the role must be unlimited.
``nodes``: the call itself asks ``call.rights`` about each node, fleet or rollout it is about."""
Body = TypeVar("Body")
T = TypeVar("T")

ANYONE: frozenset[Caller] = frozenset({"anyone"})
PEOPLE: frozenset[Caller] = frozenset({"user", "hub"})
MEMBERS: frozenset[Caller] = frozenset({"user", "hub", "relay", "node"})


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of the connection."""

    id: SpiffeId | None
    """From the verified client certificate; None without one."""
    expires: datetime | None = None
    address: str = ""
    serial: str = ""
    """Of the certificate, lower-case hex: renewals show it (identity.rotation)."""
    token: str = ""
    """Identifier of the API token that the caller proved itself with, instead of a certificate."""
    rights: Rights = NOBODY
    """What a person may do; machines have none and need none."""
    ended: str = ""
    """Why a person's proof counts no more, for its next call."""

    @property
    def role(self) -> str:
        """``hub``, ``relay``, ``node``, ``user``, ``app`` or ``anyone``."""
        return self.id.role if self.id else "anyone"

    def required(self) -> SpiffeId:
        """The SPIFFE ID; raises Forbidden where the peer has none."""
        if self.id is None:
            raise Forbidden("this call needs a client certificate")
        return self.id

    def __str__(self) -> str:
        if self.id is None:
            return f"anyone at {self.address}"
        return f"{self.id} (api-token {self.token})" if self.token else str(self.id)


class NoQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For routes without query parameters."""


class Paging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The query of every list."""

    limit: int = 100
    """1 to 1000 items."""
    after: str = ""
    """``next`` of the previous page."""

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= 1000:
            raise ValueError(f"limit {self.limit} is not between 1 and 1000")


@dataclass(frozen=True, slots=True)
class Call(Generic[Body]):
    """One request, decoded and authorised."""

    peer: Peer
    body: Body
    path: Mapping[str, str]
    query: Any
    """Of the route's query type."""
    headers: Mapping[str, str]
    stream: Callable[[], AsyncIterator[bytes]]
    """The body's bytes, for routes with ``streams``; bounded by ``at_most``."""
    raw: bytes = b""
    """The body as it came, for routes that check a signature over it."""

    @property
    def rights(self) -> Rights:
        """What the caller may do."""
        return self.peer.rights


@dataclass(frozen=True, slots=True)
class Bytes:
    """An answer that is encoded already."""

    data: bytes
    content_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Events:
    """Server-sent events: each item is one event's data; the server adds heartbeats."""

    items: AsyncIterator[Any]


@dataclass(frozen=True, slots=True)
class FileAnswer:
    """A file, served with Range and ETag."""

    path: Path
    content_type: str
    cache_control: str
    etag: str = ""
    """Without quotes; empty: of its size and time."""


Answer = Callable[[Call[Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the API."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    """``{name}`` stands for one segment, ``{name*}`` (last only) for the rest."""
    summary: str
    answer: Answer
    """Returns a value of the response type, Bytes, Events, a file (FileAnswer,
    net.contents.ContentAnswer), or None (204)."""
    allow: frozenset[Caller]
    """Machines by their kind, and ``user`` for people; what a person needs is ``needs``."""
    request: Any = None
    response: Any = None
    query: type[msgspec.Struct] = NoQuery
    description: str = ""
    errors: tuple[type[EdgewiseError], ...] = ()
    at_most: int = limits.API_BODY
    """Bytes of the request body."""
    status: int = 200
    streams: bool = False
    """The body is not read before the call; the answer takes it from ``call.stream``."""
    content_type: str = "application/json"
    """Of the answer."""
    also: tuple[int, ...] = ()
    """Other good statuses: 204 for a long poll without news."""
    accepts: str = "application/json"
    needs: Needs | None = None
    """The role that a person must have; None where no person may call, or anyone may."""
    reach: Reach = "everything"
    """Over what the role must be held."""
    tokens: bool = True
    """Whether an API token is proof enough."""
    held: bool = False
    """A poll of many that are held at once (net.poll_lines): POST, and the answer is Bytes or
    None. Such a call has no headers, no stream and no raw body."""
    changes: bool | None = None
    """Whether it changes anything; None: as the method says. Such calls are audited."""

    @property
    def files(self) -> bool:
        """Whether it answers with files: then HEAD works as well."""
        return self.method == "GET" and self.response is bytes

    @property
    def mutates(self) -> bool:
        """Whether a call changes anything."""
        return self.method != "GET" if self.changes is None else self.changes

    def pattern(self) -> re.Pattern[str]:
        """What its paths look like."""
        text = re.escape(self.path).replace(r"\{", "{").replace(r"\}", "}").replace(r"\*", "*")
        text = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", text)
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", text))

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of its path parameters, in order."""
        return tuple(re.findall(r"\{(\w+)\*?\}", self.path))


def missing(role: Role, peer: Peer, why: str = "") -> Forbidden:
    """The refusal of a person who lacks a role, saying what it has."""
    who = peer.id.name if peer.id else "nobody"
    reason = f"; {why}" if why else ""
    return Forbidden(
        f"this takes the role {role}; {who} has {peer.rights}{reason}",
        hint=f"an administrator binds it with a RoleBinding of role: {role} (docs/people.md)",
    )


def page(items: list[T], paging: Paging, cursor: Callable[[T], str]) -> Page[T]:
    """One page of ``items``, which are sorted by ``cursor`` (unique, ascending)."""
    start = 0
    if paging.after:
        low, high = 0, len(items)
        while low < high:
            middle = (low + high) // 2
            if cursor(items[middle]) <= paging.after:
                low = middle + 1
            else:
                high = middle
        start = low
    chosen = items[start : start + paging.limit]
    more = start + paging.limit < len(items)
    return Page(tuple(chosen), cursor(chosen[-1]) if more else None)


def query_of(kind: type[msgspec.Struct], given: Mapping[str, str]) -> Any:
    """Query parameters as a value. Raises BadUsage, naming the parameter."""
    if not given and kind is NoQuery:
        return _NO_QUERY
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__) or "none"
        raise BadUsage(f"query: {error}", hint=f"parameters here: {known}") from error


_NO_QUERY = NoQuery()
