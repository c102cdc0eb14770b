"""What a node may ask for its workloads, and what it gets."""

from __future__ import annotations

import base64
import json
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given
from hypothesis import strategies as st
from identity_of import Hub
from msgspec import structs

from edgewise.backends.pki.authority import RegionalAuthority
from edgewise.backends.pki.certificates import Hosts, Key, Signer, key_pem, make_key, make_svid
from edgewise.backends.pki.jwt import JwtKeyFiles
from edgewise.identity import jwt_keys, jwt_svid
from edgewise.identity.names import Organisation, well_placed
from edgewise.identity.workloads import BURST, Desk
from edgewise.model.errors import BadUsage, EdgewiseError, Forbidden, TryLater, Untrusted
from edgewise.model.names import SpiffeId
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.channel import NodeRecord
from edgewise.protocol.workload import JwtWanted, WorkloadRequest, X509Wanted
from edgewise.runtime.credentials import pem_of

ACME = Organisation("acme")
NODE = ACME.node("eu", "kiosk-1")
TILL = "/app/shops/till"
RECORD = NodeRecord("kiosk-1", 1, "shops", identities={TILL: ("till.eu.acme", "till.example")})


def csr_of(key: Key) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def relay_of(hub: Hub, region: str = "eu", urls: tuple[str, ...] = ()) -> RegionalAuthority:
    key = make_key()
    chain = hub.authority.issue_regional(region, csr_of(key), urls)
    signer = Signer(x509.load_der_x509_certificate(chain[0]), key, chain[1:])
    return RegionalAuthority(ACME, region, signer, hub.authority.roots, hub.clock)


class Issuing:
    """A desk with its keys, and bundles that carry what they should."""

    def __init__(self, hub: Hub, directory: Path, *, relay: bool = False) -> None:
        self.clock = hub.clock
        self.keyring = JwtKeyFiles(directory / "jwt", hub.clock)
        self.bundles: TrustBundles | None = None
        authority = relay_of(hub) if relay else hub.authority
        self.desk = Desk(ACME, authority, self.keyring, lambda: self.bundles)
        self.publish()

    def publish(self) -> None:
        jwt = {key.kid: key.spki for key in self.keyring.keys("eu")}
        self.bundles = TrustBundles(1, {"eu.acme": DomainBundle((), jwt)})

    def x509(self, path: str = TILL, **terms: object) -> x509.Certificate:
        wanted = X509Wanted(path, csr_of(make_key()), **terms)  # type: ignore[arg-type]
        reply = self.desk.answer(NODE, RECORD, WorkloadRequest((wanted,)), self.clock.now())
        return x509.load_der_x509_certificate(reply.x509[0].chain[0])

    def jwt(self, *audience: str, path: str = TILL, ttl_s: float = 0.0) -> str:
        request = WorkloadRequest(jwt=(JwtWanted(path, audience, ttl_s),))
        return self.desk.answer(NODE, RECORD, request, self.clock.now()).jwt[0].token

    @property
    def domains(self) -> dict[str, DomainBundle]:
        assert self.bundles is not None
        return self.bundles.own


@pytest.fixture(params=["hub", "relay"])
def issuing(request: pytest.FixtureRequest, hub: Hub, tmp_path: Path) -> Issuing:
    return Issuing(hub, tmp_path, relay=request.param == "relay")


def test_a_workloads_certificate_is_what_the_x509_svid_specification_asks_for(
    issuing: Issuing,
) -> None:
    leaf = issuing.x509()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://eu.acme/app/shops/till"
    ]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {u._name for u in usages} == {"clientAuth", "serverAuth"}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert leaf.not_valid_after_utc - issuing.clock.now() == timedelta(hours=1)
    assert issuing.clock.now() - leaf.not_valid_before_utc == timedelta(seconds=10)


def test_a_node_gets_no_identity_of_an_app_that_it_does_not_run(issuing: Issuing) -> None:
    with pytest.raises(Forbidden, match="may not have /app/shops/web"):
        issuing.x509("/app/shops/web")
    with pytest.raises(Forbidden, match="may not have /app/shops/web"):
        issuing.jwt("db", path="/app/shops/web")


@pytest.mark.parametrize(
    "path",
    ["/node/kiosk-2", "/hub", "/relay/r1", "/app", "/app/../hub", "/app/a/../b", "app/x", ""],
)
def test_nothing_outside_app_is_given_even_if_a_record_says_so(hub: Hub, path: str) -> None:
    record = structs.replace(RECORD, identities={path: ()})
    desk = Desk(ACME, hub.authority, JwtKeyFiles(hub.directory / "j", hub.clock), lambda: None)
    request = WorkloadRequest((X509Wanted(path, csr_of(make_key())),))
    with pytest.raises(Forbidden):
        desk.answer(NODE, record, request, hub.clock.now())


def test_a_workload_is_nobody_at_hub_and_relay() -> None:
    assert not well_placed(SpiffeId("eu.acme", TILL))


def test_dns_names_are_those_of_the_record_and_a_relay_gives_those_of_its_domain(
    hub: Hub, tmp_path: Path
) -> None:
    both = ("till.eu.acme", "till.example")
    for relay, given_names in ((False, list(both)), (True, ["till.eu.acme"])):
        issuing = Issuing(hub, tmp_path / str(relay), relay=relay)
        leaf = issuing.x509(dns=both)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == given_names
        with pytest.raises(Forbidden, match=r"bank\.example"):
            issuing.x509(dns=("bank.example",))


def test_openssl_verifies_what_a_relay_gives_and_refuses_what_it_may_not(
    hub: Hub, tmp_path: Path
) -> None:
    """Also with a key that was stolen from the relay, and no check of ours in between."""
    relay = relay_of(hub, urls=("https://127.0.0.9:1", "https://relay.example"))
    roots = tmp_path / "roots.pem"
    roots.write_text(pem_of(hub.authority.roots))
    for identity, dns, good in (
        ("spiffe://eu.acme/app/shops/till", (), True),
        ("spiffe://eu.acme/app/shops/till", ("till.eu.acme",), True),
        ("spiffe://eu.acme/app/shops/till", ("bank.example",), False),
        ("spiffe://eu.acme/app/shops/till", ("till.us.acme",), False),
        ("spiffe://us.acme/app/shops/till", (), False),
        ("spiffe://hub.acme/app/shops/till", (), False),
    ):
        key, named = make_key().public_key(), SpiffeId.parse(identity)
        made = make_svid(relay.signer, named, key, Hosts(dns), hub.clock.now(), timedelta(hours=1))
        chain = tmp_path / "chain.pem"
        chain.write_text(pem_of(made.chain))
        at = str(int(hub.clock.now().timestamp()))
        command = ["openssl", "verify", "-x509_strict", "-attime", at, "-CAfile", str(roots)]
        command += ["-untrusted", str(chain), str(chain)]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (said.returncode == 0) is good, (identity, dns, said.stderr)
        assert good or "permitted subtree violation" in said.stderr


def test_a_relay_gives_no_workload_of_another_region(hub: Hub) -> None:
    with pytest.raises(Forbidden, match="no workload of region eu"):
        relay_of(hub).issue_workload(
            SpiffeId("us.acme", TILL), csr_of(make_key()), (), timedelta(hours=1)
        )


def test_a_certificate_never_outlives_the_ca_and_a_ca_that_ended_says_so(hub: Hub) -> None:
    relay = relay_of(hub)
    identity = SpiffeId("eu.acme", TILL)
    hub.clock.advance(relay.not_after - hub.clock.now() - timedelta(minutes=10))
    made, _ = relay.issue_workload(identity, csr_of(make_key()), (), timedelta(hours=1))
    assert made.not_after == relay.not_after
    hub.clock.advance(timedelta(minutes=10))
    with pytest.raises(TryLater, match="CA of this relay ended"):
        relay.issue_workload(identity, csr_of(make_key()), (), timedelta(hours=1))
    with pytest.raises(TryLater, match="CA of this relay ended"):
        relay.issue(NODE, csr_of(make_key()))


@pytest.mark.parametrize("ttl", [1.0, -5.0, float("nan")])
def test_a_life_that_is_too_short_is_refused(issuing: Issuing, ttl: float) -> None:
    with pytest.raises(BadUsage, match="is shorter than"):
        issuing.x509(ttl_s=ttl)
    with pytest.raises(BadUsage, match="is shorter than"):
        issuing.jwt("db", ttl_s=ttl)


def test_a_shorter_life_is_given_and_no_longer_one(issuing: Issuing) -> None:
    for ttl, life in ((120.0, timedelta(minutes=2)), (86400.0, timedelta(hours=1))):
        leaf = issuing.x509(ttl_s=ttl)
        assert leaf.not_valid_after_utc - issuing.clock.now() == life


def test_a_node_that_asks_too_often_waits_and_no_other_does(issuing: Issuing) -> None:
    wanted = JwtWanted(TILL, ("db",))
    request = WorkloadRequest(jwt=(wanted,) * 64)
    now = issuing.clock.now()
    for _ in range(BURST // 64):
        issuing.desk.answer(NODE, RECORD, request, now)
    with pytest.raises(TryLater, match="asks too often") as refused:
        issuing.desk.answer(NODE, RECORD, request, now)
    other = ACME.node("eu", "kiosk-2")
    issuing.desk.answer(other, structs.replace(RECORD, node="kiosk-2"), request, now)
    issuing.desk.answer(NODE, RECORD, request, now + refused.value.wait)


@pytest.mark.parametrize("count", [0, 65])
def test_a_request_asks_for_something_and_not_for_too_much(issuing: Issuing, count: int) -> None:
    request = WorkloadRequest(jwt=(JwtWanted(TILL, ("db",)),) * count)
    with pytest.raises(BadUsage, match="identities at once"):
        issuing.desk.answer(NODE, RECORD, request, issuing.clock.now())


def test_a_node_without_a_record_asks_again(issuing: Issuing) -> None:
    request = WorkloadRequest(jwt=(JwtWanted(TILL, ("db",)),))
    with pytest.raises(TryLater, match="no record yet"):
        issuing.desk.answer(NODE, None, request, issuing.clock.now())


def test_a_token_says_what_the_jwt_svid_specification_asks_for(issuing: Issuing) -> None:
    token = issuing.jwt("db", "cache")
    header, body, _ = (json.loads(_unpack(part)) for part in (*token.split(".")[:2], "e30"))
    [key] = issuing.keyring.keys("eu")
    assert header == {"alg": "ES256", "kid": key.kid, "typ": "JWT"}
    now = int(issuing.clock.now().timestamp())
    assert body == {
        "sub": "spiffe://eu.acme/app/shops/till",
        "aud": ["db", "cache"],
        "iat": now,
        "exp": now + 300,
    }
    claims = jwt_svid.verified(token, issuing.domains, "cache", issuing.clock.now())
    assert claims.subject == SpiffeId("eu.acme", TILL)


def _unpack(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_a_token_is_nothing_elsewhere_later_or_changed(issuing: Issuing) -> None:
    token, now = issuing.jwt("db"), issuing.clock.now()
    head, body, signature = token.split(".")
    other = json.loads(_unpack(body)) | {"sub": "spiffe://eu.acme/app/shops/web"}
    forged = base64.urlsafe_b64encode(json.dumps(other).encode()).decode().rstrip("=")
    none = base64.urlsafe_b64encode(b'{"alg":"none","kid":"x"}').decode().rstrip("=")
    for given_token, domains, audience, at, why in (
        (token, issuing.domains, "bank", now, "not for bank"),
        (token, issuing.domains, "db", now + timedelta(minutes=5), "expired"),
        (token, issuing.domains, "db", now - timedelta(minutes=5), "future"),
        (token, {}, "db", now, "not known here"),
        (token, {"eu.acme": DomainBundle(())}, "db", now, "has no JWT key"),
        (f"{head}.{forged}.{signature}", issuing.domains, "db", now, "does not hold"),
        (f"{none}.{body}.{signature}", issuing.domains, "db", now, "ES256"),
    ):
        with pytest.raises(Untrusted, match=why):
            jwt_svid.verified(given_token, domains, audience, at)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin1")))
def test_any_text_is_a_token_or_untrusted(text: str) -> None:
    with pytest.raises(Untrusted):
        jwt_svid.read(text)


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=80))
def test_any_three_parts_are_a_token_or_untrusted(a: bytes, b: bytes, c: bytes) -> None:
    text = ".".join(base64.urlsafe_b64encode(p).decode().rstrip("=") for p in (a, b, c))
    with pytest.raises(Untrusted):
        jwt_svid.read(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["sub", "aud", "exp", "iat", "nbf", "alg", "kid"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_claims_are_read_or_untrusted(claims: object) -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    token = f"{part({'alg': 'ES256', 'kid': 'k'})}.{part(claims)}.{'A' * 86}"
    try:
        jwt_svid.read(token)
    except Untrusted:
        return


def test_good_claims_get_past_the_reader_that_is_fuzzed(issuing: Issuing) -> None:
    assert jwt_svid.read(issuing.jwt("db")).claims.audience == ("db",)


@given(st.binary(max_size=400))
def test_any_bytes_as_a_certificate_request_are_refused_by_name(data: bytes) -> None:
    from edgewise.backends.pki.certificates import requested_key

    with pytest.raises(EdgewiseError):
        requested_key(data)


def test_a_key_signs_only_when_the_published_bundle_carries_it(issuing: Issuing) -> None:
    """Also the next key, which waits for its turn while the old one goes on."""
    [first] = issuing.keyring.keys("eu")
    issuing.clock.advance(jwt_keys.LIFE)
    assert len(issuing.keyring.keys("eu")) == 2
    assert jwt_svid.read(issuing.jwt("db")).key_id == first.kid
    issuing.publish()
    second = jwt_svid.read(issuing.jwt("db")).key_id
    assert second != first.kid
    published = set(issuing.domains["eu.acme"].jwt)
    issuing.keyring.drop("eu", published)
    assert len(issuing.keyring.keys("eu")) == 2
    issuing.clock.advance(jwt_keys.KEPT)
    issuing.keyring.drop("eu", published)
    again = JwtKeyFiles(issuing.keyring.directory, issuing.clock)
    assert [key.kid for key in again.keys("eu")] == [second]
    issuing.bundles = None
    with pytest.raises(TryLater, match="not published yet"):
        issuing.jwt("db")


def test_jwt_keys_are_private_files(issuing: Issuing) -> None:
    issuing.jwt("db")
    [path] = issuing.keyring.directory.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_pem(make_key()) not in path.read_bytes()
