"""The hub's own certificate, the operator's files, and secrets that are sealed to a node."""

from datetime import timedelta
from pathlib import Path

import pyrage
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from identity_of import Hub

from edgewise.backends.pki.certificates import Hosts, hosts_of, validity_of
from edgewise.backends.pki.sealing import WorkspaceKey, opened_values, seal_value
from edgewise.cli.client import Context
from edgewise.identity.rotation import checked_life
from edgewise.model.errors import BadUsage, NeedsPerson, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.tls import CredentialFiles, client_context, server_context
from edgewise.protocol.codec import encode
from edgewise.runtime.credentials import certificates_in

HOSTS = Hosts.of(["127.0.0.1", "hub.example", "::1"])


def test_the_hubs_certificate_is_kept_until_it_is_half_used_up_or_the_hosts_change(
    hub: Hub, tmp_path: Path
) -> None:
    files = CredentialFiles(tmp_path / "own")
    assert hub.authority.keep_hub(files, HOSTS, 0.5)
    first = files.leaf()
    assert hosts_of(first) == HOSTS
    assert not hub.authority.keep_hub(files, HOSTS, 0.5)
    assert hub.authority.keep_hub(files, Hosts.of(["127.0.0.1"]), 0.5)
    assert hub.authority.keep_hub(files, HOSTS, 0.5)
    hub.clock.advance(timedelta(days=46))
    assert hub.authority.keep_hub(files, HOSTS, 0.5)
    assert validity_of(files.leaf()).not_after > validity_of(first).not_after
    server_context(files)


def test_the_operators_folder_is_what_the_cli_reads(hub: Hub, tmp_path: Path) -> None:
    told = hub.authority.issue_operator("anna", tmp_path / "operator", "https://127.0.0.1:8443")
    context = Context(tmp_path / "operator" / "context.json")
    assert context.told == told
    client_context(CredentialFiles(tmp_path / "operator"))
    leaf = x509.load_der_x509_certificate(certificates_in(context.certificate)[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://hub.acme/user/anna"
    ]
    assert context.key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadUsage):
        hub.authority.issue_operator("Anna Maria", tmp_path / "x", "https://127.0.0.1:8443")


@pytest.mark.parametrize("host", ["é.example", "", "x" * 300])
def test_a_host_that_cannot_stand_in_a_certificate_is_refused(host: str) -> None:
    with pytest.raises(BadUsage):
        Hosts.of([host])


def test_a_secret_reaches_the_node_that_may_have_it_and_nobody_else(
    hub: Hub, tmp_path: Path
) -> None:
    key = WorkspaceKey.open_or_create(tmp_path / "workspace.age")
    again = WorkspaceKey.open_or_create(tmp_path / "workspace.age")
    assert again.recipient == key.recipient
    assert (tmp_path / "workspace.age").stat().st_mode & 0o777 == 0o600
    values = {"password": "s3cret\n", "user": "u"}
    data = {name: seal_value(key.recipient, value) for name, value in values.items()}
    document = encode({"name": "db", "encryption": "age", "data": data})
    node, other = hub.machine("kiosk-1"), hub.machine("kiosk-2")
    sealed = again.reseal(document, str(node.age_identity().to_public()))
    assert b"s3cret" not in sealed
    assert opened_values(node.open_sealed(sealed)) == values
    with pytest.raises(Untrusted):
        other.open_sealed(sealed)
    with pytest.raises(Untrusted):
        node.open_sealed(sealed[:-1])


def test_what_cannot_be_resealed_says_which_value_and_what_to_do(tmp_path: Path) -> None:
    key = WorkspaceKey.open_or_create(tmp_path / "workspace.age")
    stranger = str(pyrage.x25519.Identity.generate().to_public())
    wrong = encode({"name": "db", "data": {"password": seal_value(stranger, "x")}})
    with pytest.raises(Untrusted, match="secret db: password cannot be opened") as caught:
        key.reseal(wrong, key.recipient)
    assert key.recipient in caught.value.hint
    for document in (b"junk", encode({"name": "db", "data": {"p": "plain text"}})):
        with pytest.raises(Untrusted):
            key.reseal(document, key.recipient)
    good = encode({"name": "db", "data": {"p": seal_value(key.recipient, "x")}})
    with pytest.raises(BadUsage, match="not an age recipient"):
        key.reseal(good, "age1nonsense")
    (tmp_path / "workspace.age").write_text("damaged")
    with pytest.raises(NeedsPerson):
        WorkspaceKey.open_or_create(tmp_path / "workspace.age")


def test_the_life_of_a_nodes_certificate_is_a_setting_with_bounds(hub: Hub) -> None:
    authority, now = hub.authority, hub.clock.now()
    authority.node_life = checked_life("--node-life", timedelta(minutes=1))
    key = ec.generate_private_key(ec.SECP256R1())
    asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    csr = asked.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    node = authority.issue(SpiffeId("eu.acme", "/node/n1"), csr)
    relay = authority.issue(SpiffeId("eu.acme", "/relay/r1"), csr)
    assert node.not_after - now == timedelta(minutes=1)
    assert relay.not_after - now == timedelta(days=30), "only nodes are meant"
    for life in (timedelta(seconds=59), timedelta(days=91), timedelta()):
        with pytest.raises(BadUsage, match="between one minute and 90 days"):
            checked_life("--node-life", life)
