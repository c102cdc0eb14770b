"""Replacing the root of a hub that runs: what ``edgewise ca rotate-root`` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509

from edgewise.backends.pki.authority import Authority
from edgewise.identity.ports import Enrolments
from edgewise.identity.root_rotation import NEXT_STEP, Progress, Told, check, progress
from edgewise.net.api.authority import Rotator
from edgewise.net.api.bundles import Bundles
from edgewise.net.api.ports import Evidence, Roster
from edgewise.protocol.api import CaStatus, RootLine, RotateRoot
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import fingerprint


@dataclass(slots=True)
class Rotation:
    """``apply`` makes the rest of the hub use what the authority has now: its own certificate,
    the operator's folder, what tokens pin."""

    authority: Authority
    bundles: Bundles
    roster: Roster
    evidence: Evidence
    register: Enrolments
    clock: Clock
    apply: Callable[[], None]

    async def status(self) -> CaStatus:
        """See ``Rotator``."""
        roots = self.authority.root
        lines = []
        for state, name, certificate in (
            ("signs", "root", roots.active),
            ("next", "root-next", roots.next),
            ("old", "root-old", roots.old),
        ):
            if certificate is not None:
                lines.append(_line(state, certificate, here=roots.keys.has(name)))
        now = self._progress()
        open_tokens = sum(
            one.expires > self.clock.now() and len(one.bound) < one.uses
            for one in await self.register.tokens()
        )
        return CaStatus(
            self.authority.organisation.name,
            roots.stage,
            tuple(lines),
            self.bundles.sequence,
            now.machines,
            now.ready,
            now.waiting,
            NEXT_STEP[roots.stage],
            open_tokens,
            tuple(sorted(self.bundles.current.own)) if self.bundles.current else (),
        )

    async def step(self, request: RotateRoot) -> CaStatus:
        """See ``Rotator``."""
        roots = self.authority.root
        age = self.clock.now() - roots.activated
        check(request.step, roots.stage, self._progress(), force=request.force, age=age)
        if request.dry_run:
            return await self.status()
        match request.step:
            case "prepare":
                roots.prepare()
            case "activate":
                roots.activate()
                self.authority.rotated()
            case "retire":
                roots.retire()
            case "cancel":
                roots.cancel()
        await self.bundles.refresh()
        if request.step == "prepare":
            roots.mark(self.bundles.sequence)
        self.apply()
        return await self.status()

    def _progress(self) -> Progress:
        roots = self.authority.root
        told = []
        for one in self.roster.all():
            if one.quarantined:
                continue
            if one.role == "relay":
                told.append(Told(one.name, *self.bundles.relays.get(one.name, (0, ""))))
                continue
            seen = self.evidence.last_seen(one.name)
            said = seen.observation if seen is not None else None
            issuer = said.issuer if said is not None else ""
            told.append(Told(one.name, said.bundles if said is not None else 0, issuer))
        # A crash between making the next root and marking it: whoever has the newest has it.
        since = roots.marked or self.bundles.sequence
        return progress(roots.stage, told, since=since, active=self.authority.root_sha256)


def _line(state: str, certificate: x509.Certificate, *, here: bool) -> RootLine:
    from cryptography.hazmat.primitives.serialization import Encoding

    return RootLine(
        state,  # type: ignore[arg-type]
        fingerprint(certificate.public_bytes(Encoding.DER)),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        here,
    )


def _meets_its_port(rotation: Rotation) -> Rotator:
    return rotation
