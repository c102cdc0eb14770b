"""Enrolments in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from edgewise.identity.ports import Attestations, Enrolled, Enrolments, Lineages, TokenRecord
from edgewise.identity.reattestation import Attestation
from edgewise.identity.rotation import Lineage
from edgewise.identity.tokens import key_digest
from edgewise.model.errors import NotFound


class MemoryEnrolments:
    """What the hub knows, gone with the process."""

    def __init__(self) -> None:
        self.enrolled: dict[str, Enrolled] = {}
        self.issued_tokens: dict[str, TokenRecord] = {}
        self.lineages: dict[str, Lineage] = {}
        self.attested: dict[str, Attestation] = {}

    async def get(self, name: str) -> Enrolled | None:
        return self.enrolled.get(name)

    async def all(self) -> tuple[Enrolled, ...]:
        return tuple(self.enrolled[name] for name in sorted(self.enrolled))

    async def forget(self, name: str) -> None:
        self.enrolled.pop(name, None)
        self.lineages.pop(name, None)
        self.attested.pop(name, None)

    async def quarantine(self, name: str, reason: str) -> None:
        if name in self.enrolled:
            self.enrolled[name] = replace(self.enrolled[name], quarantined=reason)

    async def add_token(self, token: TokenRecord) -> None:
        self.issued_tokens[token.identifier] = token

    async def token(self, identifier: str) -> TokenRecord | None:
        return self.issued_tokens.get(identifier)

    async def tokens(self) -> tuple[TokenRecord, ...]:
        return tuple(self.issued_tokens[name] for name in sorted(self.issued_tokens))

    async def revoke_token(self, identifier: str) -> None:
        self.issued_tokens.pop(identifier, None)

    async def forget_tokens(self, before: datetime) -> None:
        kept = {n: t for n, t in self.issued_tokens.items() if t.expires >= before}
        self.issued_tokens = kept

    async def bind(self, identifier: str, enrolled: Enrolled) -> None:
        if identifier not in self.issued_tokens:
            raise NotFound(f"token {identifier} was revoked just now")
        token = self.issued_tokens[identifier]
        bound = {**token.bound, key_digest(enrolled.key): enrolled.name}
        self.issued_tokens[identifier] = replace(token, bound=bound)
        self.enrolled[enrolled.name] = enrolled

    async def enrol(self, enrolled: Enrolled) -> None:
        self.enrolled[enrolled.name] = enrolled

    async def proven_by(self, evidence: str) -> Enrolled | None:
        everybody = self.enrolled.values()
        return next((e for e in everybody if evidence and e.evidence == evidence), None)

    async def attestations(self) -> dict[str, Attestation]:
        return dict(self.attested)

    async def attestation(self, name: str) -> Attestation | None:
        return self.attested.get(name)

    async def keep_attestation(self, name: str, attestation: Attestation) -> None:
        self.attested[name] = attestation

    async def lineage(self, name: str) -> Lineage:
        return self.lineages.get(name, Lineage())

    async def keep_lineage(self, name: str, lineage: Lineage) -> None:
        self.lineages[name] = lineage


def _meets_its_ports(store: MemoryEnrolments) -> tuple[Enrolments, Lineages, Attestations]:
    return store, store, store
