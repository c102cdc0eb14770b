"""What the resident agent asks of its worker, and how the worker answers.

``Task`` lines as JSON on standard input; for each, ``Said`` lines as JSON on standard output,
the last of which is ``Done`` or ``Failed``. The worker ends when its input does, or when it
is not asked anything for ``LINGER_S``.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from edgewise.model import errors
from edgewise.model.errors import EdgewiseError, NeedsPerson, TryLater
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import SyncReply

LINGER_S: Final = 10.0
"""Seconds a worker waits for the next task: long enough for fetch and receipt to follow the
check of a channel, short enough that its 40 MB are there only during an update."""


class VerifyTask(msgspec.Struct, frozen=True, tag="verify"):
    """Check what the hub said. Answer: ``Verdict``."""

    reply: SyncReply


class FetchTask(msgspec.Struct, frozen=True, tag="fetch"):
    """Fetch and stage a release, with ``Progress`` lines. Answer: ``Installed``."""

    release: str
    record: NodeRecord


class SignTask(msgspec.Struct, frozen=True, tag="sign"):
    """Sign receipts. Answer: ``tuple[Signed, ...]``."""

    receipts: tuple[Receipt, ...]


class OpenTask(msgspec.Struct, frozen=True, tag="open"):
    """Open a sealed object of the store. Answer: file names to texts."""

    sealed: str


class RenewTask(msgspec.Struct, frozen=True, tag="renew"):
    """Renew the certificate, or rejoin with the enrolment key. Answer: nothing."""

    rejoin: bool


class RetrustTask(msgspec.Struct, frozen=True, tag="retrust"):
    """Ask whom to trust, over a connection that is not. Answer: whether that changed."""


class JoinTask(msgspec.Struct, frozen=True, tag="join", omit_defaults=True):
    """Join with a token's text. Answer: nothing."""

    token: str
    """One without identifier and secret only says where and whom to trust: see ``Token``."""
    name: str
    tpm: str = ""
    """Place of the TPM that holds the enrolment key and proves it; empty: none."""
    factory: tuple[str, str] | None = None
    """PEM files of the factory certificate and its key."""


class AttestTask(msgspec.Struct, frozen=True, tag="attest"):
    """Say anew what was booted. Answer: ``AttestReply``."""


class SvidAsk(msgspec.Struct, frozen=True):
    """An X509-SVID that the node wants for a workload."""

    path: str
    dns: tuple[str, ...] = ()
    ttl_s: float = 0.0
    """0: the issuer's own."""


class SvidIssued(msgspec.Struct, frozen=True):
    """An X509-SVID with its key; it is never written down."""

    spiffe_id: str
    chain: tuple[bytes, ...]
    key: bytes
    """DER PKCS#8."""
    not_before: datetime
    not_after: datetime


class SvidsTask(msgspec.Struct, frozen=True, tag="svids"):
    """Make keys and have X509-SVIDs issued, all in one request.

    Answer: ``tuple[SvidIssued, ...]``, in the order of ``wanted``."""

    wanted: tuple[SvidAsk, ...]


class OwnKeyTask(msgspec.Struct, frozen=True, tag="own-key"):
    """Open the node's own key; seal it first if it is not. Answer: ``OwnKey``."""


class OwnKey(msgspec.Struct, frozen=True):
    """The certificate and key of the node itself, from one moment: they fit together."""

    svid: SvidIssued | None = None
    """None: they lie in plain files."""
    problem: str = ""
    """Why they could not be sealed to the TPM, which this node has."""


Task = (
    VerifyTask
    | FetchTask
    | SignTask
    | OpenTask
    | RenewTask
    | RetrustTask
    | JoinTask
    | AttestTask
    | SvidsTask
    | OwnKeyTask
)


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    share: float
    """0 to 1."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    answer: bytes
    """JSON of the task's answer."""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """An error as the worker raised it."""

    kind: str
    what: str
    hint: str = ""
    wait_s: float = 5.0


Said = Progress | Done | Failed

_KINDS: Final = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, EdgewiseError)
}


def failed_of(error: EdgewiseError) -> Failed:
    """The error as a message. Subclasses travel as the nearest kind in model.errors."""
    kind = next(k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS)
    wait = error.wait.total_seconds() if isinstance(error, TryLater) else 5.0
    return Failed(kind, str(error), error.hint, wait)


def error_of(failed: Failed) -> EdgewiseError:
    """The error that a message stands for."""
    kind = _KINDS.get(failed.kind, NeedsPerson)
    if issubclass(kind, TryLater):
        return kind(failed.what, wait=timedelta(seconds=failed.wait_s), hint=failed.hint)
    return kind(failed.what, hint=failed.hint)
