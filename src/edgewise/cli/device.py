"""``edgewise device``: where to join without a token, device lists, references, this TPM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgewise.cli.session import Session, ago, labels, stamp
from edgewise.model.errors import BadUsage, NeedsPerson

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False)


@app.callback()
def _group() -> None:
    """Machines that prove what they are."""


@app.command("invite", help="What a machine needs to join by its own proof. It is no secret.")
def invite(
    ctx: typer.Context,
    url: Annotated[
        list[str] | None, typer.Option(help="Hub or relay to join at; default: this hub.")
    ] = None,
) -> None:
    import hashlib

    from edgewise.cli.client import Client, Context
    from edgewise.protocol.join import Token
    from edgewise.runtime.credentials import certificates_in, fingerprint

    session = Session.of(ctx)
    context = Context.find(session.context)
    tuf, _ = Client(context).raw("/v1/content/tuf/1.root.json")
    roots = certificates_in(context.roots)
    urls = tuple(url or (context.told.url,))
    made = Token(urls, fingerprint(roots[0]), "", "", hashlib.sha256(tuf).hexdigest())
    if session.as_json:
        session.json({"invitation": made.text(), "root": made.root, "tuf_root": made.tuf_root,
                      "urls": urls})  # fmt: skip
        return
    typer.echo(made.text())
    session.note("  next: on the machine, `edgewise agent join INVITATION --tpm`")
    session.note(f"  or: edgewise agent join --tpm --url {urls[0]} --root {made.root}")
    session.note(f"      --tuf-root {made.tuf_root}")


@app.command("import", help="A supplier's CSV as a DeviceList, on standard output.")
def import_(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="Columns name and ek or serial; others are labels.")],
    name: Annotated[str, typer.Option(help="Of the document.")] = "devices",
    region: Annotated[str, typer.Option(help="Where the file has no column region.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="key=value, for every device.")] = None,
    pattern: Annotated[
        str, typer.Option(help="Names where the file has none: kiosk-{serial}, kiosk-{row}.")
    ] = "",
) -> None:
    from edgewise.cli.device_list import device_list, read_rows
    from edgewise.cli.node import key_values

    session = Session.of(ctx)
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{file} cannot be read: {error}") from error
    rows = read_rows(text, pattern)
    document = device_list(name, rows, region, key_values(label or []))
    if session.as_json:
        session.json(document)
        return
    import yaml

    typer.echo(yaml.safe_dump(document, sort_keys=False), nl=False)
    session.note(f"{len(rows)} devices; put it into nodes/ of the fleet repo")


@app.command("reference", help="The PCR values of a node's last quote, for the Workspace.")
def reference(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(help="A node that has booted what is good.")],
    name: Annotated[str, typer.Option(help="Of the reference; default: the node's.")] = "",
    pcr: Annotated[
        list[int] | None, typer.Option(help="Which PCRs; default: 7 and 11. Repeatable.")
    ] = None,
) -> None:
    from edgewise.cli.client import segment
    from edgewise.protocol.api import NodeDetail

    session = Session.of(ctx)
    detail = session.client().get(f"/v1/nodes/{segment(node)}", NodeDetail)
    known = detail.identity.pcrs
    if not known:
        raise NeedsPerson(f"{node} has no quote yet", hint="has it joined with --tpm?")
    wanted = [str(one) for one in pcr or (7, 11)]
    if missing := [one for one in wanted if one not in known]:
        raise BadUsage(
            f"{node} does not quote PCR {', '.join(missing)}",
            hint=f"it quotes {', '.join(known)}; see join.attestation.pcrs",
        )
    found = {"name": name or node, "pcrs": {one: known[one] for one in wanted}}
    if session.as_json:
        session.json(found)
        return
    import yaml

    whole = {"spec": {"join": {"attestation": {"references": [found]}}}}
    typer.echo(yaml.safe_dump(whole, sort_keys=False), nl=False)


@app.command("show", help="The TPM of this machine: what a DeviceList knows it by.")
def show(
    ctx: typer.Context,
    device: Annotated[
        str,
        typer.Option(
            "--tpm-device",
            "--device",
            metavar="PLACE",
            help="/dev/tpmrm0, or unix:PATH of a simulator.",
        ),
    ] = "/dev/tpmrm0",
) -> None:
    import hashlib

    from edgewise.host.tpm import open_tpm
    from edgewise.identity import tpm_keys, tpm_node
    from edgewise.identity.tpm_structures import RSA, parse_public
    from edgewise.model.documents.joining import MEASURED

    session = Session.of(ctx)
    with open_tpm(device) as tpm:
        keys = tpm_node.keys_of(tpm)
        pcrs = tpm.read_pcrs(MEASURED)
    ek = parse_public(keys.ek)
    digest = hashlib.sha256(tpm_keys.spki(ek)).hexdigest()
    kind = "RSA 2048" if ek.kind == RSA else "ECDSA P-256"
    issuer, values = _issuer(keys.chain), {str(one): value.hex() for one, value in pcrs.items()}
    if session.as_json:
        session.json({"ek": digest, "kind": kind, "issuer": issuer, "pcrs": values})
        return
    session.facts(
        [
            ("endorsement key", digest),
            ("kind", kind),
            ("certified by", issuer or "nobody: the TPM holds no certificate"),
        ]
    )
    for one, value in pcrs.items():
        typer.echo(f"PCR {one:2}  {value.hex()}")


def _issuer(chain: tuple[bytes, ...]) -> str:
    from cryptography import x509

    if not chain:
        return ""
    try:
        return x509.load_der_x509_certificate(chain[0]).issuer.rfc4514_string()
    except ValueError as error:
        return f"(cannot be read: {error})"


@app.command("ls", help="How every node proved itself, and what its TPM said last.")
def ls(
    ctx: typer.Context,
    selector: Annotated[str, typer.Option("--selector", "-l", help="As in `node ls`.")] = "",
    failing: Annotated[bool, typer.Option("--failing", help="Only those that fail.")] = False,
) -> None:
    from edgewise.protocol.api import NodeProof

    session = Session.of(ctx)
    page = session.client().pages(
        "/v1/attestations", NodeProof, selector=selector, failing="true" if failing else ""
    )
    if session.as_json:
        session.json(page)
        return
    session.table(
        ("NODE", "JOINED BY", "VOUCHED BY", "ATTESTED", "BOOT", "SINCE", "WHY", "LABELS"),
        (
            (
                one.name, one.identity.method, one.identity.vouched,
                ago(one.identity.attested) if one.identity.attested else "never",
                one.identity.reference,
                stamp(one.identity.failing_since) if one.identity.failing_since else "",
                one.identity.what, labels(one.labels),
            )
            for one in page.items
        ),
        none="No node." if not failing else "No node fails.",
    )  # fmt: skip
