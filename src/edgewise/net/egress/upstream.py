"""Connections to far ends: made, proven, kept for the next request of the same identity.

A connection is only ever used for the identity, place and rule that it was made for.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from edgewise.identity.egress import Allowed, Policy, Reason, Refused, is_expected, judge_address
from edgewise.net.egress.channel import Channel, Plain, Tls
from edgewise.net.egress.ports import Bounds, Credentials, Supply
from edgewise.net.egress.reactor import BROKEN, READ, WRITE, Reactor
from edgewise.net.egress.resolver import Found, Resolver
from edgewise.net.egress.trust import Contexts

Key = tuple[str, str, int, str]
"""Identity, host, port, rule."""
NEVER: Final = float("inf")


class Taker(Protocol):
    """Whose request a connection carries."""

    def from_upstream(self, data: bytes) -> None:
        """Bytes of the answer."""

    def upstream_ended(self) -> None:
        """An orderly end."""

    def upstream_failed(self, refused: Refused) -> None:
        """It broke."""

    def upstream_drained(self) -> None:
        """It takes more again."""


class Upstream:
    """One connection that is ready for use."""

    __slots__ = (
        "_mask", "_pool", "_sock", "channel", "closed", "deadline", "fd", "generation", "key",
        "paused", "reactor", "served", "taker",
    )  # fmt: skip

    def __init__(self, pool: Pool, sock: socket.socket, channel: Channel, key: Key) -> None:
        self._pool = pool
        self.reactor: Reactor = pool.reactor
        self._sock = sock
        self.fd = sock.fileno()
        self.channel = channel
        self.key = key
        self.generation = pool.generation
        self.taker: Taker | None = None
        self.served = 0
        """Requests that it has carried before this one."""
        self.deadline = NEVER
        self.closed = False
        self.paused = False
        self._mask = READ

    @property
    def waiting(self) -> int:
        """Bytes that the far end has not taken yet."""
        return len(self.channel.waiting)

    def send(self, data: bytes) -> None:
        """Send, or keep what does not go out yet."""
        try:
            self.channel.write(data)
        except OSError as error:
            self._broke(error)
            return
        if self.channel.waiting:
            self._listen()

    def finish(self) -> None:
        """Nothing more will be sent."""
        try:
            self.channel.finish()
        except OSError as error:
            self._broke(error)

    def pause(self, paused: bool) -> None:
        """Stop or go on reading."""
        if paused != self.paused:
            self.paused = paused
            self._listen()

    def _listen(self) -> None:
        mask = (0 if self.paused else READ) | (WRITE if self.channel.waiting else 0)
        if mask != self._mask and not self.closed:
            self._mask = mask
            self.reactor.change(self.fd, mask)

    def ready(self, mask: int) -> None:
        if mask & WRITE:
            try:
                self.channel.flush()
            except OSError as error:
                self._broke(error)
                return
            self._listen()
            if self.taker is not None and self.waiting <= self._pool.bounds.low:
                self.taker.upstream_drained()
            if self.closed:
                return
        if mask & (READ | BROKEN):
            self._receive()

    def _receive(self) -> None:
        try:
            data = self.channel.read()
        except OSError as error:
            self._broke(error)
            return
        if data is None:
            return
        taker = self.taker
        if taker is None:
            self.close()  # kept, and the far end speaks unasked or has had enough
        else:
            if data:
                taker.from_upstream(data)
            if not data or (self.channel.ended and not self.closed):
                self._ended()

    def _ended(self) -> None:
        if self.taker is None:
            self.close()  # its last answer was whole: only its keeping has come to nothing
        else:
            self.pause(True)
            self.taker.upstream_ended()

    def _broke(self, error: OSError) -> None:
        taker = self.taker
        if taker is not None and self.served == 0:
            error = self._last_words(error)
        self.close()
        if taker is not None:
            taker.upstream_failed(_broken(self.key, error, fresh=self.served == 0))

    def _last_words(self, error: OSError) -> OSError:
        """Why the far end hung up: it sends an alert before, which we may not have read yet."""
        if not isinstance(error, ssl.SSLError):
            try:
                self.channel.read()
            except ssl.SSLError as alert:
                return alert
            except OSError:
                return error
        return error

    def expired(self) -> None:
        """Kept for too long. (While in use the client has the deadline.)"""
        self.close()

    def abandon(self) -> None:
        self.close()

    def close(self) -> None:
        """Close it, whoever uses it."""
        if not self.closed:
            self.closed = True
            self.taker = None
            self._pool.forget(self)
            self.reactor.remove(self.fd)
            self._sock.close()


def _broken(key: Key, error: OSError, *, fresh: bool) -> Refused:
    identity, host, port, rule = key
    reason = getattr(error, "reason", "") or ""
    if isinstance(error, ssl.SSLEOFError | ConnectionError) and fresh and identity:
        # TLS 1.3: the far end looks at our certificate only after our handshake is over.
        what, why = "hung up without an answer: perhaps our certificate is not taken", "rejected"
    elif isinstance(error, ssl.SSLEOFError):
        what, why = "closed the connection in the middle", "unreachable"
    elif "ALERT" in reason:
        alert = reason.partition("ALERT_")[2].lower().replace("_", " ")
        what, why = f"does not accept our certificate: {alert}", "rejected"
    elif isinstance(error, ssl.SSLError):
        what, why = f"broke TLS: {reason or error}", "protocol"
    else:
        what, why = f"broke the connection: {error.strerror or error}", "unreachable"
    hint = "does it trust this organisation's roots?" if why == "rejected" else "try again"
    return Refused(why, f"{host}:{port} {what}", hint, rule)  # type: ignore[arg-type]  # a Reason


class Pool:
    """Connections that wait for the next request."""

    def __init__(self, reactor: Reactor, bounds: Bounds) -> None:
        self.reactor = reactor
        self.bounds = bounds
        self.generation = 0
        """Grows when identities, roots or rules changed: older connections are not kept."""
        self._kept: dict[Key, list[Upstream]] = {}
        self.size = 0

    def take(self, key: Key) -> Upstream | None:
        """The one that was used last, if there is one."""
        kept = self._kept.get(key)
        if not kept:
            return None
        upstream = kept.pop()
        self.size -= 1
        upstream.deadline = NEVER
        return upstream

    def give(self, upstream: Upstream) -> None:
        """Keep it for later, or close it."""
        bounds = self.bounds
        kept = self._kept.get(upstream.key)
        if kept is None:
            kept = self._kept[upstream.key] = []
        if (
            upstream.generation != self.generation
            or upstream.waiting
            or len(kept) >= bounds.pool_of_one
            or self.size >= bounds.pool
        ):
            upstream.close()
            return
        upstream.taker = None
        upstream.served += 1
        upstream.deadline = self.reactor.now + bounds.pool_idle_s
        if upstream.paused:
            upstream.pause(False)
        kept.append(upstream)
        self.size += 1

    def forget(self, upstream: Upstream) -> None:
        """It was closed."""
        kept = self._kept.get(upstream.key)
        if kept is not None:
            if upstream in kept:
                kept.remove(upstream)
                self.size -= 1
            if not kept:
                del self._kept[upstream.key]

    def renew(self) -> None:
        """Close what waits; what is in use is closed after its request."""
        self.generation += 1
        for upstream in [u for kept in self._kept.values() for u in kept]:
            upstream.close()


class Dials:
    """What a dial works with."""

    def __init__(self, pool: Pool, supply: Supply, resolver: Resolver) -> None:
        self.pool = pool
        self.supply = supply
        self.resolver = resolver
        self.contexts = Contexts()
        self.policy = Policy(None)


class Dial:
    """From a permission to a connection: identity, name, address, TCP, TLS, proof."""

    def __init__(
        self,
        dials: Dials,
        host: str,
        allowed: Allowed,
        then: Callable[[Upstream | Refused], None],
    ) -> None:
        self._dials = dials
        self._reactor = dials.pool.reactor
        self._bounds = dials.pool.bounds
        self._host = host
        self._allowed = allowed
        self._then = then
        self._context: ssl.SSLContext | None = None
        self._addresses: list[Found] = []
        self._sock: socket.socket | None = None
        self._tls: Tls | None = None
        self._over = False
        self._last: Refused | None = None
        self.deadline = self._reactor.now + self._bounds.resolve_s

    @property
    def key(self) -> Key:
        allowed = self._allowed
        return allowed.identity, self._host, allowed.port, allowed.name

    def start(self) -> None:
        if self._allowed.rule.mtls:
            self._dials.supply.credentials(self._allowed.identity, self._have_credentials)
        else:
            self._resolve()

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._over = True
        self._drop()

    def _have_credentials(self, found: Credentials | Refused) -> None:
        if self._over:
            return
        if isinstance(found, Refused):
            self._fail(found)
            return
        context = self._dials.contexts.of(found, self._allowed)
        if isinstance(context, Refused):
            self._fail(context)
            return
        self._context = context
        self._resolve()

    def _resolve(self) -> None:
        self._dials.resolver.resolve(self._host, self._allowed.port, self._resolved)

    def _resolved(self, found: list[Found] | str) -> None:
        if self._over:
            return
        if isinstance(found, str):
            self._refuse("dns", f"the name {self._host} was not found: {found}", "is it spelt so?")
            return
        networks = self._dials.policy.networks_of(self._allowed)
        for place in found[: self._bounds.addresses]:
            refused = judge_address(place.address, self._allowed, networks)
            if refused is None:
                self._addresses.append(place)
            else:
                self._last = self._last or refused
        self._addresses.reverse()
        self._connect()

    def _connect(self) -> None:
        """The next address; what was judged is what is connected to."""
        self._drop()
        while self._addresses:
            place = self._addresses.pop()
            sock = socket.socket(place.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(place.sockaddr)
            if code in (0, errno.EINPROGRESS):
                self._sock = sock
                self.deadline = self._reactor.now + self._bounds.connect_s
                self._reactor.add(sock.fileno(), WRITE, self)
                return
            sock.close()
            self._note("unreachable", f"cannot reach {place.address}: {os.strerror(code)}")
        self._fail(self._last or self._refused("dns", f"{self._host} has no address", "try again"))

    def ready(self, mask: int) -> None:
        sock = self._sock
        if sock is None:
            return
        if self._tls is not None:
            self._shake(self._tls)
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._note("unreachable", f"{self._place}: {os.strerror(code)}")
            self._connect()
        elif self._context is None:
            self._done(Plain(sock))
        else:
            self._begin_tls(sock, self._context)

    def _begin_tls(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._tls = Tls(sock, context, self._host)
        self.deadline = self._reactor.now + self._bounds.handshake_s
        self._reactor.change(sock.fileno(), READ)
        try:
            self._tls.begin()
        except OSError as error:
            self._no_tls(error)

    def _shake(self, tls: Tls) -> None:
        try:
            over = tls.handshake()
        except OSError as error:
            self._no_tls(error)
            return
        if not over:
            return
        rule = self._allowed.rule
        if rule.spiffe_ids and not is_expected(rule, tls.peer_uris):
            who = ", ".join(tls.peer_uris) or "somebody without a SPIFFE ID"
            self._refuse(
                "peer",
                f"{self._place} is {who}, not {', '.join(rule.spiffe_ids)}",
                "correct spiffeIDs of the rule, or find out who answers there",
            )
        elif not tls.asked:
            self._refuse(
                "not-mtls",
                f"{self._place} did not ask for our certificate: it lets anybody in",
                "make it ask for client certificates, or write mtls: false",
            )
        else:
            self._done(tls)

    def _no_tls(self, error: OSError) -> None:
        text = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            self._refuse(
                "untrusted",
                f"the certificate of {self._place} is not good: {text}",
                "see trust and spiffeIDs of the rule; is its certificate from whom you think?",
            )
        elif isinstance(error, ssl.SSLEOFError | ConnectionError):
            self._refuse(
                "protocol", f"{self._place} hung up in the TLS handshake", "does it speak TLS 1.3?"
            )
        else:
            what = text.lower().replace("_", " ")
            self._refuse(
                "protocol", f"{self._place} speaks no TLS 1.3: {what}", "is the port right?"
            )

    @property
    def _place(self) -> str:
        return f"{self._host}:{self._allowed.port}"

    def _done(self, channel: Channel) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        upstream = Upstream(self._dials.pool, sock, channel, self.key)
        self._reactor.pass_on(upstream.fd, READ, upstream)
        self._over = True
        self._then(upstream)

    def _refused(self, reason: Reason, detail: str, hint: str) -> Refused:
        return Refused(reason, detail, hint, self._allowed.name)

    def _note(self, reason: Reason, detail: str) -> None:
        self._last = self._refused(reason, detail, "is it up, and the way to it open?")

    def _refuse(self, reason: Reason, detail: str, hint: str) -> None:
        self._fail(self._refused(reason, detail, hint))

    def _fail(self, refused: Refused) -> None:
        self._over = True
        self._drop()
        self._then(refused)

    def _drop(self) -> None:
        self._tls = None
        if self._sock is not None:
            self._reactor.remove(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def expired(self) -> None:
        """This address takes too long."""
        self._note("timeout", f"{self._place} did not answer in time")
        self._connect()

    def abandon(self) -> None:
        self.cancel()
