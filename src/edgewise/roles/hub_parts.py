"""What a hub is made of, put together."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from edgewise import __version__
from edgewise.backends.files.delta_files import FileDeltas
from edgewise.backends.files.objects import FileObjects
from edgewise.backends.git.follow import GitWatch, Rhythm
from edgewise.backends.git.repository import GitRepository, Origin
from edgewise.backends.git.reverts import GitReverts
from edgewise.backends.git.signatures import CommitSignatures
from edgewise.backends.pki.authority import Authority
from edgewise.backends.pki.certificates import Hosts
from edgewise.backends.pki.keys import Passphrase, no_passphrase
from edgewise.backends.pki.sealing import WorkspaceKey
from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.deltas import SqliteDeltas
from edgewise.backends.sqlite.enrolments import SqliteEnrolments
from edgewise.backends.sqlite.hub import SqliteHub
from edgewise.backends.sqlite.people import SqlitePeople
from edgewise.backends.sqlite.rollouts import SqliteNodeStates, SqliteRollouts
from edgewise.backends.sqlite.source import SqliteCommits
from edgewise.backends.tuf.repository import FileKeys, FileMetadata, load_public
from edgewise.delivery.deltas import DEFAULT, DeltaSettings
from edgewise.delivery.on_hub import Publisher
from edgewise.identity.on_hub import Enroller, HubPlace, signature_holds
from edgewise.model.errors import BadUsage, EdgewiseError
from edgewise.model.labels import Labels
from edgewise.net.api.attesting import Attestor, Surroundings
from edgewise.net.api.authority import AuthorityRoutes
from edgewise.net.api.bundles import Bundles
from edgewise.net.api.commits import CommitRoutes, Hooks
from edgewise.net.api.deltas import DeltaRoutes
from edgewise.net.api.everything import Groups, hub_routes
from edgewise.net.api.fleet import FleetRoutes, View
from edgewise.net.api.joining import JoinRoutes
from edgewise.net.api.journal import Journal, JournaledLog
from edgewise.net.api.login import LoginRoutes
from edgewise.net.api.people import PeopleRoutes
from edgewise.net.api.records import Records
from edgewise.net.api.relays import RelaySide
from edgewise.net.api.rollouts import RolloutRoutes
from edgewise.net.api.supply import SupplyRoutes
from edgewise.net.api.sync import Fleetside, NodeSync, guard
from edgewise.net.api.workloads import WorkloadRoutes
from edgewise.net.federation import Federation
from edgewise.net.gates import ExecAndHttpGates
from edgewise.net.published import Board
from edgewise.net.register import PeopleRegister
from edgewise.net.server import Listen, Mount, Server
from edgewise.net.tls import reload, server_context
from edgewise.net.waiters import Waiters
from edgewise.protocol import limits
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.protocol.codec import decode
from edgewise.roles import libraries
from edgewise.roles.fleet_source import (
    FleetSource,
    Parts,
    PeopleAndMachines,
    inputs_of,
    unsigned_of,
)
from edgewise.roles.hub_deltas import DeltaPlaces, HubDeltas
from edgewise.roles.hub_identity import open_identity, root_keys
from edgewise.roles.hub_people import git_mount, open_people
from edgewise.roles.root_rotation import Rotation
from edgewise.rollout.on_hub import Outside, Rollouts
from edgewise.rollout.ports import Notice
from edgewise.runtime.chance import Chance
from edgewise.runtime.clock import Clock
from edgewise.runtime.credentials import CredentialFiles
from edgewise.runtime.log import Log
from edgewise.sync.on_hub import SourceFollower, Sources, Weigh

UPKEEP: Final = timedelta(hours=1)
"""How often signatures and certificates are looked at; both live for days."""
UNUSED_FOR: Final = timedelta(days=7)
"""Objects that nothing published names are removed after this time."""
SUSPICIONS: Final = 1000


@dataclass(frozen=True, slots=True)
class HubSettings:
    """`edgewise up`: everything has a default that is safe on a laptop."""

    data: Path
    """Directory of everything the hub keeps; one hub at a time."""
    organisation: str = "edgewise"
    """Part of every identity (``spiffe://hub.<organisation>/hub``); fixed at the first start."""
    listen: str = "127.0.0.1:8443"
    """``HOST:PORT``; port 0 lets the system choose."""
    urls: tuple[str, ...] = ()
    """Where nodes and people reach it; default: the address it listens on."""
    branch: str = "main"
    git_url: str = ""
    """Repository to follow; empty: the hub's own, by `git push`."""
    poll: timedelta = timedelta(minutes=1)
    trust: Literal["hub", "builder"] | None = None
    """None: as the data directory has it; a new one starts with ``hub``."""
    builder_keys: tuple[Path, ...] = ()
    """Public keys that may sign builds, besides those that may already."""
    hold: timedelta = timedelta(seconds=60)
    """How long polls are held: the heartbeat of nodes that have nothing to say."""
    webhook_secret: Path | None = None
    """File with the secret of webhooks; none: webhooks are off."""
    oidc: Path | None = None
    """File that names the OpenID provider; none: people log in with passwords."""
    log_json: bool = False
    node_life: timedelta = timedelta(days=45)
    """How long nodes' certificates are good; a relay has the same setting."""
    root_key: str = ""
    """``pkcs11:`` URI of the token with the root's key; empty: a file below ``pki/``."""
    root_passphrase: Passphrase = no_passphrase
    """Opens the root's key where it is sealed, and seals new ones."""
    deltas: DeltaSettings = DEFAULT
    content_urls: tuple[str, ...] = ()
    """Plain file servers that every channel names from now on; ``checked_urls`` made them."""


@dataclass(slots=True)
class Upkeep:
    """What has to be done again before it runs out."""

    publisher: Publisher
    objects: FileObjects
    records: Records
    authority: Authority
    credentials: CredentialFiles
    hosts: Hosts
    tls: ssl.SSLContext
    operator: Callable[[], bool]
    """Keeps the first operator's folder; whether it had to write there."""
    clock: Clock
    chance: Chance
    log: Log
    bundles: Bundles | None = None
    federation: Federation | None = None
    deltas: HubDeltas | None = None

    async def run(self) -> None:
        """Once an hour, until cancelled. A failure is logged and tried again next time."""
        async with asyncio.TaskGroup() as tasks:
            if self.federation is not None:
                tasks.create_task(self.federation.run())
            if self.deltas is not None:
                tasks.create_task(self.deltas.run())
            tasks.create_task(self._hourly())

    async def _hourly(self) -> None:
        while True:
            await self.clock.sleep(UPKEEP)
            try:
                await self.once()
            except EdgewiseError as error:
                self.log.event("upkeep failed", "error", because=str(error), hint=error.hint)

    async def once(self) -> None:
        """Sign metadata again, renew our own certificate, remove what nothing names."""
        for name in await self.publisher.refresh():
            self.log.decision("signed again", because="its life is partly used up", file=name)
        self.renew_certificate()
        if self.bundles is not None:
            await self.bundles.refresh()  # JWT keys have a life of their own
        keep = await self.publisher.reachable() | self.records.sealed_objects()
        before = (self.clock.now() - UNUSED_FOR).timestamp()
        await self.objects.collect(keep, unused_since=before)
        if self.deltas is not None:
            await self.deltas.collect()

    def renew_certificate(self) -> None:
        """Make the hub's certificate, and the operator's, anew once half of its life is over."""
        if self.authority.keep_hub(self.credentials, self.hosts, self.chance.fraction()):
            reload(self.tls, self.credentials)
        if self.operator():
            self.log.event("operator's certificate written")

    @property
    def identity(self) -> str:
        """The hub's SPIFFE ID."""
        return str(self.authority.organisation.hub)


class Notices:
    """Takes the rollout engine's notices to the audit log."""

    def __init__(self, journal: Journal, log: Log) -> None:
        self._journal = journal
        self._log = log

    async def notify(self, notice: Notice) -> None:
        """One line each; a repeat after a crash is a second line, which harms nobody."""
        self._log.decision(notice.event, because=notice.text, rollout=notice.rollout)
        await self._journal.note("hub", notice.event, notice.rollout, notice.text)


@dataclass(frozen=True, slots=True)
class Assembled:
    """A hub's parts, not yet listening."""

    url: str
    listen: Listen
    server: Server
    rollouts: Rollouts
    source: FleetSource
    waiters: tuple[Waiters, Waiters]
    upkeep: Upkeep
    suspicions: asyncio.Queue[tuple[str, str]]
    journal: Journal
    decisions: JournaledLog
    attestor: Attestor
    people: PeopleRegister


@dataclass(slots=True)
class Stores:
    """What is kept on disk, opened."""

    objects: FileObjects
    publisher: Publisher
    first_root: bytes
    """TUF root metadata, version 1: what nodes begin with and tokens pin."""
    journal: Journal
    rollouts: SqliteRollouts
    records: Records
    enrolments: SqliteEnrolments
    repository: GitRepository
    commits: SqliteCommits
    hub: SqliteHub
    people: PeopleRegister


async def assemble(
    settings: HubSettings, clock: Clock, chance: Chance, log: Log, database: Database
) -> Assembled:
    """Open everything below the data directory and connect it."""
    host, port = _address(settings.listen)
    urls = _urls(settings, host, port)
    stores = await _open_stores(settings, (clock, chance), database)
    publisher, records, journal = stores.publisher, stores.records, stores.journal
    deltas = await _deltas(settings, stores, database, clock, log)
    board = Board(publisher, log)
    decisions = JournaledLog(log, journal)
    rollouts = Rollouts(_outside(stores, database, board, log), clock, chance, decisions)
    await rollouts.start()
    deltas.say_again = rollouts.say_again
    roster = PeopleAndMachines(stores.enrolments)
    await roster.load()
    authority = _authority(settings, clock)
    source = _source(settings, stores, rollouts, roster, (clock, chance, log), deltas.weigh)
    mine = await open_identity(authority, stores.hub, publisher, roster, (clock, chance, log))
    bundles = mine.bundles
    operator = _operator(settings, authority, source, urls[0])
    upkeep, tls = _upkeep(
        settings, authority, stores, (clock, chance, log), (host, *urls), operator
    )
    waiters = Waiters(clock, chance, settings.hold), Waiters(clock, chance, settings.hold)
    suspicions, suspect = _suspicions()

    async def changed(name: str) -> None:
        await source.changed(name)
        await bundles.membership(name, roster.get(name))

    side = Fleetside(
        settings.organisation, roster, records, board, rollouts, signature_holds, suspect, bundles
    )
    nodes, relays = NodeSync(side, waiters[0], clock), RelaySide(side, waiters[1], clock)
    board.connect(nodes, relays)
    source.connect(waiters[0], relays)
    upkeep.bundles, upkeep.federation, upkeep.deltas = bundles, mine.federation, deltas
    source.federate = mine.federation.want
    bundles.changed = lambda: _wake(waiters)
    place = HubPlace(authority.organisation, urls, authority.root_sha256, lambda: stores.first_root)
    enroller = Enroller(
        stores.enrolments, authority, place, clock, chance, log, changed, source.join_rules
    )
    around = _surroundings(roster, source, records, rollouts, changed)
    attestor = Attestor(stores.enrolments, around, clock, chance, decisions)
    await attestor.load()
    use = _use_authority(authority, upkeep, enroller)
    rotation = Rotation(authority, bundles, roster, rollouts, stores.enrolments, clock, use)
    view = View(
        settings.organisation, __version__, publisher.mode, roster, rollouts, stores.rollouts,
        records, source, journal, clock, attestor.of, mine.federation.status,
    )  # fmt: skip
    supply = _supply(settings, stores, deltas, source, side)
    people = open_people(
        settings.oidc, stores.people, authority, journal, (clock, chance), lambda: source.recipient
    )
    groups = Groups(
        nodes,
        relays,
        FleetRoutes(view, stores.enrolments, changed),
        RolloutRoutes(rollouts, source, view.sight, journal, clock),
        CommitRoutes(source, rollouts, stores.rollouts, view.sight, _hooks(settings), log),
        supply,
        JoinRoutes(enroller, changed, journal, attestor),
        LoginRoutes(people.logins, people.register),
        PeopleRoutes(people.logins, people.register),
        journal,
        WorkloadRoutes(side, mine.desk, clock),
        mine.trust,
        AuthorityRoutes(rotation, journal),
        DeltaRoutes(deltas),
    )
    mounts = _mounts(stores, source, supply, log)
    server = Server(hub_routes(groups), clock, chance, log, mounts, gate=people.gate)
    server.on_refused, server.on_failed = journal.refused, journal.failed
    return Assembled(
        urls[0], Listen(host, port, tls), server, rollouts, source, waiters, upkeep, suspicions,
        journal, decisions, attestor, people.register,
    )  # fmt: skip


async def _deltas(
    settings: HubSettings, stores: Stores, database: Database, clock: Clock, log: Log
) -> HubDeltas:
    """Deltas of what is published; the publisher tells of them from now on."""
    files = FileDeltas(
        settings.data / "content",
        settings.data / "deltas",
        recompress=settings.deltas.recompress,
    )
    places = DeltaPlaces(stores.publisher, stores.objects, SqliteDeltas(database), files)
    deltas = HubDeltas(places, settings.deltas, clock, log)
    await deltas.load()
    stores.publisher.listing = deltas.listing
    return deltas


def _supply(
    settings: HubSettings, stores: Stores, deltas: HubDeltas, source: FleetSource, side: Fleetside
) -> SupplyRoutes:
    """What people publish; the deltas and the source look at it at once."""

    def published() -> None:
        deltas.nudge()
        source.look_again()

    content = settings.data / "content"
    supply = SupplyRoutes(stores.publisher, stores.objects, content, stores.journal, published)
    supply.guard, supply.records = lambda peer: guard(side, peer), stores.records.of_fleet
    return supply


def _mounts(stores: Stores, source: FleetSource, supply: SupplyRoutes, log: Log) -> list[Mount]:
    """git, and the registry of images."""
    git = git_mount(stores.repository.directory, stores.journal, source.pushed)
    return [git, *libraries.hub_mounts(stores.publisher, stores.objects.path, supply.guard, log)]


def _outside(stores: Stores, database: Database, board: Board, log: Log) -> Outside:
    """What rollouts are kept in, published by and asked through."""
    return Outside(
        stores.rollouts,
        SqliteNodeStates(database),
        board,
        ExecAndHttpGates(),
        Notices(stores.journal, log),
        GitReverts(stores.repository, CommitSignatures(stores.repository)),
    )


def _surroundings(
    roster: PeopleAndMachines,
    source: FleetSource,
    records: Records,
    rollouts: Rollouts,
    changed: Callable[[str], Awaitable[None]],
) -> Surroundings:
    """What the attestor asks and tells."""

    def labels(name: str) -> Labels:
        kept, enrolled = records.get(name), roster.get(name)
        return kept[0].labels if kept else (enrolled.labels if enrolled else {})

    def heard(name: str) -> datetime | None:
        seen = rollouts.last_seen(name)
        return seen.heard if seen else None

    return Surroundings(roster, source.join_rules, labels, heard, changed)


def _authority(settings: HubSettings, clock: Clock) -> Authority:
    pki = settings.data / "pki"
    keys = root_keys(pki, settings.root_key, settings.root_passphrase)
    authority = Authority.open_or_create(pki, settings.organisation, clock, keys)
    authority.node_life = settings.node_life
    return authority


def _suspicions() -> tuple[asyncio.Queue[tuple[str, str]], Callable[[str, str], None]]:
    suspicions: asyncio.Queue[tuple[str, str]] = asyncio.Queue(SUSPICIONS)

    def suspect(subject: str, what: str) -> None:
        if not suspicions.full():  # the first thousand say it all
            suspicions.put_nowait((subject, what))

    return suspicions, suspect


def _operator(
    settings: HubSettings, authority: Authority, source: FleetSource, url: str
) -> Callable[[], bool]:
    """Keeps the first operator's folder."""
    folder, data = settings.data / "operator", str(settings.data.resolve())
    return lambda: authority.keep_operator(
        "admin", folder, url, age_recipient=source.recipient, data=data
    )


def _use_authority(authority: Authority, upkeep: Upkeep, enroller: Enroller) -> Callable[[], None]:
    """Makes everything use the roots as they are now, after a step of their rotation."""

    def use() -> None:
        upkeep.renew_certificate()
        enroller.place = replace(enroller.place, root_sha256=authority.root_sha256)

    return use


def _wake(waiters: tuple[Waiters, Waiters]) -> None:
    for some in waiters:
        some.wake_all()


def _source(
    settings: HubSettings,
    stores: Stores,
    rollouts: Rollouts,
    roster: PeopleAndMachines,
    outside: tuple[Clock, Chance, Log],
    weigh: Weigh,
) -> FleetSource:
    clock, chance, log = outside
    publisher, repository = stores.publisher, stores.repository
    sources = Sources(
        repository,
        lambda: inputs_of(publisher, roster),
        stores.commits,
        CommitSignatures(repository),
        lambda compiled: unsigned_of(publisher, compiled),
        weigh,
    )
    source = FleetSource(
        Parts(
            roster,
            publisher,
            rollouts,
            stores.records,
            SourceFollower(sources, clock),
            GitWatch(repository, clock, chance, log, rhythm=Rhythm(poll=settings.poll)),
            repository,
            WorkspaceKey.open_or_create(settings.data / "keys" / "workspace.age"),
            stores.journal,
            stores.people,
            clock,
            log,
        )
    )
    publisher.admit = source.admit
    return source


async def _open_stores(
    settings: HubSettings, outside: tuple[Clock, Chance], database: Database
) -> Stores:
    clock, chance = outside
    data = settings.data
    objects = FileObjects(data / "content")
    metadata = FileMetadata(data / "content" / "tuf")
    publisher = await Publisher.open(
        metadata,
        FileKeys(data / "keys"),
        objects,
        clock=clock,
        mode=settings.trust,
    )
    publisher.content_urls = settings.content_urls
    await publisher.add_builders([load_public(file) for file in settings.builder_keys])
    store = SqliteHub(database)

    async def sign(payload: bytes) -> Signed:
        return publisher.sign_record(_record(payload))

    records = Records(store, sign)
    await records.load(_record)
    await records.signed_with(publisher.channels_key)
    repository = GitRepository(
        data / "git" / "fleet.git", Origin(settings.branch, settings.git_url)
    )
    await repository.ensure()
    return Stores(
        objects,
        publisher,
        metadata.read("1.root.json") or publisher.root,
        await Journal.open(store, clock),
        SqliteRollouts(database),
        records,
        SqliteEnrolments(database),
        repository,
        SqliteCommits(database),
        store,
        await PeopleRegister.open(SqlitePeople(database), clock, chance),
    )


def _record(payload: bytes) -> NodeRecord:
    return decode(payload, NodeRecord, what="node record", at_most=limits.RECORD)


def _upkeep(
    settings: HubSettings,
    authority: Authority,
    stores: Stores,
    outside: tuple[Clock, Chance, Log],
    places: tuple[str, ...],
    operator: Callable[[], bool],
) -> tuple[Upkeep, ssl.SSLContext]:
    """The hub's certificate, the operator's, and what keeps both."""
    clock, chance, log = outside
    host, *urls = places
    own = () if host in ("", "0.0.0.0", "::") else (host,)
    named = Hosts.of_urls(urls)
    hosts = Hosts.of(dict.fromkeys((*own, *named.names, *named.addresses, "localhost")))
    credentials = CredentialFiles(settings.data / "pki" / "hub")
    authority.keep_hub(credentials, hosts, chance.fraction())
    operator()
    tls = server_context(credentials)
    upkeep = Upkeep(
        stores.publisher, stores.objects, stores.records, authority, credentials, hosts, tls,
        operator, clock, chance, log,
    )  # fmt: skip
    return upkeep, tls


def _hooks(settings: HubSettings) -> Hooks:
    if settings.webhook_secret is None:
        return Hooks("", settings.branch)
    try:
        secret = settings.webhook_secret.read_text().strip()
    except OSError as error:
        raise BadUsage(
            f"cannot read the webhook secret {settings.webhook_secret}: {error.strerror}"
        ) from error
    return Hooks(secret, settings.branch)


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise BadUsage(f"--listen {listen!r} is not HOST:PORT", hint="for example 127.0.0.1:8443")
    host = host.strip("[]")
    if int(port):
        return host, int(port)
    # Tokens carry the address, so it has to be known before anything is made with it.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, 0), family=family) as probe:
            return host, int(probe.getsockname()[1])
    except OSError as error:
        raise BadUsage(
            f"cannot listen on {host}: {error.strerror or error}",
            hint="choose an address of this machine with --listen HOST:PORT",
        ) from error


def _urls(settings: HubSettings, host: str, port: int) -> tuple[str, ...]:
    """What tokens carry. Raises BadUsage for what no node could reach."""
    for url in settings.urls:
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or parts.path.strip("/"):
            raise BadUsage(f"--url {url!r} is not like https://hub.example.org:8443")
    if not settings.urls and host in ("", "0.0.0.0", "::"):
        raise BadUsage(
            f"{host}:{port} does not say where nodes reach this hub",
            hint=f"add --url https://NAME-OF-THIS-MACHINE:{port}",
        )
    shown = f"[{host}]" if ":" in host else host
    return tuple(url.rstrip("/") for url in settings.urls) or (f"https://{shown}:{port}",)
