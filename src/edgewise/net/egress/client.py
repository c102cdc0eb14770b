"""One connection of an app: its requests, one after the other, and their answers.

States: HEAD (waiting for a request), ASKING (for who calls), DIALING, EXCHANGE, TUNNEL
(CONNECT or WebSocket: bytes both ways), LINGER (answered and closing; what still comes is
read and dropped so that the answer is not lost to a reset).

Nothing is read from one side while the other has more than ``Bounds.high`` bytes to take.
"""

from __future__ import annotations

import enum
import socket
from typing import TYPE_CHECKING, Final

from edgewise.identity.egress import Allowed, Policy, Refused, Subject, Target, choose
from edgewise.identity.workload_ports import Caller
from edgewise.net.egress import problems
from edgewise.net.egress.app_side import AppSide
from edgewise.net.egress.framing import Body, ToEnd, body_of, chunk
from edgewise.net.egress.heads import (
    CHUNKED,
    HEAD,
    TO_END,
    Answer,
    Malformed,
    Request,
    read_answer,
    read_request,
)
from edgewise.net.egress.upstream import Dial, Upstream

if TYPE_CHECKING:
    from edgewise.net.egress.gateway import Switchboard

INTERIM: Final = 8
"""1xx answers before the real one."""
LINGERED: Final = 1 << 20
"""Bytes dropped after an early answer."""
_AGAIN: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
"""Idempotent methods (RFC 9110, section 9.2.2): may be sent once more on another connection."""


class State(enum.Enum):
    HEAD = 1
    ASKING = 2
    DIALING = 3
    EXCHANGE = 4
    TUNNEL = 5
    LINGER = 6


def target_of(req: Request) -> Target:
    """What the policy is asked about."""
    return Target(req.host, req.port, req.method, req.path.decode("latin-1"), req.default_port)


class Client(AppSide):
    """See the module."""

    def __init__(self, board: Switchboard, sock: socket.socket, caller: Caller | None) -> None:
        super().__init__(board.reactor, sock, board.bounds)
        self.board = board
        self._caller = caller
        self._subject: Subject | None = None
        self.epoch = -1
        """Of the identities when the subject was asked for."""
        self._state = State.HEAD
        self._buf = b""
        self._closing = False
        self._eof = False
        self._up: Upstream | None = None
        self._up_eof = False
        self._dial: Dial | None = None
        self._fitting: tuple[Allowed, ...] | None = None
        self._fitted: tuple[Policy, str, bytes, bool] | None = None
        self._started = False
        self._dropped = 0
        self._req_body: Body = ToEnd()
        self._res_body: Body = ToEnd()
        self._chunked = False
        self._forget_request()

    def _forget_request(self) -> None:
        self._req: Request | None = None
        self._allowed: Allowed | None = None
        self._answer: Answer | None = None
        self._req_done = True
        self._res_buf = b""
        self._again = False
        self._interim = 0

    @property
    def caller(self) -> Caller | None:
        """Who it is."""
        return self._caller

    @property
    def app(self) -> str:
        """For counting."""
        return self._subject.app if self._subject is not None else ""

    # From the app

    def _take(self, data: bytes) -> None:
        state = self._state
        if state is State.HEAD:
            self._buf = self._buf + data if self._buf else data
            self._advance()
        elif state is State.EXCHANGE and not self._req_done:
            self._forward(data)
        elif state is State.TUNNEL:
            self._pipe(data)
        elif state is State.LINGER:
            self._dropped += len(data)
            if self._dropped > LINGERED:
                self.abandon()
        else:
            self._buf += data
            if len(self._buf) > self.board.bounds.pipelined:
                self._pause(True)

    def _ended(self) -> None:
        """The app has no more to say."""
        if self._state is State.TUNNEL and self._up is not None:
            self._eof = True
            self._pause(True)
            self._up.finish()
            self._close_when_both_ended()
        else:
            self.abandon()  # between requests, or it has given up waiting

    def _advance(self) -> None:
        """Take request after request, as long as each is answered at once."""
        while self._state is State.HEAD and self._buf and not self.closed:
            if len(self._out) > self.board.bounds.high:
                self._pause(True)  # it asks faster than it reads the answers
                return
            if not self._next():
                return

    def _next(self) -> bool:
        """Begin the next request. False while its head is not whole."""
        buf = self._buf
        if buf.startswith(b"\r\n"):
            self._buf = buf = buf[2:]  # some clients end a body so (RFC 9112, section 2.2)
        end = buf.find(b"\r\n\r\n")
        if end < 0 or end > HEAD:
            if len(buf) > HEAD:
                self._malformed(Malformed(f"a head of more than {HEAD} bytes", 431))
            elif not self._started:
                self._started = True
                self.deadline = self._reactor.now + self.board.bounds.head_s
            return False
        self._started = False
        self._buf = buf[end + 4 :]
        try:
            self._req = req = read_request(buf[: end + 4])
        except Malformed as error:
            self._malformed(error)
            return False
        self._req_done = req.length == 0
        if not self._req_done:
            self._req_body = body_of(req.length)
        if self.epoch == self.board.epoch:
            self._decide(req)
        else:
            self._ask()
        return True

    def _ask(self) -> None:
        """Who is it? Asked anew when identities or apps have changed."""
        self._state = State.ASKING
        self.deadline = self._reactor.now + self.board.bounds.resolve_s
        epoch = self.board.epoch
        if self._caller is None:
            self._answered(Subject(), epoch)
        else:
            self.board.supply.subject(self._caller, lambda subject: self._answered(subject, epoch))

    def _answered(self, subject: Subject, epoch: int) -> None:
        if self.closed or self._state is not State.ASKING or self._req is None:
            return
        self._subject = subject
        self._fitting = None
        self.epoch = epoch
        self._state = State.HEAD
        if (busy := self.board.too_many(self)) is not None:
            self._refuse(busy, close=True)
            return
        self._decide(self._req)
        self._advance()

    def _decide(self, req: Request) -> None:
        fitting = self._fitting
        verdict: Allowed | Refused
        # What was found for the same place before is taken again.
        if fitting is None or self._fitted != (
            self.board.policy, req.method, req.authority, req.default_port
        ):  # fmt: skip
            verdict = self._decide_anew(req)
        elif fitting[0].rule.paths:
            verdict = choose(fitting, req.path.decode("latin-1"))
        else:
            verdict = fitting[0]
        if req.secure and isinstance(verdict, Allowed) and not verdict.rule.mtls:
            what = f"{req.host}:{verdict.port} is called without mTLS, and an https URL asks for it"
            hint = "open a tunnel with CONNECT, as HTTPS_PROXY does, and do TLS in it"
            verdict = Refused("tunnel", what, hint, verdict.name)
        if isinstance(verdict, Refused):
            self._refuse(verdict)
            return
        self._allowed = verdict
        if req.method != "CONNECT":
            key = (verdict.identity, req.host, verdict.port, verdict.name)
            upstream = self.board.pool.take(key)
            if upstream is not None:
                self._attach(upstream)
                return
        self._begin_dial(verdict)

    def _decide_anew(self, req: Request) -> Allowed | Refused:
        policy = self.board.policy
        target = target_of(req)
        self._fitting = None
        fitting = policy.fitting(self._subject or Subject(), target)
        if isinstance(fitting, Refused):
            return fitting
        self._fitting = fitting
        self._fitted = (policy, req.method, req.authority, req.default_port)
        return choose(fitting, target.path)

    # To the far end

    def _begin_dial(self, allowed: Allowed) -> None:
        self._state = State.DIALING
        bounds = self.board.bounds
        tries = bounds.addresses * (bounds.connect_s + bounds.handshake_s)
        self.deadline = self._reactor.now + 2 * bounds.resolve_s + tries
        host = self._req.host if self._req is not None else ""
        self._dial = Dial(self.board.dials, host, allowed, self._dialled)
        self._dial.start()

    def _dialled(self, found: Upstream | Refused) -> None:
        self._dial = None
        if isinstance(found, Refused):
            self._refuse(found)
        else:
            self._attach(found)
        self._advance()

    def _attach(self, upstream: Upstream) -> None:
        req = self._req
        if req is None or self.closed:
            upstream.close()
            return
        self._up = upstream
        upstream.taker = self
        self._state = State.EXCHANGE
        self.deadline = self._reactor.now + self.board.bounds.answer_s
        if req.method == "CONNECT":
            self._write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._become_tunnel()
            return
        self._again = (
            upstream.served > 0
            and not self._again
            and req.method in _AGAIN
            and req.length == 0
            and not req.websocket
        )
        upstream.send(req.rendered())
        if not self._req_done and self._buf:
            data, self._buf = self._buf, b""
            self._forward(data)
        if self._paused and not self._req_done and upstream.waiting <= self.board.bounds.high:
            self._pause(False)

    def _forward(self, data: bytes) -> None:
        """A piece of the request's body."""
        req, upstream = self._req, self._up
        if req is None or upstream is None:
            return
        try:
            payload, self._buf = self._req_body.feed(data)
        except Malformed as error:
            upstream.close()
            self._up = None
            if self._answer is None:
                self._malformed(error)
            else:
                self.abandon()
            return
        self._req_done = self._req_body.done
        now, bounds = self._reactor.now, self.board.bounds
        self.deadline = now + (bounds.answer_s if self._req_done else bounds.body_s)
        if req.length == CHUNKED:
            payload = chunk(payload, last=self._req_done)
        if payload:
            upstream.send(payload)
        if self._up is upstream and upstream.waiting > bounds.high:
            self._pause(True)
            self.deadline = now + bounds.answer_s

    def upstream_drained(self) -> None:
        if self._paused and not self._eof and len(self._buf) <= self.board.bounds.pipelined:
            self._pause(False)

    # From the far end

    def from_upstream(self, data: bytes) -> None:
        self._again = False
        self.deadline = self._reactor.now + self.board.bounds.answer_s
        if self._state is State.TUNNEL:
            self.deadline = self._reactor.now + self.board.bounds.tunnel_s
            self._write(data)
            return
        try:
            if self._answer is None:
                self._read_head(self._res_buf + data if self._res_buf else data)
            else:
                self._pass(b"", data)
        except Malformed as error:
            self._far_end_broke_rules(str(error))

    def _read_head(self, buf: bytes) -> None:
        """Heads of interim answers go on as they are; the real one begins the body."""
        while True:
            end = buf.find(b"\r\n\r\n")
            if end < 0 or end > HEAD:
                if len(buf) > HEAD:
                    raise Malformed(f"a head of more than {HEAD} bytes")
                self._res_buf = buf
                return
            req = self._req
            if req is None:
                return
            answer = read_answer(buf[: end + 4], req.method)
            buf = buf[end + 4 :]
            if answer.status == 101 or answer.status >= 200:
                break
            self._interim += 1
            if self._interim > INTERIM:
                raise Malformed(f"more than {INTERIM} interim answers")
            if req.minor:
                self._write(answer.rendered(chunked=False, close=False))
        if answer.status == 101:
            self._switch(req, answer, buf)
            return
        self._res_buf = b""
        self._answer = answer
        self.board.count(self.app, req.host, "")
        self._res_body = body_of(answer.length)
        framed = answer.length in (CHUNKED, TO_END)
        self._chunked = framed and req.minor == 1
        self._closing = (
            self._closing
            or not req.keep
            or not self._req_done
            or (framed and not self._chunked)
            or self.board.closing
        )
        head = answer.rendered(chunked=self._chunked, close=self._closing)
        if req.minor == 0 and not self._closing:
            head = head[:-2] + b"connection: keep-alive\r\n\r\n"
        self._pass(head, buf)

    def _switch(self, req: Request, answer: Answer, rest: bytes) -> None:
        if not (req.websocket and answer.websocket):
            raise Malformed("101 to a request that asked for no WebSocket")
        self._answer = answer
        self._write(answer.rendered(chunked=False, close=False) + rest)
        self._become_tunnel()

    def _pass(self, head: bytes, data: bytes) -> None:
        """The answer's head, if it is new, and a piece of its body."""
        body = self._res_body
        payload, rest = body.feed(data)
        if self._chunked:
            payload = chunk(payload, last=body.done)
        if head or payload:
            self._write(head + payload if head else payload)
        if body.done:
            self._finish(clean=not rest)

    def upstream_ended(self) -> None:
        """An orderly end of what the far end says."""
        if self._state is State.TUNNEL:
            self._up_eof = True
            self._end_of_tunnel()
        elif self._answer is not None and isinstance(self._res_body, ToEnd):
            if self._chunked:
                self._write(b"0\r\n\r\n")
            self._finish(clean=False)
        else:
            up = self._up
            place = f"{up.key[1]}:{up.key[2]}" if up is not None else "the far end"
            if up is not None:
                up.close()
            rule = self._allowed.name if self._allowed is not None else ""
            what = f"{place} closed the connection before its answer was whole"
            self.upstream_failed(Refused("unreachable", what, "try again", rule))

    def upstream_failed(self, refused: Refused) -> None:
        """The connection broke (and is closed)."""
        self._up = None
        if self._state is not State.EXCHANGE or self._answer is not None:
            if self._state is State.EXCHANGE:
                self.board.count(self.app, self._host, refused.reason)
            self.abandon()  # the app sees that the answer is not whole
        elif self._again and self._allowed is not None:
            # A kept connection that the far end closed as we used it: once more, on a new one.
            self._res_buf = b""
            self._begin_dial(self._allowed)
        else:
            self._refuse(refused)
            self._advance()

    def _far_end_broke_rules(self, what: str) -> None:
        upstream = self._up
        rule = self._allowed.name if self._allowed is not None else ""
        if upstream is not None:
            upstream.close()
        refused = Refused(
            "protocol", f"{self._host} broke HTTP/1.1: {what}", "tell those who run it", rule
        )
        self.upstream_failed(refused)

    def _finish(self, *, clean: bool) -> None:
        """The answer is whole."""
        upstream, answer = self._up, self._answer
        self._up = None
        if upstream is not None:
            if clean and answer is not None and answer.keep and self._req_done:
                self.board.pool.give(upstream)
            else:
                upstream.close()
        self._forget_request()
        if self._closing:
            self._linger()
            return
        self._state = State.HEAD
        self.deadline = self._reactor.now + self.board.bounds.idle_s
        if self._paused:
            self._pause(False)
        if self._buf:
            self._advance()

    @property
    def _host(self) -> str:
        return self._req.host if self._req is not None else ""

    # Tunnels

    def _become_tunnel(self) -> None:
        self._state = State.TUNNEL
        self.board.count(self.app, self._host, "")
        self.deadline = self._reactor.now + self.board.bounds.tunnel_s
        data, self._buf = self._buf, b""
        if data:
            self._pipe(data)

    def _pipe(self, data: bytes) -> None:
        upstream = self._up
        if upstream is None:
            return
        rule = self._allowed.rule if self._allowed is not None else None
        if not self._dropped and rule is not None and rule.mtls and rule.protocol == "TCP":
            if data.startswith(b"\x16\x03"):
                # TLS in our TLS: the far end would take it for garbage.
                self.board.count(self.app, self._host, "tunnel")
                self.abandon()
                return
        self._dropped = 1
        self.deadline = self._reactor.now + self.board.bounds.tunnel_s
        upstream.send(data)
        if self._up is upstream and upstream.waiting > self.board.bounds.high:
            self._pause(True)

    def _end_of_tunnel(self) -> None:
        if not self._out:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.abandon()
                return
        self._close_when_both_ended()

    def _close_when_both_ended(self) -> None:
        if self._eof and self._up_eof and not self._out:
            self.abandon()

    def recheck(self) -> None:
        """The rules have changed: a tunnel that they would refuse now is closed."""
        if self._state is State.TUNNEL and self._req is not None:
            target = target_of(self._req)
            verdict = self.board.policy.decide(self._subject or Subject(), target)
            if isinstance(verdict, Refused):
                self.board.count(self.app, self._req.host, verdict.reason)
                self.abandon()

    # Refusals

    def _malformed(self, error: Malformed) -> None:
        refused = Refused("malformed", f"the request cannot be understood: {error}", "correct it")
        self._refuse(refused, close=True, status=error.status)

    def _refuse(self, refused: Refused, *, close: bool = False, status: int = 0) -> None:
        """Explain, count, and go on with the next request where that is safe."""
        req = self._req
        self.board.refused(self.app, self._host, refused)
        self._closing = self._closing or close or req is None or not req.keep or not self._req_done
        self._write(
            problems.answer(
                refused,
                status or problems.status_of(refused.reason),
                body=req is None or req.method != "HEAD",
                close=self._closing,
            )
        )
        if self.closed:
            return
        self._forget_request()
        if self._closing:
            self._linger()
        else:
            self._state = State.HEAD
            self.deadline = self._reactor.now + self.board.bounds.idle_s
            if self._paused:
                self._pause(False)

    # To the app

    def _is_full(self) -> None:
        if self._up is not None:
            self._up.pause(True)

    def _has_room(self) -> None:
        if self._up is not None and not self._up_eof:
            self._up.pause(False)

    def _is_flushed(self) -> None:
        if self._state is State.LINGER:
            self._half_close()
        elif self._up_eof:
            self._end_of_tunnel()
        elif self._state is State.HEAD and self._paused:
            self._pause(False)
            self._advance()

    def _linger(self) -> None:
        """Everything is said: flush, tell so, and wait for the app to hang up."""
        self._state = State.LINGER
        self._dropped = 0
        self._buf = b""
        self.deadline = self._reactor.now + self.board.bounds.linger_s
        if not self._out:
            self._half_close()
        if self._paused and not self.closed:
            self._pause(False)

    # The end

    def expired(self) -> None:
        """Too slow, in whatever it was doing."""
        state = self._state
        rule = self._allowed.name if self._allowed is not None else ""
        if state is State.HEAD and (self._started or self._buf):
            self._malformed(Malformed("its head did not come in time", 408))
        elif state in (State.ASKING, State.DIALING):
            self._give_up()
            what = "it took too long to connect" if self._allowed else "the agent is too busy"
            self._refuse(Refused("timeout", what, "try again", rule), close=True)
        elif state is State.EXCHANGE and self._answer is None and not self._out:
            self._give_up()
            if self._req_done:
                what = f"{self._host} did not answer in time"
                self._refuse(Refused("timeout", what, "try again", rule), close=True)
            else:
                self._malformed(Malformed("its body did not come in time", 408))
        else:
            self.abandon()

    def _give_up(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None
        if self._up is not None:
            self._up.close()
            self._up = None

    def retire(self) -> None:
        """Close once it has its answer; at once when it waits for none."""
        self._closing = True
        if self._state is State.HEAD and not self._buf:
            self.abandon()

    def _leave(self) -> None:
        self._give_up()
        self.board.left(self)
