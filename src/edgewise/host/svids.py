"""The identities of this node's workloads, kept fresh in memory.

Keys live here and nowhere else: after the agent was restarted everything is asked for anew.
While the relay is away what there is goes on until it ends; nothing fails because something
ended, and whoever waits gets the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from edgewise.identity import registrations
from edgewise.identity.registrations import Candidate, Registrations
from edgewise.identity.supply import (
    Held,
    HeldJwt,
    JwtKey,
    WorkloadSupply,
    due,
    held,
    next_look,
    without_stale,
)
from edgewise.identity.workload_ports import Caller, LocalSvid
from edgewise.model.errors import EdgewiseError, Forbidden, TryLater
from edgewise.protocol import limits
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.content import WorkloadRegistration
from edgewise.protocol.installed import Installed
from edgewise.protocol.tasks import SvidAsk, SvidIssued
from edgewise.protocol.workload import JwtSvid, JwtWanted, WorkloadReply, WorkloadRequest
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.log import Log

LOOK: Final = timedelta(minutes=5)
"""How often times are looked at again, because wall clocks are set."""
LONGEST_WAIT: Final = timedelta(minutes=2)
"""Between two tries while SVIDs are due: an hour's SVID is due for half an hour."""


class Keys(Protocol):
    """Where keys are made. Implementation: host.worker.WorkerProcess."""

    async def svids(self, wanted: tuple[SvidAsk, ...]) -> tuple[SvidIssued, ...]:
        """In one request. Raises what the issuer says."""


class JwtLine(Protocol):
    """Where JWT-SVIDs are asked for. Implementation: net.workload_line."""

    async def workloads(self, request: WorkloadRequest) -> WorkloadReply:
        """Raises what the issuer says."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What the supply works with."""

    keys: Keys
    line: JwtLine
    read_bundles: Callable[[], TrustBundles | None]
    """Whom this node trusts, as verified last."""
    clock: Clock
    chance: Chance
    log: Log


class SvidLine(msgspec.Struct, frozen=True):
    """One identity of the node, for a person."""

    spiffe_id: str
    until: datetime | None
    """None: there is none yet."""
    renewed_at: datetime | None
    hint: str = ""
    problem: str = ""


class NodeSvids:
    """``run`` beside the agent's other tasks."""

    def __init__(self, sources: Sources, trust_domain: str) -> None:
        self._sources = sources
        self._registrations = Registrations(trust_domain=trust_domain)
        self._wanted: dict[str, WorkloadRegistration] = {}
        self._have: dict[str, Held] = {}
        self._jwts: dict[JwtKey, HeldJwt] = {}
        self._asked: dict[JwtKey, asyncio.Future[JwtSvid]] = {}
        self._bundles = sources.read_bundles()
        self._version = 1
        self._news = asyncio.Event()
        self._wake = asyncio.Event()
        self._jwt_asked = asyncio.Event()
        self._problems: dict[str, str] = {}
        self.on_change: Callable[[], None] = lambda: None
        """Called when ``problem`` may have become another."""

    # What the agent tells

    def installed(self, installed: Installed | None) -> None:
        """This release is what runs from now on; told before its apps start."""
        found = installed.registrations() if installed else ()
        self._register(replace(self._registrations, entries=registrations.read(found)))

    def recorded(self, record: NodeRecord | None) -> None:
        """The hub has signed what this node may have."""
        granted = dict(record.identities) if record else {}
        self._register(replace(self._registrations, granted=granted))

    def issued_by(self, line: JwtLine) -> None:
        """Whom to ask for JWT-SVIDs from now on."""
        self._sources = replace(self._sources, line=line)

    def moved(self, trust_domain: str) -> None:
        """The node is in another region: every identity has another name there."""
        self._register(replace(self._registrations, trust_domain=trust_domain))

    def trusting(self) -> None:
        """Whom to trust has changed."""
        self._bundles = self._sources.read_bundles()
        self._bump()

    def _register(self, registered: Registrations) -> None:
        if registered == self._registrations:
            return
        self._registrations = registered
        self._wanted = registered.wanted()
        self._have = {name: held for name, held in self._have.items() if name in self._wanted}
        self._jwts = {key: held for key, held in self._jwts.items() if key[0] in self._wanted}
        self._problems = {n: said for n, said in self._problems.items() if n in self._wanted}
        self._wake.set()
        self._bump()

    def _bump(self) -> None:
        self._version += 1
        news, self._news = self._news, asyncio.Event()
        news.set()
        self.on_change()

    # What is asked: identity.supply.WorkloadSupply

    @property
    def version(self) -> int:
        return self._version

    async def newer_than(self, version: int) -> int:
        while self._version <= version:
            await self._news.wait()
        return self._version

    @property
    def registered(self) -> Registrations:
        """What the release asks for and the record grants."""
        return self._registrations

    def entitled(self, caller: Caller) -> tuple[str, ...]:
        return self._registrations.entitled(caller)

    def explain(self, caller: Caller) -> tuple[Candidate, ...]:
        return self._registrations.explain(caller)

    async def x509(self, spiffe_id: str) -> LocalSvid:
        found = self._have.get(spiffe_id)
        if found is None:
            why = self._problems.get(spiffe_id, "it is being asked for")
            raise TryLater(f"there is no SVID for {spiffe_id} yet: {why}")
        if self._sources.clock.now() >= found.svid.not_after:
            why = self._problems.get(spiffe_id, "the next one is being asked for")
            raise TryLater(
                f"the SVID of {spiffe_id} ended at {found.svid.not_after:%H:%M:%S} UTC: {why}"
            )
        return replace(found.svid, hint=self.hint(spiffe_id))

    def bundles(self) -> TrustBundles | None:
        return self._bundles

    def hint(self, spiffe_id: str) -> str:
        found = self._wanted.get(spiffe_id)
        return found.hint if found else ""

    def federates_with(self, spiffe_ids: Iterable[str]) -> tuple[str, ...]:
        found = (
            domain
            for spiffe_id in spiffe_ids
            for entry in self._registrations.of(spiffe_id)
            for domain in entry.federates_with
        )
        return tuple(dict.fromkeys(found))

    async def jwt(self, spiffe_id: str, audience: tuple[str, ...]) -> JwtSvid:
        key = (spiffe_id, tuple(sorted(set(audience))))
        now = self._sources.clock.now()
        found = self._jwts.get(key)
        if found is not None and found.is_fresh(now):
            return found.svid
        coming = self._ask_jwt(key)
        if found is not None and found.lasts(now):
            return found.svid  # nobody waits for a relay that may be away
        try:
            return await asyncio.shield(coming)
        except TryLater:
            if found is not None and found.holds(self._sources.clock.now()):
                return found.svid
            raise

    def _ask_jwt(self, key: JwtKey) -> asyncio.Future[JwtSvid]:
        """One question for all that want the same token."""
        if key not in self._asked:
            self._asked[key] = asyncio.get_running_loop().create_future()
            self._jwt_asked.set()
        return self._asked[key]

    # For people

    def lines(self) -> tuple[SvidLine, ...]:
        """Every identity of the node."""
        found = []
        for name, wish in sorted(self._wanted.items()):
            have = self._have.get(name)
            until, renewed = (have.svid.not_after, have.due) if have else (None, None)
            found.append(SvidLine(name, until, renewed, wish.hint, self._problems.get(name, "")))
        return tuple(found)

    @property
    def tokens(self) -> int:
        """How many JWT-SVIDs are kept."""
        return len(self._jwts)

    def problem(self) -> str:
        """What a person should know: identities that have ended. Empty when none has."""
        now = self._sources.clock.now()
        ended = [n for n, held in self._have.items() if now >= held.svid.not_after]
        if not ended:
            return ""
        more = f" and {len(ended) - 1} more" if len(ended) > 1 else ""
        why = self._problems.get(ended[0], "the next one is being asked for")
        return f"identity {ended[0]}{more} has ended: {why}"

    # The work

    async def run(self) -> None:
        """Renew for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew_for_ever())
            tasks.create_task(self._fetch_jwts())

    async def _renew_for_ever(self) -> None:
        clock = self._sources.clock
        backoff = Backoff(self._sources.chance, first=timedelta(seconds=2), cap=LONGEST_WAIT)
        while True:
            self._wake.clear()
            names = due(self._wanted, self._have, clock.now())
            if names and not await self._renew(names):
                await self._woken(backoff.next())
                continue
            backoff.reset()
            if due(self._wanted, self._have, clock.now()):
                continue  # something was registered meanwhile
            look = next_look(self._wanted, self._have)
            wait = min(LOOK, look - clock.now()) if look else LOOK
            await self._woken(wait)

    async def _woken(self, within: timedelta) -> None:
        sleeping = asyncio.ensure_future(self._sources.clock.sleep(within))
        waking = asyncio.ensure_future(self._wake.wait())
        try:
            await asyncio.wait({sleeping, waking}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waking.cancel()

    async def _renew(self, names: Sequence[str]) -> bool:
        """Ask for these; whether all came. What came is used in any case."""
        fraction = self._sources.chance.fraction()
        whole = True
        for start in range(0, len(names), limits.WORKLOADS):
            batch = names[start : start + limits.WORKLOADS]
            try:
                await self._ask(batch, fraction)
            except Forbidden:
                # Its record is newer or older than ours: those that are allowed go on.
                for name in batch:
                    whole &= await self._ask_alone(name, fraction)
            except EdgewiseError as error:
                self._failed(batch, error)
                whole = False
        return whole

    async def _ask_alone(self, name: str, fraction: float) -> bool:
        try:
            await self._ask((name,), fraction)
        except EdgewiseError as error:
            self._failed((name,), error)
            return False
        return True

    def _failed(self, names: Sequence[str], error: EdgewiseError) -> None:
        said = f"{error} {error.hint}".strip()
        self._problems |= dict.fromkeys(names, said)
        self._sources.log.event(
            "no SVID", "warning", problem=str(error), hint=error.hint, first=names[0], of=len(names)
        )
        self.on_change()

    async def _ask(self, names: Sequence[str], fraction: float) -> None:
        wishes = {name: self._wanted[name] for name in names if name in self._wanted}
        asked = tuple(SvidAsk(w.path, w.dns, w.ttl_s) for w in wishes.values())
        if not asked:
            return
        issued = await self._sources.keys.svids(asked)
        if [one.spiffe_id for one in issued] != list(wishes):
            raise TryLater("identities came by other names; did the node move to another region?")
        for name, one in zip(wishes, issued, strict=True):
            if name not in self._wanted:
                continue  # its registration went while it was asked for
            svid = LocalSvid(name, one.chain, one.key, one.not_before, one.not_after)
            self._have[name] = held(svid, wishes[name], fraction)
            self._problems.pop(name, None)
        self._sources.log.event("SVIDs issued", count=len(issued), first=names[0])
        self._bump()

    async def _fetch_jwts(self) -> None:
        while True:
            await self._jwt_asked.wait()
            await asyncio.sleep(0)  # whoever asks in this moment goes with it
            self._jwt_asked.clear()
            waiting = list(self._asked)[: limits.WORKLOADS]
            await self._ask_jwts(waiting)
            if self._asked:
                self._jwt_asked.set()

    async def _ask_jwts(self, keys: Sequence[JwtKey]) -> None:
        try:
            await self._fetch(keys)
        except EdgewiseError as error:
            if len(keys) > 1 and isinstance(error, Forbidden):
                for key in keys:
                    await self._ask_jwts((key,))
                return
            for key in keys:
                future = self._asked.pop(key)
                future.set_exception(error)
                future.exception()  # whoever asked may have gone

    async def _fetch(self, keys: Sequence[JwtKey]) -> None:
        domain = f"spiffe://{self._registrations.trust_domain}"
        wanted = tuple(JwtWanted(name.removeprefix(domain), names) for name, names in keys)
        reply = await self._sources.line.workloads(WorkloadRequest(jwt=wanted))
        if tuple(svid.spiffe_id for svid in reply.jwt) != tuple(name for name, _ in keys):
            raise TryLater("other JWT-SVIDs came than were asked for")
        for key, svid in zip(keys, reply.jwt, strict=True):
            if key[0] in self._wanted:
                self._jwts[key] = HeldJwt(svid)
            self._asked.pop(key).set_result(svid)
        self._jwts = without_stale(self._jwts, self._sources.clock.now())


def _meets_its_port(svids: NodeSvids) -> WorkloadSupply:
    return svids
