"""``edgewise artifact show`` and ``verify``: what is in an artifact, and whether it all holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from edgewise.cli.content import Content
from edgewise.cli.session import Session, short, size
from edgewise.model.errors import NotFound

if TYPE_CHECKING:
    from edgewise.delivery.provenance import Provenance
    from edgewise.delivery.sbom import SbomSummary
    from edgewise.protocol.content import Artifact

Name = Annotated[str, typer.Argument(help="Name of the artifact.")]
Version = Annotated[str, typer.Argument(help="Its version.")]
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        help="A content directory in place of the hub: a copy of what a hub or relay serves, with "
        "tuf/ and objects/ in it. Needs no network.",
    ),
]
RootFile = Annotated[
    Path | None,
    typer.Option("--root", help="Root metadata that you trust; else the oldest that is there."),
]


class Shown(msgspec.Struct, frozen=True):
    """What ``artifact show --output json`` prints."""

    artifact: Any
    sboms: dict[str, Any]
    """Platform to a summary of its SBOM."""
    provenance: Any
    builders: tuple[str, ...]
    """Keys that may sign builds, of which one signed the list with this artifact."""
    root: str
    """SHA-256 of the root metadata that was begun with."""
    expired: tuple[str, ...]
    deltas: tuple[Any, ...] = ()
    """Deltas and packs that lead to its trees, of any fleet."""


def add(app: typer.Typer) -> None:
    """Hang the commands on ``edgewise artifact``."""
    app.command("show", help="Trees, sizes, SBOM and provenance of one artifact.")(show)
    app.command("verify", help="Check one artifact again, down to its last file.")(verify)


def show(  # noqa: PLR0913 - one parameter is one option of the command line
    ctx: typer.Context,
    name: Name,
    version: Version,
    sbom: Annotated[
        str, typer.Option(help="Print the whole SBOM of this platform.", show_default=False)
    ] = "",
    provenance: Annotated[
        bool, typer.Option("--provenance", help="Print the provenance, envelope and all.")
    ] = False,
    folder: From = None,
    root: RootFile = None,
) -> None:
    session = Session.of(ctx)
    content = Content(session, folder, root)
    artifact = content.artifact(name, version)
    if sbom or provenance:
        ref = artifact.sbom(sbom) if sbom else artifact.provenance
        if ref is None:
            has = ", ".join(e.platform or e.kind for e in artifact.all_evidence) or "none"
            what = f"SBOM for {sbom}" if sbom else "provenance"
            raise NotFound(f"{name} {version} has no {what}", hint=f"it has {has}")
        typer.echo(content.evidence(ref.sha256).decode(errors="replace"))
        return
    sboms, said = content.checked(artifact)
    deltas = content.deltas(artifact)
    if session.as_json:
        view, keys = content.view, content.builder_ids()
        shown = Shown(artifact, dict(sboms), said, keys, view.first_root, view.expired, deltas)
        session.json(shown)
        return
    session.facts(_facts(artifact, said, content))
    typer.echo("")
    session.table(
        ("PLATFORM", "TREE", "FILES", "SIZE", "SBOM"),
        (
            (one, short(ref.sha256), str(ref.files), size(ref.size), _sbom_line(sboms.get(one)))
            for one, ref in artifact.trees.items()
        ),
        none="It has no tree.",
    )
    _tell_parts(sboms)
    if deltas:
        typer.echo("")
        session.table(
            ("TO TREE", "FROM", "BYTES"),
            ((short(d.tree), short(d.base) if d.base else "nothing", size(d.size)) for d in deltas),
            none="",
        )


class Checked(msgspec.Struct, frozen=True):
    """What ``artifact verify --output json`` prints."""

    name: str
    version: str
    objects: int
    bytes: int
    signed_by: tuple[str, ...]
    """Keys whose signature on the provenance holds; empty for none."""
    root: str
    expired: tuple[str, ...]


def verify(
    ctx: typer.Context, name: Name, version: Version, folder: From = None, root: RootFile = None
) -> None:
    """Exit 0 when everything holds; 5 when something does not."""
    session = Session.of(ctx)
    content = Content(session, folder, root)
    artifact = content.artifact(name, version)
    _, said = content.checked(artifact)
    objects, total = content.walk(artifact)
    signed_by = said.signed_by if said else ()
    if session.as_json:
        view = content.view
        session.json(
            Checked(name, version, objects, total, signed_by, view.first_root, view.expired)
        )
        return
    typer.echo(f"ok: {name} {version}, {objects} objects, {size(total)} unpacked")
    session.facts(_facts(artifact, said, content))
    if root is None:
        session.note(
            f"the root was taken from where the rest is: compare {content.view.first_root}"
            " with what you know, or give --root"
        )


def _facts(artifact: Artifact, said: Provenance | None, content: Content) -> list[tuple[str, str]]:
    facts = [
        ("artifact", f"{artifact.name} {artifact.version}"),
        ("built from", artifact.built_from),
        ("list signed", f"yes, by one of {', '.join(short(k) for k in content.builder_ids())}"),
        ("expired", ", ".join(content.view.expired)),
    ]
    if said is None:
        return [*facts, ("provenance", "none")]
    if said.signed_by:
        signature = f"yes, by {', '.join(short(key) for key in said.signed_by)}"
    elif said.signatures:
        signature = "by a key that may not sign builds: not verified"
    else:
        signature = "no; only the signed list speaks for it"
    return [
        *facts,
        ("provenance", "in-toto statement, SLSA provenance v1"),
        ("  signed", signature),
        ("  builder", said.builder),
        ("  source", said.source),
        ("  commit", said.commit + (" and uncommitted changes" if said.changed else "")),
    ]


def _sbom_line(said: SbomSummary | None) -> str:
    if said is None:
        return "none"
    whole = {True: "complete", False: "incomplete", None: ""}[said.complete]
    return f"{said.format}: {said.counted or 'empty'}" + (f" ({whole})" if whole else "")


def _tell_parts(sboms: dict[str, SbomSummary]) -> None:
    for platform, said in sboms.items():
        if said.first:
            typer.echo(f"\n{platform}, first packages: {', '.join(said.first)}")
