"""The relay: what it is made of.

``python -m edgewise.roles.relay --state DIR --join - --name NAME --url URL`` the first
time, ``python -m edgewise.roles.relay --state DIR`` from then on.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import RESERVE, Space, SpaceTerms
from edgewise.backends.pki.authority import RegionalAuthority
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.backends.sqlite.database import Database
from edgewise.backends.sqlite.relay import SqliteRelayMemory, open_relay_database
from edgewise.backends.tuf.repository import FileMetadata
from edgewise.delivery.brake import Brake
from edgewise.delivery.on_relay import Cache
from edgewise.identity.card import Card
from edgewise.identity.names import Station, sibling_of
from edgewise.identity.on_agent import Machine, MachineIdentity, join, rejoin, renew, trust
from edgewise.identity.on_relay import RegionalEnroller
from edgewise.identity.rotation import checked_life, renew_at
from edgewise.identity.workloads import Desk
from edgewise.model.errors import BadUsage, EdgewiseError, behind
from edgewise.model.quantity import parse_bytes, parse_duration
from edgewise.net.client import CertificateRefused, Client, Endpoint
from edgewise.net.http1 import ClosedEarly
from edgewise.net.joining import Doorway, ask_for_trust, by_identity, by_token
from edgewise.net.relaying import HubOverHttps, RelayRoutes, WaitingNodes
from edgewise.net.server import Listen, Server
from edgewise.net.sources import ROOT, Origin, Sources, on_shelf, plain_origin
from edgewise.net.tls import client_context, reload, server_context
from edgewise.net.waiters import Waiters
from edgewise.protocol.bundles import TrustBundles
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import decode, encode
from edgewise.protocol.join import Token
from edgewise.protocol.sync import RelayNews
from edgewise.roles import libraries
from edgewise.rollout.on_relay import Pace, Relaying
from edgewise.runtime.backoff import Backoff
from edgewise.runtime.chance import Chance, SystemChance
from edgewise.runtime.clock import Clock, SystemClock
from edgewise.runtime.credentials import fingerprint, write_private
from edgewise.runtime.hidden import hidden
from edgewise.runtime.log import Log, StreamLog

HUB_CONNECTIONS: Final = 3
"""One held poll, one report, and joins that are passed on."""
CONTENT_CONNECTIONS: Final = 8
"""For the cache. Apart from the others: news must not wait behind a region's downloads."""
TRUST_LOOK: Final = timedelta(seconds=2)
"""How soon after it does not believe the hub a relay asks whom to believe; it then asks less
and less often."""
PEER_CONNECTIONS: Final = 4
LONGEST_SLEEP: Final = timedelta(hours=1)
"""Between two looks at the clock: it may be set right at any moment."""


class Place(msgspec.Struct, frozen=True):
    """``place.json``: what the relay was told when it joined."""

    urls: tuple[str, ...]
    """Where nodes reach it."""
    hub_urls: tuple[str, ...] = ()
    """Where the relay reaches the hub, when that differs from what the hub says."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Everything a relay can be told. docs/relay.md explains each."""

    state: Path
    listen: str = ""
    """``host:port``; empty: as in the URL that it joined with."""
    hub_urls: tuple[str, ...] = ()
    """Where the hub is reached; empty: what the hub said at the join."""
    cache_bytes: int = 20 << 30
    reserve_bytes: int = RESERVE
    """Of the disk, left free for others."""
    content_urls: tuple[str, ...] = ()
    """Plain file servers with the hub's content, asked before the hub."""
    peers: tuple[str, ...] = ()
    """Sibling relays of this region, asked before anybody else."""
    rate: int = 0
    """Bytes a second that content may take of the lines upwards; 0: no limit."""
    hold: timedelta = timedelta(seconds=60)
    """How long a node's poll is held."""
    node_life: timedelta = timedelta(days=45)
    """How long the certificates are good that it gives to nodes: as at the hub."""
    announced: bool = True
    """Whether file servers that the hub's channels name are asked, too."""


@dataclass(slots=True)
class _Parts:
    """A relay, put together."""

    identity: MachineIdentity
    card: Card
    client: Client
    sources: Sources
    shelf: FileShelf
    relaying: Relaying
    waiters: Waiters
    enroller: RegionalEnroller
    desk: Desk
    keyring: JwtKeyFiles
    server: Server
    listen: Listen
    looked: asyncio.Event
    """Whom we trust has changed: look at our own certificates again."""
    node_life: timedelta

    @property
    def outdated(self) -> bool:
        """Whether our certificates are from a root that signs no more."""
        roots = self.identity.credentials.root_certificates()
        return self.card.outdated(tuple(map(fingerprint, roots)))


async def join_hub(
    settings: RelaySettings, token_text: str, name: str, urls: tuple[str, ...]
) -> Card:
    """Join this machine as a relay. Repeating it with the same token is harmless.

    Raises BadUsage for a damaged token or URL, TryLater, Untrusted, or what the hub says.
    """
    urls = urls or (_own_url(settings.listen),)
    for url in urls:
        _address(url)
    clock = SystemClock()
    token = Token.parse(token_text)
    if settings.hub_urls:
        token = msgspec.structs.replace(token, urls=settings.hub_urls)
    settings.state.mkdir(parents=True, exist_ok=True)
    place = Place(urls, settings.hub_urls)
    write_private(settings.state / "place.json", encode(place), mode=0o644)
    line = await by_token(token, clock)
    try:
        identity = MachineIdentity(settings.state / "identity")
        return await join(identity, token, Machine("relay", name, urls=urls), line)
    finally:
        await line.close()


async def run(settings: RelaySettings, ready: Callable[[str], None] | None = None) -> None:
    """Serve until the task is cancelled. ``ready`` gets the relay's URL once it serves.

    Raises NeedsPerson when it has not joined or another process has the directory.
    """
    clock, chance = SystemClock(), SystemChance()
    log = StreamLog(clock, "relay")
    database = open_relay_database(settings.state / "relay.db")
    parts = None
    try:
        parts = _assemble(settings, database, clock, chance, log)
        await parts.relaying.open()
        if (bundles := parts.relaying.known.trusted) is not None:
            _trust(parts, bundles, clock, log)
        await parts.server.start(parts.listen)
        url = f"https://{parts.listen.host}:{parts.server.port}"
        log.event("relay serves", url=url, spiffe_id=parts.card.spiffe_id)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(parts.waiters.run())
            tasks.create_task(parts.relaying.follow())
            tasks.create_task(parts.relaying.report())
            tasks.create_task(_keep_identity(parts, clock, chance, log))
            tasks.create_task(_ask_whom_to_believe(parts, clock, chance, log))
            _say_ready(settings.state, url, parts.card.spiffe_id)
            if ready is not None:
                ready(url)
    finally:
        (settings.state / "ready.json").unlink(missing_ok=True)
        if parts is not None:
            parts.waiters.wake_all()
            await parts.shelf.close()
            await parts.server.close()
            await parts.sources.close()
            await parts.client.close()
        database.close()


def _assemble(
    settings: RelaySettings, database: Database, clock: Clock, chance: Chance, log: Log
) -> _Parts:
    identity = MachineIdentity(settings.state / "identity")
    card = identity.card()
    place = decode((settings.state / "place.json").read_bytes(), Place, what="place.json")
    hub_urls = settings.hub_urls or place.hub_urls or card.urls
    endpoint = Endpoint(hub_urls, client_context(identity.credentials), card.expects)
    client = Client(endpoint, clock, HUB_CONNECTIONS)
    content = settings.state / "content"
    sources = _sources(settings, card, client, clock, log)
    terms = SpaceTerms(settings.cache_bytes, settings.reserve_bytes)
    shelf = FileShelf(Space(CacheFiles(content), terms, clock, log), sources, log)
    cache = Cache(
        shelf, FileMetadata(content / "tuf"), sources, root=identity.tuf_root, clock=clock
    )
    waiters = Waiters(clock, chance, settings.hold)
    memory = SqliteRelayMemory(database)
    relaying = Relaying(
        memory,
        HubOverHttps(client),
        cache,
        WaitingNodes(waiters),
        clock,
        chance,
        log,
        pace=Pace(hold=settings.hold),
    )
    if settings.announced:
        sources.announced = lambda: announced_by(relaying.known.channels.values())
    authority = _authority(identity, card, clock, settings.node_life)
    enroller = RegionalEnroller(
        authority.organisation,
        card.region,
        authority,
        Doorway(client),
        memory,
        lambda name: "it was forgotten or quarantined" if name in relaying.known.gone else "",
        clock,
        log,
        lambda name: node.key if (node := relaying.known.nodes.get(name)) else b"",
    )
    keyring = JwtKeyFiles(identity.directory / "jwt", clock)
    desk = Desk(authority.organisation, authority, keyring, lambda: relaying.known.trusted)
    station = Station(authority.organisation, card.region)
    mounts = libraries.relay_mounts((cache, content), station, relaying.admit, log)
    routes = RelayRoutes(
        station, relaying, waiters, cache, enroller, lambda: _until(enroller), desk, clock
    )
    host, port = _address(f"https://{settings.listen}" if settings.listen else place.urls[0])
    if port == 0:
        # Any port would do, but nodes have been told one.
        _, port = _address(place.urls[0])
    parts = _Parts(
        identity,
        card,
        client,
        sources,
        shelf,
        relaying,
        waiters,
        enroller,
        desk,
        keyring,
        Server(routes.routes(), clock, chance, log, mounts),
        Listen(host, port, server_context(identity.credentials)),
        asyncio.Event(),
        settings.node_life,
    )
    relaying.own = lambda: (
        tuple(key.spki for key in keyring.keys(card.region)),
        parts.card.root,
    )
    relaying.trusting = lambda bundles: _trust(parts, bundles, clock, log)
    return parts


def _sources(settings: RelaySettings, card: Card, hub: Client, clock: Clock, log: Log) -> Sources:
    """Siblings, then plain file servers, then the hub, which has everything."""
    brake = Brake(settings.rate) if settings.rate else None
    origins = []
    for url in settings.peers:
        _address(url)
        endpoint = Endpoint((url,), hub.endpoint.tls, lambda peer: sibling_of(card.id, peer))
        client = Client(endpoint, clock, PEER_CONNECTIONS)
        origins.append(
            Origin(url.removeprefix("https://"), client, only_cached=True, wants=on_shelf)
        )
    origins += [plain_origin(url, clock, brake) for url in settings.content_urls]
    content = Client(hub.endpoint, clock, CONTENT_CONNECTIONS)
    origins.append(Origin("hub", content, brake=brake))
    return Sources(tuple(origins), clock, log, brake=brake)


def announced_by(channels: Iterable[Channel]) -> tuple[str, ...]:
    """File servers that any of them names, in their order."""
    return tuple(dict.fromkeys(url for channel in channels for url in channel.content_urls))


def _trust(parts: _Parts, bundles: TrustBundles, clock: Clock, log: Log) -> None:
    """Use new trust bundles: whom we believe, and which JWT keys nobody needs any more."""
    domain = parts.card.id.trust_domain
    if domain in bundles.own:
        parts.keyring.drop(parts.card.region, frozenset(bundles.own[domain].jwt))
    if not trust(parts.identity, bundles):
        return
    log.decision("other roots are trusted", because=f"trust bundles {bundles.sequence}")
    _use_files(parts, clock)
    parts.looked.set()


async def _keep_identity(parts: _Parts, clock: Clock, chance: Chance, log: Log) -> None:
    """Renew the relay's certificate and its regional CA for ever, long before they end."""
    backoff = Backoff(chance, first=timedelta(seconds=30), cap=timedelta(minutes=30))
    fraction = chance.fraction()
    while True:
        parts.looked.clear()
        wait = renew_at(parts.card.validity, fraction) - clock.now()
        if wait > timedelta() and not parts.outdated:
            await _look_again(parts.looked, clock, min(wait, LONGEST_SLEEP))
            continue
        try:
            await _renew(parts, clock)
        except EdgewiseError as error:
            log.event("certificate not renewed", "warning", because=str(error), hint=error.hint)
            await clock.sleep(backoff.next())
            continue
        fraction = chance.fraction()
        log.event("certificate renewed", until=parts.card.not_after)
        if parts.outdated:  # the hub itself has not changed over yet
            await clock.sleep(backoff.next())
        else:
            backoff.reset()


async def _ask_whom_to_believe(parts: _Parts, clock: Clock, chance: Chance, log: Log) -> None:
    """Where the hub's certificate is not believed, the root may have been replaced while this
    relay was away: the signed trust bundles say."""
    backoff = Backoff(chance, first=TRUST_LOOK, cap=timedelta(minutes=30))
    seen = 0
    while True:
        await clock.sleep(backoff.next())
        if parts.client.strangers == seen:
            backoff.reset()
            continue
        seen = parts.client.strangers
        try:
            reply = await ask_for_trust(parts.client.endpoint.urls, clock)
            news = RelayNews(
                reply.metadata, cursor=parts.relaying.known.cursor, bundles=reply.bundles
            )
            await parts.relaying.learn(news)
        except EdgewiseError as error:
            log.event("the hub is not believed", "warning", because=str(error), hint=error.hint)


async def _look_again(looked: asyncio.Event, clock: Clock, within: timedelta) -> None:
    waits = asyncio.create_task(looked.wait()), asyncio.create_task(clock.sleep(within))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _renew(parts: _Parts, clock: Clock) -> None:
    expired = not parts.card.validity.holds(clock.now())
    try:
        await _renew_once(parts, clock, rejoining=expired)
    except (CertificateRefused, ClosedEarly):
        if expired or not parts.outdated:
            raise
        # From a root that the hub trusts no more: the enrolment key still says who we are.
        expired = True
        await _renew_once(parts, clock, rejoining=True)
    if expired:  # a rejoin brings no regional CA
        await _renew_once(parts, clock, rejoining=False)


async def _renew_once(parts: _Parts, clock: Clock, *, rejoining: bool) -> None:
    card = msgspec.structs.replace(parts.card, urls=parts.client.endpoint.urls)
    line = by_identity(card, parts.identity.credentials, clock, expired=rejoining)
    try:
        parts.card = await (rejoin if rejoining else renew)(parts.identity, line)
    finally:
        await line.close()
    _use_files(parts, clock)


def _use_files(parts: _Parts, clock: Clock) -> None:
    """Certificates, keys and roots as they are on disk now; connections stay."""
    credentials = parts.identity.credentials
    if parts.listen.tls is not None:
        reload(parts.listen.tls, credentials)
    tls = client_context(credentials)
    # Plain file servers see no certificate of ours.
    ours = [origin.client for origin in parts.sources.origins if origin.root == ROOT]
    for client in (parts.client, *ours):
        client.endpoint = replace(client.endpoint, tls=tls)
        client.forget_connections()
    authority = _authority(parts.identity, parts.card, clock, parts.node_life)
    parts.enroller.issuer = parts.desk.issuer = authority


def _authority(
    identity: MachineIdentity, card: Card, clock: Clock, node_life: timedelta
) -> RegionalAuthority:
    roots = identity.credentials.root_certificates()
    authority = RegionalAuthority.open(identity.directory, roots, card.region, clock)
    return replace(authority, node_life=node_life)


def _until(enroller: RegionalEnroller) -> datetime | None:
    issuer = enroller.issuer
    return issuer.not_after if isinstance(issuer, RegionalAuthority) else None


def _address(url: str) -> tuple[str, int]:
    """Host and port of ``https://host:port``. Raises BadUsage for anything else."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme != "https" or not host or port is None or parts.path.strip("/"):
        raise BadUsage(f"{url!r} is not like https://host:port", hint="name host and port")
    return host, port


def _own_url(listen: str) -> str:
    """Where nodes reach a relay that was only told where to listen."""
    host, port = _address(f"https://{listen}")
    if host in ("0.0.0.0", "::"):
        raise BadUsage(
            f"{listen} does not say where nodes reach this relay", hint="add --url https://..."
        )
    return f"https://{host}:{port or _free_port(host)}"


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        return int(probe.getsockname()[1])


def _say_ready(state: Path, url: str, spiffe_id: str) -> None:
    about = {"url": url, "pid": os.getpid(), "spiffe_id": spiffe_id}
    write_private(state / "ready.json", encode(about), mode=0o644)


async def _until_told(settings: RelaySettings) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(run(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        return


def _life(text: str) -> timedelta:
    try:
        return checked_life("--node-life", parse_duration(text))
    except ValueError as error:
        raise BadUsage(f"--node-life: {error}") from error


def _size(option: str, text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise BadUsage(f"{option}: {error}") from error


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m edgewise.roles.relay",
        description="Serve a region: cache, gather reports, renew certificates.",
    )
    parser.add_argument("--state", type=Path, required=True, help="directory of this relay")
    parser.add_argument("--listen", default="", metavar="HOST:PORT", help="default: as in --url")
    parser.add_argument(
        "--hub", action="append", default=[], metavar="URL", help="where the hub is reached"
    )
    parser.add_argument("--cache", default="20Gi", metavar="SIZE", help="most bytes to cache")
    parser.add_argument(
        "--reserve", default="256Mi", metavar="SIZE", help="of the disk, left free for others"
    )
    parser.add_argument(
        "--content-url",
        action="append",
        default=[],
        metavar="URL",
        help="a plain file server or CDN with the hub's content, asked before the hub",
    )
    parser.add_argument(
        "--no-announced", action="store_true", help="ask no file servers that the hub names"
    )
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="URL",
        help="another relay of this region, asked first for what it keeps already",
    )
    parser.add_argument(
        "--rate",
        default="0",
        metavar="SIZE",
        help="bytes a second of content from the hub and file servers; 0: no limit",
    )
    parser.add_argument("--hold", default=60.0, type=float, metavar="SECONDS")
    parser.add_argument("--node-life", default="45d", help="as at the hub")
    parser.add_argument(
        "--join",
        default="",
        metavar="TOKEN",
        help="join first, unless it has: -, @FILE, the text; left out: EDGEWISE_TOKEN",
    )
    parser.add_argument("--join-only", action="store_true", help="with --join: do not serve yet")
    parser.add_argument("--name", default="", help="with --join: this relay's name")
    parser.add_argument(
        "--url", action="append", default=[], help="with --join: https://host:port for nodes"
    )
    return parser


def main(given: list[str] | None = None) -> int:
    """Returns the exit code; docs/errors.md lists them."""
    chosen = arguments().parse_args(given)
    try:
        settings = RelaySettings(
            chosen.state,
            chosen.listen,
            tuple(chosen.hub),
            _size("--cache", chosen.cache),
            _size("--reserve", chosen.reserve),
            tuple(chosen.content_url),
            tuple(chosen.peer),
            _size("--rate", chosen.rate),
            timedelta(seconds=chosen.hold),
            _life(chosen.node_life),
        )
        settings = replace(settings, announced=not chosen.no_announced)
        token = hidden(chosen.join)
        if token and not MachineIdentity(settings.state / "identity").credentials.exist:
            card = uvloop.run(join_hub(settings, token, chosen.name, tuple(chosen.url)))
            print(f"joined as {card.spiffe_id}", flush=True)
        if not chosen.join_only:
            uvloop.run(_until_told(settings))
    except EdgewiseError as error:
        return _ended(error)
    except BaseExceptionGroup as group:
        if (found := behind(group)) is None:
            raise
        return _ended(found)
    return 0


def _ended(error: EdgewiseError) -> int:
    print(f"error: {error}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
