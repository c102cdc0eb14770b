"""``edgewise bundle``: releases on a stick, for sites without a network (docs/offline.md)."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgewise.cli.session import Session, short, size, stamp
from edgewise.model.errors import BadUsage, EdgewiseError, TryLater

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgewise.backends.files.bundle import Writer
    from edgewise.cli.content import Content
    from edgewise.protocol.channel import Signed
    from edgewise.protocol.content import Tree
    from edgewise.protocol.media import Media, MediaReply

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)

File = Annotated[Path, typer.Argument(help="The bundle: a file or a directory.")]
State = Annotated[Path, typer.Option(help="Directory of this node.")]
STATE = Path("/var/lib/edgewise")
RELAY_STATE = Path("/var/lib/edgewise-relay")


@app.callback()
def _group() -> None:
    """What a site without a network needs, on removable media."""


class Exported(msgspec.Struct, frozen=True):
    """What ``bundle export --output json`` prints."""

    to: str
    release: str
    expires: str
    objects: int
    size: int
    """Bytes of objects and deltas."""
    deltas: int = 0
    """Deltas and packs."""
    brought: int = 0
    """Unpacked bytes of what they bring, which is not in the bundle whole."""


@app.command("export", help="Write a fleet's release with all that a node or relay needs.")
def export(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    fleet: Annotated[str, typer.Option(help="Whose nodes may take it.")],
    to: Annotated[Path, typer.Option(help="File to write, or an empty directory.")],
    release: Annotated[
        str, typer.Option(help="Digest of a release; default: what the fleet runs.")
    ] = "",
    platform: Annotated[
        list[str] | None, typer.Option(help="Only trees of these platforms. Repeatable.")
    ] = None,
    base: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Release that the receivers have, complete: what it shares with this one is left "
            "out, and deltas from it bring the rest. Repeatable.",
        ),
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="No deltas: what --from lacks is in it whole.")
    ] = False,
    packs: Annotated[
        bool,
        typer.Option("--packs", help="Packs in place of whole files: smaller, for nodes alone."),
    ] = False,
    valid: Annotated[str, typer.Option(help="How long nodes take it; at most 1095d.")] = "365d",
) -> None:
    from edgewise.backends.files.bundle import write_bundle
    from edgewise.cli.bundle_deltas import carried
    from edgewise.cli.content import Content
    from edgewise.protocol.content import object_path
    from edgewise.protocol.delta import delta_path
    from edgewise.protocol.media import BundleIndex, MediaReply, MediaRequest

    session = Session.of(ctx)
    if to.exists() and not to.is_dir():
        raise BadUsage(f"{to} exists already", hint="name another file; bundles are not replaced")
    content = Content(session, None, None)
    platforms = frozenset(platform or ())
    known = _Walked({}, {})
    for one in base or ():
        known |= _walk(content, one.removeprefix("sha256:"), platforms)
    wanted = MediaRequest(
        fleet, release.removeprefix("sha256:"), _seconds(valid),
        () if whole else tuple(sorted(known.trees)), packs,
    )  # fmt: skip
    reply = session.client().post("/v1/media", wanted, MediaReply)
    found = _walk(content, reply.release, platforms)
    objects = {s: length for s, length in found.objects.items() if s not in known.objects}
    documents = _sealed(reply) | _channels(reply)
    written = 0
    with ExitStack() as held:
        others = carried(content, reply.deltas, (known.trees, found.trees), objects, held)
        if others.files:
            documents |= {reply.deltas, *_lists(reply)}
        brought = sum(objects.pop(sha256) for sha256 in others.left_out)
        index = BundleIndex(
            fleet, reply.release, tuple(sorted(platforms)), tuple(base or ()),
            len(objects) + len(documents), sum(objects.values()), len(others.files),
        )  # fmt: skip
        _check_room(to.parent, index.size + others.size)
        writer = held.enter_context(write_bundle(to, index))
        _write_order(writer, reply)
        for number, sha256 in enumerate(sorted(objects.keys() | documents), 1):
            length = objects.get(sha256, SEALED)
            with content.packed(sha256, length) as (packed, packed_size):
                writer.add(object_path(sha256), packed_size, packed)
                written += packed_size
            if not number % 500:
                session.note(f"{number} of {index.objects} objects, {size(written)}")
        for delta, file in others.files:
            writer.add(delta_path(delta.sha256), delta.size, file)
            written += delta.size
    counts = (index.objects, written, index.deltas, brought)
    exported = Exported(str(to), reply.release, stamp(reply.expires), *counts)
    if session.as_json:
        session.json(exported)
    else:
        _say(session, exported, fleet, to.name)


def _say(session: Session, made: Exported, fleet: str, name: str) -> None:
    typer.echo(f"exported: {fleet}, release {short(made.release)}, {size(made.size)}, to {made.to}")
    if made.deltas:
        session.note(f"  {made.deltas} deltas and packs bring {size(made.brought)} of it")
    session.note(f"  nodes take it until {made.expires}; on a node: edgewise bundle import {name}")


class Shown(msgspec.Struct, frozen=True):
    """What ``bundle show --output json`` prints."""

    fleet: str
    release: str
    issued: str
    expires: str
    verified: bool
    """Whether the signatures hold from the root that was given, or from the oldest within."""
    problem: str
    root: str
    """SHA-256 of that root."""
    platforms: tuple[str, ...]
    leaves_out: tuple[str, ...]
    objects: int
    size: int
    nodes: tuple[str, ...]
    deltas: int = 0
    """Deltas and packs: what they bring is not in it whole."""
    deltas_size: int = 0


@app.command("show", help="What is in a bundle, for whom, until when, and whether it is signed.")
def show(
    ctx: typer.Context,
    file: File,
    root: Annotated[
        Path | None, typer.Option(help="Root metadata that you trust; else the oldest within.")
    ] = None,
) -> None:
    from edgewise.backends.files.bundle import Bundle

    session = Session.of(ctx)
    bundle = Bundle.open(file)
    index, files = bundle.index(), bundle.metadata()
    trusted = root.read_bytes() if root is not None else _oldest(files)
    media, problem = _look(files, trusted)
    from edgewise.model.names import Digest

    shown = Shown(
        fleet=media.channel.fleet if media else index.fleet,
        release=media.channel.stable if media else index.release,
        issued=stamp(media.issued) if media else "",
        expires=stamp(media.expires) if media else "",
        verified=not problem,
        problem=problem,
        root=Digest.of(trusted).sha256,
        platforms=index.platforms,
        leaves_out=index.leaves_out,
        objects=len(bundle.objects()),
        size=sum(length for _, length in bundle.objects()),
        nodes=tuple(node for node, _ in bundle.records()),
        deltas=len(bundle.deltas()),
        deltas_size=sum(length for _, length in bundle.deltas()),
    )
    if session.as_json:
        session.json(shown)
    else:
        session.facts(_facts(shown))
    if problem:
        raise typer.Exit(5)


def _facts(shown: Shown) -> list[tuple[str, str]]:
    nodes = ", ".join(shown.nodes[:10]) + (" ..." if len(shown.nodes) > 10 else "")
    return [
        ("fleet", shown.fleet),
        ("release", shown.release),
        ("platforms", ", ".join(shown.platforms) or "all"),
        ("exported", shown.issued),
        ("good until", shown.expires),
        ("signatures", shown.problem or "hold"),
        ("root", shown.root),
        ("content", f"{shown.objects} objects, {size(shown.size)}"),
        ("deltas", f"{shown.deltas}, {size(shown.deltas_size)}" if shown.deltas else ""),
        ("for nodes with", ", ".join(short(one) for one in shown.leaves_out)),
        (f"{len(shown.nodes)} nodes", nodes),
    ]


class Result(msgspec.Struct, frozen=True):
    """What ``bundle import --output json`` prints."""

    release: str
    fleet: str
    staged: bool
    agent: int
    """Process id of the agent that was told; 0: none runs."""


@app.command("import", help="Check a bundle, stage its release on this node, tell the agent.")
def import_(
    ctx: typer.Context,
    file: File,
    state: State = STATE,
    relay: Annotated[
        bool, typer.Option("--relay", help="Fill the cache of a relay, which is stopped, instead.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say whether this machine would take it.")
    ] = False,
) -> None:
    from edgewise.backends.files.bundle import Bundle
    from edgewise.roles.media_import import import_on_node
    from edgewise.roles.media_relay import import_on_relay
    from edgewise.runtime.clock import SystemClock

    session = Session.of(ctx)
    told = [0]

    def progress(done: int, total: int) -> None:
        if total and done * 10 // total > told[0]:
            told[0] = done * 10 // total
            session.note(f"{told[0] * 10} % of {size(total)}")

    bundle = Bundle.open(file)
    if relay:
        where = RELAY_STATE if state == STATE else state
        work = import_on_relay(where.resolve(), bundle, SystemClock(), progress, dry_run=dry_run)
        cached = asyncio.run(work)
        if session.as_json:
            session.json(cached)
            return
        would = "would take" if dry_run else "took"
        typer.echo(f"the relay {would} {cached.objects} objects, {size(cached.size)}")
        if not cached.fresh:
            session.note(
                "  the bundle's timestamp has expired, so nodes hear nothing of it from the relay: "
                "import the bundle on each node too"
            )
        return
    came = asyncio.run(
        import_on_node(state.resolve(), bundle, SystemClock(), progress, dry_run=dry_run)
    )
    channel = came.verified.channel
    fleet, release = (channel.fleet, channel.stable) if channel else ("", "")
    if session.as_json:
        session.json(Result(release, fleet, came.staged, came.told))
        return
    if not came.staged:
        typer.echo(f"this node would take release {short(release)} of {fleet}")
        return
    typer.echo(f"staged: release {short(release)} of {fleet}")
    if came.told:
        session.note("  the agent was told; `edgewise agent status` shows what it does")
    else:
        session.note("  no agent runs here; it starts the release when it is started")


# What an export needs

SEALED = 1 << 20
"""Bytes of a secret that is sealed to a node; see delivery.on_agent."""


def _seconds(text: str) -> float:
    from edgewise.model.quantity import parse_duration

    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise BadUsage(f"--valid: {error}", hint="it takes 30d or 365d") from error


@dataclass(frozen=True, slots=True)
class _Walked:
    """What lies below a release."""

    objects: dict[str, int]
    """Digest to bytes of everything."""
    trees: dict[str, Tree]

    def __or__(self, other: _Walked) -> _Walked:
        return _Walked(self.objects | other.objects, self.trees | other.trees)


def _walk(content: Content, release: str, platforms: frozenset[str]) -> _Walked:
    """For these platforms (none: for all)."""
    from edgewise.delivery.contents import objects_of_tree
    from edgewise.delivery.delta import parse_tree
    from edgewise.protocol import limits
    from edgewise.protocol.codec import decode
    from edgewise.protocol.content import Part, ProcessApp, Release

    data = content.object(release, limits.RELEASE)
    document = decode(data, Release, what="release", at_most=limits.RELEASE)
    found, trees = {release: len(data)}, set[str]()
    kind: Any = Part
    for ref in document.parts:
        for digest in {*ref.variants.values(), *ref.nodes.values()} - {""}:
            data = content.object(digest, limits.PART)
            found[digest] = len(data)
            part = decode(data, kind, what=ref.name, at_most=limits.PART)
            if isinstance(part, ProcessApp):
                trees |= {
                    tree.sha256
                    for platform, tree in part.trees.items()
                    if not platforms or platform in platforms
                }
    parsed = {}
    for tree in sorted(trees):
        manifest = content.object(tree, limits.TREE)
        found |= objects_of_tree(tree, manifest)
        parsed[tree] = parse_tree(manifest)
    return _Walked(found, parsed)


def _lists(reply: MediaReply) -> set[str]:
    """The list that the fleet's channel names: nodes behind a relay hear of that one."""
    from edgewise.protocol import limits
    from edgewise.protocol.channel import Channel
    from edgewise.protocol.codec import decode

    channels = (data for name, data in reply.metadata.items() if "/" in name)
    named = (decode(data, Channel, what="channel", at_most=limits.CHANNEL) for data in channels)
    return {channel.deltas for channel in named} - {""}


def _channels(reply: MediaReply) -> set[str]:
    from edgewise.model.names import Digest

    return {Digest.of(data).sha256 for name, data in reply.metadata.items() if "/" in name}


def _write_order(writer: Writer, reply: MediaReply) -> None:
    from edgewise.protocol.codec import encode

    for name, data in sorted(reply.metadata.items()):
        if "/" not in name:
            writer.add(f"tuf/{name}", len(data), BytesIO(data))
    for node, signed in sorted(reply.records.items()):
        data = encode(signed)
        writer.add(f"records/{node}.json", len(data), BytesIO(data))


def _sealed(reply: MediaReply) -> set[str]:
    """Secrets that are sealed to the nodes: only those can open them."""
    from edgewise.protocol import limits
    from edgewise.protocol.channel import NodeRecord
    from edgewise.protocol.codec import decode

    def of(signed: Signed) -> Iterable[str]:
        record = decode(signed.payload, NodeRecord, what="record", at_most=limits.RECORD)
        return record.sealed.values()

    return {digest for signed in reply.records.values() for digest in of(signed)}


def _check_room(folder: Path, needed: int) -> None:
    """Packed it is less, but nobody knows how much before it is there."""
    import os

    from edgewise.model.errors import NeedsPerson

    about = os.statvfs(folder)
    free = about.f_bavail * about.f_frsize
    if free < needed:
        raise NeedsPerson(
            f"{folder} has {size(free)} free, the release has {size(needed)} unpacked",
            hint="free space, or leave out what the receivers have: --from, --platform",
        )


def _oldest(files: dict[str, bytes]) -> bytes:
    roots = sorted(
        (int(name.partition(".")[0]), name) for name in files if name.endswith(".root.json")
    )
    if not roots:
        raise BadUsage("the bundle has no root metadata", hint="export it again")
    return files[roots[0][1]]


def _look(files: dict[str, bytes], root: bytes) -> tuple[Media | None, str]:
    """The order, and what is wrong with it (empty: nothing)."""
    from edgewise.delivery.media import check_time, open_offer
    from edgewise.runtime.clock import SystemClock

    try:
        media = open_offer(files, root, None).media
    except EdgewiseError as error:
        return None, str(error)
    try:
        check_time(media, SystemClock().now())
    except TryLater as error:
        return media, str(error)
    return media, ""
