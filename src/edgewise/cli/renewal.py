"""The certificate of a login: made with a key of this machine, renewed at half of its life."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgewise.cli.client import Client, Context
from edgewise.model.errors import Forbidden, TryLater, Untrusted
from edgewise.protocol.codec import encode
from edgewise.protocol.operator import OperatorContext
from edgewise.protocol.people import LoginRenewal, LoginReply
from edgewise.runtime.clock import SystemClock
from edgewise.runtime.credentials import CredentialFiles, write_private


class NewKey:
    """A key that never leaves this machine, and the request for its certificate."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        signed = request.sign(self._key, hashes.SHA256())
        self.csr = signed.public_bytes(serialization.Encoding.DER)

    def keep(self, folder: Path, url: str, reply: LoginReply) -> Context:
        """Write certificate, key, roots and context. The answer came from a hub that proved
        itself with the roots we had, so it may name newer ones.

        Raises Untrusted for a certificate that is not ours.
        """
        self._check(reply)
        files = CredentialFiles(folder)
        files.trust(reply.roots)
        key_pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        files.replace(key_pem=key_pem, chain=reply.chain)
        told = OperatorContext(
            url=url,
            organisation=reply.organisation,
            user=reply.user,
            certificate=files.chain.name,
            key=files.key.name,
            roots=files.roots.name,
            hub_id=reply.hub_id,
            age_recipient=reply.age_recipient,
            issued=SystemClock().now(),
            expires=reply.expires,
            login_until=reply.login_until,
        )
        write_private(folder / "context.json", encode(told))
        return Context(folder / "context.json")

    def _check(self, reply: LoginReply) -> None:
        try:
            leaf = x509.load_der_x509_certificate(reply.chain[0])
            names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (IndexError, ValueError, x509.ExtensionNotFound) as error:
            raise Untrusted(f"the hub's answer holds no certificate: {error}") from error
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if leaf.public_key() != self._key.public_key() or uris != [reply.spiffe_id]:
            raise Untrusted("the hub answered with a certificate for another key or name")


def due(told: OperatorContext, now: datetime) -> bool:
    """Whether the certificate is past half of its life, and another would live longer."""
    if told.expires is None or told.issued is None or told.login_until is None:
        return False
    return now >= told.issued + (told.expires - told.issued) / 2 and told.login_until > told.expires


def keep_login(context: Context) -> Context:
    """Renew when it is due. Raises Forbidden when it is too late: a person logs in again."""
    told, now = context.told, SystemClock().now()
    if told.expires is not None and now >= told.expires:
        raise Forbidden(
            f"your login at {told.url} ended at {told.expires:%Y-%m-%d %H:%M} UTC",
            hint=f"edgewise login --hub {told.url}",
        )
    if not due(told, now):
        return context
    folder = context.certificate.parent
    with _alone(folder) as mine:
        if not mine:
            return context  # another command renews; this one goes on with what there is
        key = NewKey()
        client = Client(context)
        try:
            reply = client.post("/v1/login/renew", LoginRenewal(key.csr), LoginReply)
        except TryLater:
            return context
        finally:
            client.close()
        return key.keep(folder, told.url, reply)


def end_login(context: Context) -> None:
    """Remove what a login left on this machine."""
    folder = context.certificate.parent
    for path in (context.key, context.certificate, folder / "context.json"):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    descriptor = os.open(folder / ".renewing", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)
