"""Envoy's secret discovery service: its messages, from their field numbers. Pure.

Sources: envoy.service.discovery.v3 (DiscoveryRequest, DiscoveryResponse), Secret and
SPIFFECertValidatorConfig of envoy.extensions.transport_sockets.tls.v3, DataSource of
envoy.config.core.v3. Names of secrets are those that SPIRE's agent gives them, so that an Envoy
configuration moves over unchanged.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from edgewise.identity import protobuf
from edgewise.identity.workload_ports import LocalSvid

SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
VALIDATOR: Final = (
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
)
DEFAULT: Final = "default"
"""The caller's default SVID."""
ROOTS: Final = "ROOTCA"
"""The roots of the node's own trust domain."""
ALL: Final = "ALL"
"""The roots of every trust domain that the caller trusts, for Envoy's SPIFFE validator."""
NAMES: Final = 64
"""Secrets that one stream may name."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """A DiscoveryRequest."""

    names: tuple[str, ...] = ()
    """Empty: all there are."""
    nonce: str = ""
    """Of the answer that it speaks about; empty in the first."""
    refused: str = ""
    """Why Envoy did not take that answer; empty when it did."""


def read_discovery(data: bytes) -> Discovery:
    """Raises Malformed, also for another type than secrets."""
    message = protobuf.read(data)
    kind = protobuf.text(message, 4)
    if kind not in ("", SECRET):
        raise protobuf.Malformed(f"there are only secrets here, not {kind[:100]!r}")
    names = tuple(dict.fromkeys(protobuf.texts(message, 3)))
    if len(names) > NAMES:
        raise protobuf.Malformed(f"more than {NAMES} names")
    errors = protobuf.messages(message, 6)
    refused = protobuf.text(errors[-1], 2)[:300] or "refused" if errors else ""
    return Discovery(names, protobuf.text(message, 5), refused)


def response(secrets: Iterable[bytes], version: str, nonce: str) -> bytes:
    """A DiscoveryResponse."""
    resources = b"".join(
        protobuf.field(2, protobuf.field(1, SECRET) + protobuf.field(2, secret))
        for secret in secrets
    )
    return (
        protobuf.field(1, version)
        + resources
        + protobuf.field(4, SECRET)
        + protobuf.plain(5, nonce)
    )


def certificate(name: str, svid: LocalSvid) -> bytes:
    """A Secret with an SVID and its key."""
    chain = "".join(_pem("CERTIFICATE", der) for der in svid.chain)
    body = protobuf.field(1, _inline(chain)) + protobuf.field(
        2, _inline(_pem("PRIVATE KEY", svid.key))
    )
    return protobuf.field(1, name) + protobuf.field(2, body)


def roots(name: str, certificates: Iterable[bytes]) -> bytes:
    """A Secret with what to trust for one trust domain."""
    text = "".join(_pem("CERTIFICATE", der) for der in certificates)
    return protobuf.field(1, name) + protobuf.field(4, protobuf.field(1, _inline(text)))


def all_roots(name: str, domains: Mapping[str, Iterable[bytes]]) -> bytes:
    """A Secret with what to trust for each trust domain, by Envoy's SPIFFE validator."""
    config = b"".join(
        protobuf.field(
            1,
            protobuf.field(1, domain)
            + protobuf.field(2, _inline("".join(_pem("CERTIFICATE", c) for c in domains[domain]))),
        )
        for domain in sorted(domains)
    )
    typed = protobuf.field(1, VALIDATOR) + protobuf.field(2, config)
    extension = protobuf.field(1, "envoy.tls.cert_validator.spiffe") + protobuf.field(2, typed)
    return protobuf.field(1, name) + protobuf.field(4, protobuf.field(12, extension))


def _inline(text: str) -> bytes:
    """A DataSource with its content in it."""
    return protobuf.field(2, text)


def _pem(label: str, der: bytes) -> str:
    body = base64.b64encode(der).decode()
    lines = "\n".join(body[i : i + 64] for i in range(0, len(body), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"
