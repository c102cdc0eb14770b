"""Names, digests and platforms: values that cannot exist in a malformed state."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?")
_SPIFFE_PATH = re.compile(r"(/[A-Za-z0-9._-]+)+")
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(/v[0-9]+)?")


def is_name(text: str) -> bool:
    """Whether ``text`` may name a node, fleet, app or any other document (a DNS label)."""
    return _LABEL.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Whether ``text`` is a SHA-256 as it is on the wire: 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A SHA-256, written ``sha256:<64 hex>`` for people and as bare hex on the wire."""

    sha256: str

    def __post_init__(self) -> None:
        if not is_digest(self.sha256):
            raise ValueError(f"digest {self.sha256!r} is not 64 lower-case hex digits")

    def __str__(self) -> str:
        return f"sha256:{self.sha256}"

    @property
    def short(self) -> str:
        """The first 12 hex digits, enough for people."""
        return self.sha256[:12]

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The digest of ``data``."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Digest:
        """From ``sha256:<hex>`` or bare hex."""
        return cls(text.removeprefix("sha256:"))


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """``os/architecture[/variant]`` as OCI writes it (linux/amd64, linux/arm64)."""

    value: str

    def __post_init__(self) -> None:
        if not _PLATFORM.fullmatch(self.value):
            raise ValueError(f"platform {self.value!r} is not like linux/amd64 or linux/arm64")

    def __str__(self) -> str:
        return self.value

    @classmethod
    def of_machine(cls, system: str, machine: str) -> Platform:
        """From ``platform.system()`` and ``platform.machine()``."""
        known = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "riscv64": "riscv64"}
        return cls(f"{system.lower()}/{known.get(machine, machine.lower())}")


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """``spiffe://<trust domain><path>``; SPIFFE-ID specification, sections 2.1 to 2.3."""

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            raise ValueError(f"trust domain {self.trust_domain!r} is not a lower-case DNS name")
        if not _SPIFFE_PATH.fullmatch(self.path):
            raise ValueError(f"SPIFFE path {self.path!r} is not like /node/name")

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}{self.path}"

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """From its URI; raises ValueError for anything else."""
        if not text.startswith("spiffe://"):
            raise ValueError(f"{text!r} is not a SPIFFE ID (spiffe://trust-domain/path)")
        domain, slash, path = text.removeprefix("spiffe://").partition("/")
        return cls(domain, slash + path)

    @property
    def role(self) -> str:
        """The first path segment: hub, relay, node, user or app."""
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """What follows the role; empty for the hub."""
        return self.path.removeprefix(f"/{self.role}").removeprefix("/")
