"""Certificates that must not work, in real handshakes on loopback; and those that must."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from edgewise.backends.pki.authority import Authority, RegionalAuthority
from edgewise.backends.pki.certificates import (
    Hosts,
    Key,
    Signer,
    key_pem,
    make_key,
    make_svid,
    requested_key,
)
from edgewise.backends.pki.keys import FileKeys
from edgewise.identity.names import Organisation
from edgewise.model.errors import Forbidden, NeedsPerson, TryLater, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.net.client import CertificateRefused, Client, Endpoint
from edgewise.net.http1 import ClosedEarly
from edgewise.net.tls import (
    CredentialFiles,
    client_context,
    peer_id,
    pinned_context,
    reload,
    server_context,
)
from edgewise.runtime.clock import SystemClock
from edgewise.testing.clock import ManualClock

ACME = Organisation("acme")
LOOPBACK = Hosts.of(["127.0.0.1", "localhost"])


def csr_of(key: Key | rsa.RSAPrivateKey, names: list[str] | None = None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hub.acme")])
    )
    if names:
        uris = [x509.UniformResourceIdentifier(name) for name in names]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


class World:
    """A hub with its authority, a server that says who called, and certificates to try."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = self.authority_at(SystemClock())
        self.hub = CredentialFiles(directory / "hub")
        self.authority.issue_hub(self.hub, LOOPBACK)
        self.seen: list[SpiffeId | None] = []
        self.port = 0

    def authority_at(self, clock: SystemClock | ManualClock, name: str = "pki") -> Authority:
        return Authority.open_or_create(self.directory / name, "acme", clock)

    def own(self, identity: SpiffeId, authority: Authority | None = None) -> CredentialFiles:
        key = make_key()
        issued = (authority or self.authority).issue(identity, csr_of(key))
        return self.keep(key, issued.chain)

    def keep(self, key: Key, chain: tuple[bytes, ...]) -> CredentialFiles:
        files = CredentialFiles(self.directory / f"id{len(list(self.directory.iterdir()))}")
        files.trust(self.authority.roots)
        files.replace(key_pem=key_pem(key), chain=chain)
        return files

    def relay(self, region: str = "eu", urls: tuple[str, ...] = ()) -> RegionalAuthority:
        """A relay's own CA, as it would hold it after being stolen."""
        key = make_key()
        chain = self.authority.issue_regional(region, csr_of(key), urls)
        certificate = x509.load_der_x509_certificate(chain[0])
        signer = Signer(certificate, key, chain[1:])
        return RegionalAuthority(ACME, region, signer, self.authority.roots, SystemClock())

    def forge(
        self, relay: RegionalAuthority, identity: str, hosts: Hosts = LOOPBACK
    ) -> CredentialFiles:
        """Whatever the relay's key can sign, without asking our own checks."""
        key = make_key()
        spiffe = SpiffeId.parse(identity)
        now = datetime.now(UTC)
        return self.keep(key, make_svid(relay.signer, spiffe, key.public_key(), hosts, now).chain)

    async def serve(self, credentials: CredentialFiles) -> asyncio.Server:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                self.seen.append(peer_id(writer.get_extra_info("ssl_object")))
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            except (asyncio.IncompleteReadError, OSError):
                pass
            finally:
                writer.close()

        self.context = server_context(credentials)
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=self.context)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def call(self, tls: ssl.SSLContext, expect: SpiffeId | None = None) -> SpiffeId | None:
        """Who the server thinks we are."""
        wanted = str(expect or ACME.hub)
        endpoint = Endpoint(
            (f"https://127.0.0.1:{self.port}",), tls, lambda peer: str(peer) == wanted
        )
        async with Client(endpoint) as client:
            answer = await client.request("GET", "/", timeout=5)
            assert answer.body == b"ok"
        return self.seen[-1]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    server = await made.serve(made.hub)
    yield made
    server.close()


async def test_a_node_and_the_hub_prove_themselves_to_each_other(world: World) -> None:
    node = ACME.node("eu", "kiosk-1")
    assert await world.call(client_context(world.own(node))) == node


async def test_a_node_of_a_relays_own_ca_is_known_by_the_hub(world: World) -> None:
    key = make_key()
    node = ACME.node("eu", "kiosk-1")
    issued = world.relay().issue(node, csr_of(key))
    assert await world.call(client_context(world.keep(key, issued.chain))) == node


async def test_without_a_certificate_the_handshake_works_but_nobody_is_anybody(
    world: World,
) -> None:
    assert await world.call(pinned_context(world.authority.roots)) is None


async def test_a_certificate_of_another_hub_is_refused(world: World) -> None:
    """The wrong trust domain's root: same organisation name, other keys."""
    other = world.authority_at(SystemClock(), "other")
    stranger = world.own(ACME.node("eu", "kiosk-1"), other)
    with pytest.raises((CertificateRefused, TryLater)):
        await world.call(client_context(stranger))
    assert not any(world.seen)


async def test_a_node_does_not_talk_to_a_server_with_another_root(world: World) -> None:
    other = world.authority_at(SystemClock(), "other")
    with pytest.raises(Untrusted, match="do not trust"):
        await world.call(pinned_context(other.roots))


async def test_an_expired_certificate_is_refused(world: World) -> None:
    past = ManualClock(datetime.now(UTC) - timedelta(days=60))
    expired = world.own(ACME.node("eu", "kiosk-1"), world.authority_at(past))
    with pytest.raises((CertificateRefused, ClosedEarly)):
        await world.call(client_context(expired))
    assert not any(world.seen)


async def test_a_certificate_from_the_future_is_refused(world: World) -> None:
    future = ManualClock(datetime.now(UTC) + timedelta(days=2))
    early = world.own(ACME.node("eu", "kiosk-1"), world.authority_at(future))
    with pytest.raises((CertificateRefused, TryLater)):
        await world.call(client_context(early))
    assert not any(world.seen)


async def test_a_stolen_relay_cannot_make_names_of_another_region_or_of_the_hub(
    world: World,
) -> None:
    relay = world.relay("eu")
    with pytest.raises(Forbidden, match="not of region eu"):
        relay.issue(ACME.node("us", "kiosk-1"), csr_of(make_key()))
    for identity in (
        "spiffe://us.acme/node/kiosk-1",
        "spiffe://hub.acme/user/root",
        "spiffe://hub.acme/hub",
        "spiffe://sub.eu.acme/node/kiosk-1",
        "spiffe://acme/node/kiosk-1",
    ):
        forged = world.forge(relay, identity, Hosts())
        with pytest.raises((CertificateRefused, TryLater)):
            await world.call(client_context(forged))
        assert not any(world.seen), identity


async def test_openssl_says_that_it_is_the_name_constraint_that_holds(world: World) -> None:
    forged = world.forge(world.relay("eu"), "spiffe://us.acme/node/kiosk-1", Hosts())
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(forged.roots)]
    command += ["-untrusted", str(forged.chain), str(forged.chain)]
    found = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    assert found.returncode != 0
    assert "permitted subtree violation" in found.stderr


async def test_a_stolen_relay_cannot_pose_as_the_hub_towards_curl_and_git(world: World) -> None:
    """They check host names against the same root, and know nothing of SPIFFE."""
    relay = world.relay("eu", ("https://127.0.0.9:1", "https://relay.example"))
    browser = ssl.create_default_context(cafile=str(world.hub.roots))
    for host, hosts, works in (
        ("127.0.0.9", Hosts.of(["127.0.0.9"]), True),
        ("relay.example", Hosts.of(["relay.example"]), True),
        ("127.0.0.1", Hosts.of(["127.0.0.1"]), False),
        ("hub.example", Hosts.of(["hub.example"]), False),
    ):
        forged = world.forge(relay, "spiffe://eu.acme/relay/r1", hosts)
        server = await world.serve(forged)
        accepted = True
        try:
            _, writer = await asyncio.open_connection(
                "127.0.0.1", world.port, ssl=browser, server_hostname=host
            )
            writer.close()
        except ssl.SSLCertVerificationError:
            accepted = False
        finally:
            server.close()
        assert accepted is works, host


async def test_a_relay_ca_cannot_make_another_ca(world: World) -> None:
    relay = world.relay("eu")
    below = make_key()
    now = datetime.now(UTC)
    leaf = make_svid(relay.signer, ACME.node("eu", "x"), below.public_key(), Hosts(), now).chain[0]
    forged = Signer(x509.load_der_x509_certificate(leaf), below, relay.signer.chain)
    key = make_key()
    issued = make_svid(forged, ACME.node("eu", "y"), key.public_key(), Hosts(), now)
    with pytest.raises((CertificateRefused, TryLater)):
        await world.call(client_context(world.keep(key, issued.chain)))
    assert not any(world.seen)


async def test_a_node_cannot_pose_as_a_server(world: World) -> None:
    """Its certificate is no server's, and its name is not whom anybody expects."""
    server = await world.serve(world.own(ACME.node("eu", "kiosk-1")))
    with pytest.raises(Untrusted, match="purpose"):
        await world.call(pinned_context(world.authority.roots))
    server.close()


async def test_a_relay_is_not_taken_for_the_hub_and_gets_nothing_sent(world: World) -> None:
    server = await world.serve(world.own(ACME.relay("eu", "r1")))
    with pytest.raises(Untrusted, match=r"proved to be spiffe://eu\.acme/relay/r1"):
        await world.call(pinned_context(world.authority.roots))
    server.close()


async def test_a_renewed_certificate_is_used_without_a_restart(world: World) -> None:
    def served() -> str:
        return ssl.get_server_certificate(("127.0.0.1", world.port))

    before = await asyncio.to_thread(served)
    world.authority.issue_hub(world.hub, LOOPBACK)
    assert await asyncio.to_thread(served) == before
    reload(world.context, world.hub)
    assert await asyncio.to_thread(served) != before
    assert await world.call(pinned_context(world.authority.roots)) is None


async def test_damaged_files_leave_the_present_certificate_in_use(world: World) -> None:
    world.hub.key.write_bytes(key_pem(make_key()))
    with pytest.raises(NeedsPerson, match="no usable certificate"):
        reload(world.context, world.hub)
    assert await world.call(pinned_context(world.authority.roots)) is None


async def test_a_clock_that_fell_back_does_not_cut_a_node_off(world: World) -> None:
    """The hub's certificate lies in the future for such a node; only its times are let pass."""
    future = ManualClock(datetime.now(UTC) + timedelta(days=2))
    credentials = CredentialFiles(world.directory / "later")
    world.authority_at(future).issue_hub(credentials, LOOPBACK)
    server = await world.serve(credentials)
    own = world.own(ACME.node("eu", "kiosk-1"))
    with pytest.raises(Untrusted, match="not yet valid"):
        await world.call(client_context(own))
    assert await world.call(client_context(own, check_time=False)) is not None
    with pytest.raises(Untrusted):
        await world.call(
            pinned_context(world.authority_at(SystemClock(), "other").roots, check_time=False)
        )
    server.close()


def test_what_a_request_asks_for_is_ignored_but_its_key(world: World) -> None:
    key = make_key()
    issued = world.authority.issue(
        ACME.node("eu", "kiosk-1"), csr_of(key, ["spiffe://hub.acme/hub"])
    )
    leaf = x509.load_der_x509_certificate(issued.chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == ["spiffe://eu.acme/node/kiosk-1"]
    assert b"hub.acme" not in leaf.subject.public_bytes()
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(days=45, seconds=10)


@pytest.mark.parametrize("kind", ["rsa", "p384", "junk", "huge", "forged"])
def test_a_request_with_a_wrong_key_or_signature_is_refused(kind: str) -> None:
    good = csr_of(make_key())
    forged = bytearray(good)
    forged[-1] ^= 1
    csr = {
        "rsa": lambda: csr_of(rsa.generate_private_key(65537, 2048)),
        "p384": lambda: csr_of(ec.generate_private_key(ec.SECP384R1())),
        "junk": lambda: b"junk",
        "huge": lambda: good + b"\0" * 10_000,
        "forged": lambda: bytes(forged),
    }[kind]()
    with pytest.raises(Untrusted):
        requested_key(csr)


def test_the_authority_comes_back_after_a_restart_and_keys_are_private(world: World) -> None:
    again = world.authority_at(SystemClock())
    assert again.roots == world.authority.roots
    for path in world.directory.rglob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600, path
    with pytest.raises(NeedsPerson, match="is of organisation 'acme'"):
        Authority.open_or_create(world.directory / "pki", "other", SystemClock())


def test_with_the_root_key_in_a_safe_known_regions_go_on_and_new_ones_wait(world: World) -> None:
    world.own(ACME.node("eu", "kiosk-1"))
    (world.directory / "pki" / "root.key").unlink()
    later = world.authority_at(ManualClock(datetime.now(UTC) + timedelta(days=300)))
    world.own(ACME.node("eu", "kiosk-2"), later)
    with pytest.raises(NeedsPerson, match=r"root's key"):
        world.own(ACME.node("us", "kiosk-3"), later)


def test_a_regional_ca_is_renewed_at_half_of_its_life(world: World) -> None:
    def ca_of(days: int) -> bytes:
        clock = ManualClock(datetime.now(UTC) + timedelta(days=days))
        authority = world.authority_at(clock)
        return authority.issue(ACME.node("eu", "k"), csr_of(make_key())).chain[1]

    first = ca_of(0)
    assert ca_of(100) == first
    assert ca_of(200) != first


def test_a_damaged_ca_key_needs_a_person(world: World) -> None:
    (world.directory / "pki" / "root.key").write_text("junk")
    with pytest.raises(NeedsPerson, match="cannot be used"):
        FileKeys(world.directory / "pki").load("root")


def test_a_rotation_that_was_cut_off_ends_in_the_old_or_the_new_pair(world: World) -> None:
    files = world.own(ACME.node("eu", "kiosk-1"))
    old = (files.key.read_bytes(), files.chain.read_bytes())
    fresh = world.own(ACME.node("eu", "kiosk-1"))
    new = (fresh.key.read_bytes(), fresh.chain.read_bytes())
    next_key, next_chain = (p.with_name(f"{p.name}.next") for p in (files.key, files.chain))
    next_key.write_bytes(new[0])
    client_context(files)
    assert (files.key.read_bytes(), files.chain.read_bytes()) == old
    next_chain.write_bytes(new[1])
    client_context(files)
    assert (files.key.read_bytes(), files.chain.read_bytes()) == new
    files.key.write_bytes(old[0])
    files.chain.write_bytes(old[1])
    files.key.write_bytes(new[0])  # The key was renamed, then the power went.
    next_chain.write_bytes(new[1])
    client_context(files)
    assert (files.key.read_bytes(), files.chain.read_bytes()) == new
