"""TLS as everybody here speaks it: 1.3 only, both certificates, names are SPIFFE IDs.

Certificates are verified by OpenSSL against our own root alone, with the strict checks on.
Host names are not what we ask: a peer is who its one ``spiffe://`` URI says it is, and the
caller checks that after the handshake, before it sends anything (``net.client``) or answers
anything (``net.server``).

Standard library only: the resident agent uses this file.
"""

from __future__ import annotations

import asyncio.sslproto
import os
import ssl
from base64 import encodebytes
from collections.abc import Iterable
from typing import Any, Final, Protocol

from edgewise.identity.names import well_placed
from edgewise.model.errors import NeedsPerson, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.runtime.credentials import CredentialFiles, fingerprint, pem_of

__all__ = [
    "CredentialFiles",
    "Shown",
    "client_context",
    "foreign_context",
    "load_svid",
    "peer_id",
    "peer_serial",
    "peer_uri",
    "pinned",
    "pinned_context",
    "public_context",
    "reload",
    "server_context",
    "small_tls_buffers",
    "unverified_context",
]

NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME (openssl/x509_vfy.h); Python has no name for it."""
SMALL_BUFFER: Final = 16 << 10
"""One TLS record: what a connection of the agent needs to hold."""


class Shown(Protocol):
    """A certificate and its key in memory: LocalSvid, SvidIssued."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first."""

    @property
    def key(self) -> bytes:
        """DER PKCS#8."""


def server_context(credentials: CredentialFiles) -> ssl.SSLContext:
    """For hub and relay. A client certificate is optional here, and routes require it.

    No session tickets: each connection proves itself anew, so expiry holds on reconnect.
    Raises NeedsPerson when the files are missing or do not fit together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _strict(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0
    context.set_alpn_protocols(["http/1.1"])
    _load(context, credentials)
    _load_roots(context, credentials.root_certificates())
    return context


def client_context(
    credentials: CredentialFiles, *, check_time: bool = True, own: Shown | None = None
) -> ssl.SSLContext:
    """For whoever has an identity. The server must chain to the identity's roots.

    ``check_time=False`` is for a node whose clock is known to be wrong (before its own
    certificate's beginning): it would otherwise never get a connection to learn the time.
    ``own`` is shown instead of the files: where the key on the disk is sealed.
    Raises NeedsPerson when the files are missing or do not fit together.
    """
    context = _client(check_time=check_time)
    if own is None:
        _load(context, credentials)
    else:
        try:
            load_svid(context, own)
        except (OSError, ValueError) as error:
            raise NeedsPerson(
                f"the certificate in {credentials.directory} does not fit its sealed key: {error}",
                hint="put back the files of one moment, or join again with --anew",
            ) from error
    _load_roots(context, credentials.root_certificates())
    return context


def pinned_context(roots: Iterable[bytes], *, check_time: bool = True) -> ssl.SSLContext:
    """For first contact and rejoin: no certificate of one's own, these roots (DER) only."""
    context = _client(check_time=check_time)
    _load_roots(context, roots)
    return context


def foreign_context(roots: Iterable[bytes]) -> ssl.SSLContext:
    """For a server of another organisation that proves a SPIFFE ID under these roots (DER).

    Their certificates follow other habits than ours: TLS 1.2 and no strict checks.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _load_roots(context, roots)
    return context


def public_context() -> ssl.SSLContext:
    """For a CDN: the system's roots and host names. What it serves is verified anyway."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def unverified_context() -> ssl.SSLContext:
    """Only to fetch ``/v1/roots`` before a root is known; see ``pinned``. Sends no secret."""
    context = _client()
    context.verify_mode = ssl.CERT_NONE
    return context


def pinned(roots: Iterable[bytes], sha256: str) -> tuple[bytes, ...]:
    """The one root with this digest among certificates that a stranger gave us.

    The digest comes from the join token or from a person, so the connection that carried them
    need not be trusted. Raises Untrusted when it is not among them.
    """
    for root in roots:
        if fingerprint(root) == sha256:
            return (root,)
    raise Untrusted(
        f"the server does not have the root certificate {sha256[:12]}... that was told beforehand",
        hint="somebody may be in between, or that token or digest is another hub's: ask anew",
    )


def reload(context: ssl.SSLContext, credentials: CredentialFiles) -> None:
    """Use the renewed certificate for every handshake from now on; connections stay.

    A server's context follows the roots as well, those that are gone included.
    Raises NeedsPerson when the files do not fit together; the context is then unchanged.
    """
    if context.protocol == ssl.PROTOCOL_TLS_SERVER:
        fresh = server_context(credentials)

        def use_fresh(
            connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, front: ssl.SSLContext
        ) -> None:
            connection.context = fresh

        # Roots cannot be taken out of a context, and a listening server keeps the one that
        # it began with. OpenSSL calls this for every handshake, name or no name.
        context.sni_callback = use_fresh
        return
    probe = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(probe, credentials)
    _load(context, credentials)


def load_svid(context: ssl.SSLContext, svid: Shown) -> None:
    """Show this SVID in every handshake from now on. Raises ssl.SSLError, OSError.

    OpenSSL reads keys from files only; this one is in memory, and gone afterwards.
    """
    key = b"-----BEGIN PRIVATE KEY-----\n%b-----END PRIVATE KEY-----\n" % encodebytes(svid.key)
    fd = os.memfd_create("svid", os.MFD_CLOEXEC)
    try:
        os.write(fd, key + pem_of(svid.chain).encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def peer_id(tls: ssl.SSLObject | ssl.SSLSocket | None) -> SpiffeId | None:
    """Whose connection this is, by its verified certificate.

    None without one, and for a certificate that does not have exactly one URI name that is
    a SPIFFE ID (X509-SVID specification, section 2) of a role that may exist in its domain.
    """
    try:
        found = SpiffeId.parse(peer_uri(tls))
    except ValueError:
        return None
    return found if well_placed(found) else None


def peer_uri(tls: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    """The one URI name in the peer's verified certificate; empty for none, or several."""
    fields: Any = tls.getpeercert() if tls is not None else None
    names = [v for kind, v in (fields or {}).get("subjectAltName", ()) if kind == "URI"]
    return str(names[0]) if len(names) == 1 else ""


def peer_serial(tls: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    """Serial number of the peer's verified certificate in lower-case hex; empty without one."""
    fields: Any = tls.getpeercert() if tls is not None else None
    return str((fields or {}).get("serialNumber", "")).lower().lstrip("0")


def small_tls_buffers() -> None:
    """Let a connection take 16 KiB instead of 256 KiB (cpython issue 109534).

    For the agent, at start. Hub and relay use uvloop, which does not have the problem.
    """
    asyncio.sslproto.SSLProtocol.max_size = SMALL_BUFFER


def _client(*, check_time: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _strict(context)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if not check_time:
        context.verify_flags |= NO_CHECK_TIME
    return context


def _strict(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT


def _load(context: ssl.SSLContext, credentials: CredentialFiles) -> None:
    credentials.settle()
    try:
        context.load_cert_chain(credentials.chain, credentials.key)
    except (OSError, ValueError) as error:
        raise NeedsPerson(
            f"no usable certificate and key in {credentials.directory}: {error}",
            hint="join with a token first, or put back the files from a backup",
        ) from error


def _load_roots(context: ssl.SSLContext, roots: Iterable[bytes]) -> None:
    try:
        context.load_verify_locations(cadata=pem_of(roots))
    except (ssl.SSLError, ValueError) as error:
        raise NeedsPerson(
            f"the root certificates cannot be read: {error}", hint="join again with a new token"
        ) from error
