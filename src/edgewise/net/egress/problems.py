"""How a refusal is told to the app: RFC 9457 problem details and RFC 9209 Proxy-Status. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from edgewise.identity.egress import Reason, Refused

_PHRASES: Final = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    417: b"Expectation Failed",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_STATUS: Final[dict[Reason, int]] = {
    "malformed": 400,
    "dns": 502,
    "unreachable": 502,
    "untrusted": 502,
    "peer": 502,
    "not-mtls": 502,
    "rejected": 502,
    "protocol": 502,
    "timeout": 504,
    "busy": 503,
}
_ERRORS: Final[dict[Reason, str]] = {
    "address": "destination_ip_prohibited",
    "dns": "dns_error",
    "unreachable": "destination_unavailable",
    "untrusted": "tls_certificate_error",
    "peer": "tls_certificate_error",
    "not-mtls": "tls_protocol_error",
    "rejected": "tls_alert_received",
    "protocol": "http_protocol_error",
    "timeout": "connection_timeout",
    "busy": "connection_limit_reached",
    "malformed": "http_request_error",
}
"""RFC 9209, section 2.3; the others are ``http_request_denied``."""


class EgressProblem(msgspec.Struct, frozen=True):
    """The body of a refusal."""

    type: str
    title: str
    status: int
    detail: str
    hint: str
    """The next move."""
    reason: str
    """One of ``identity.egress.Reason``, for programs."""
    rule: str
    """The rule that came nearest, or that had let it through."""


def status_of(reason: Reason) -> int:
    """The HTTP status of a refusal."""
    return _STATUS.get(reason, 403)


def answer(refused: Refused, status: int, *, body: bool, close: bool) -> bytes:
    """The whole answer; without its body to HEAD."""
    problem = EgressProblem(
        type=f"https://edgewise.dev/egress/{refused.reason}",
        title="The egress gateway did not let this through"
        if status in (400, 403)
        else "The egress gateway could not get an answer",
        status=status,
        detail=refused.detail,
        hint=refused.hint,
        reason=refused.reason,
        rule=refused.rule,
    )
    data = msgspec.json.encode(problem)
    return (
        b"HTTP/1.1 %d %b\r\ncontent-type: application/problem+json\r\ncontent-length: %d\r\n"
        b"proxy-status: edgewise; error=%b\r\n%b%b\r\n%b"
        % (
            status,
            _PHRASES.get(status, b"Refused"),
            len(data),
            _ERRORS.get(refused.reason, "http_request_denied").encode(),
            b"retry-after: 5\r\n" if status in (503, 504) else b"",
            b"connection: close\r\n" if close else b"",
            data if body else b"",
        )
    )
