"""Who runs what now: the channel of a fleet, the record of a node, and the wave bitmap.

The channel is one small document per fleet, signed through TUF by the hub's online key.
A node needs only its index (from its signed record) to know what it should run, so a
rollout step costs the hub one document however large the fleet is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec


class Bitmap:
    """A set of node indexes as bits; bit ``i`` is bit ``i % 8`` of byte ``i // 8``."""

    __slots__ = ("_bits",)

    def __init__(self, data: bytes = b"") -> None:
        self._bits = data.rstrip(b"\0")

    @classmethod
    def of(cls, indexes: Iterable[int]) -> Bitmap:
        """From node indexes, none negative."""
        numbers = list(indexes)
        bits = bytearray(max(numbers, default=-1) // 8 + 1)
        for index in numbers:
            bits[index // 8] |= 1 << index % 8
        return cls(bytes(bits))

    def __contains__(self, index: int) -> bool:
        byte = index // 8
        return byte < len(self._bits) and bool(self._bits[byte] >> index % 8 & 1)

    def __iter__(self) -> Iterator[int]:
        for byte, value in enumerate(self._bits):
            for bit in range(8):
                if value >> bit & 1:
                    yield byte * 8 + bit

    def __len__(self) -> int:
        return sum(byte.bit_count() for byte in self._bits)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bitmap) and self._bits == other._bits

    def __hash__(self) -> int:
        return hash(self._bits)

    def __repr__(self) -> str:
        return f"Bitmap.of({list(self)})"

    @property
    def data(self) -> bytes:
        """The bits, without trailing zero bytes."""
        return self._bits


class Channel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one signed document per fleet that says who runs what."""

    fleet: str
    sequence: int
    """Grows by one with every change; a node refuses a smaller one than it has seen."""
    stable: str = ""
    """Release digest of the last rollout that succeeded; empty before the first."""
    candidate: str = ""
    """Release digest in rollout; empty when none."""
    wave: bytes = b""
    """Bitmap of the indexes that move to the candidate."""
    stay: bytes = b""
    """Bitmap of indexes that keep what they run (superseded rollouts, holds); quarantine wins."""
    quarantined: tuple[str, ...] = ()
    """Release digests that no node may start; one that runs such a release goes to stable."""
    rollout: str = ""
    """Identifier of the rollout behind ``candidate``; receipts repeat it."""
    deltas: str = ""
    """Digest of the ``DeltaList`` (protocol.delta) for the trees of stable and candidate;
    empty when there is none. The publisher fills it in."""
    content_urls: tuple[str, ...] = ()
    """Plain file servers with the hub's content, at most ``limits.CONTENT_URLS``, asked before
    the hub by whoever would ask the hub itself. The publisher fills it in."""
    schema: Literal[1] = 1

    def target(self, index: int, running: str) -> str:
        """The release digest that the node with this index should run.

        ``running`` is what it runs now ("" for nothing). Returns ``running`` to mean "stay".
        """
        if self.candidate and index in Bitmap(self.wave) and self.candidate not in self.quarantined:
            return self.candidate
        if running and running not in self.quarantined and index in Bitmap(self.stay):
            return running
        return self.stable


class NodeRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the hub says about one node, signed by its channels key.

    It travels in sync replies, so a relay can neither move a node to another fleet nor
    change its labels.
    """

    node: str
    sequence: int
    fleet: str = ""
    """Empty: no fleet selects this node; it keeps what it runs."""
    index: int = 0
    labels: dict[str, str] = {}
    sealed: dict[str, str] = {}
    """Secret source digest to the digest of the object sealed to this node."""
    identities: dict[str, tuple[str, ...]] = {}
    """SPIFFE paths that workloads on this node may have, each with the DNS names that may
    stand beside it: ``/app/shops/till``."""
    key: bytes = b""
    """DER SubjectPublicKeyInfo of its enrolment key where that is in a TPM: renewals must be
    signed by it, also when a relay answers them."""
    schema: Literal[1] = 1


class Signed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A payload with one signature over ``purpose NUL payload``.

    ``purpose`` keeps a signature made for one message type from being used for another.
    """

    purpose: Literal["node-record/1", "receipt/1", "bundle/1", "media/1"]
    payload: bytes
    key_id: str
    """Hex SHA-256 of the signer's public key in DER SubjectPublicKeyInfo form."""
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature covers."""
        return self.purpose.encode() + b"\0" + self.payload
