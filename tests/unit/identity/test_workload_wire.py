"""The Workload API's bytes: against protobuf's reading of the real .proto, and against noise."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf import json_format, struct_pb2
from hypothesis import example, given
from hypothesis import strategies as st
from spiffe._proto import workload_pb2

from edgewise.identity import protobuf, workload_messages
from edgewise.identity.protobuf import Malformed
from edgewise.identity.workload_ports import LocalSvid
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.workload import JwtSvid

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SVID = LocalSvid(
    "spiffe://eu.acme/app/till", (b"leaf", b"ca"), b"key", NOW, NOW + timedelta(hours=1), "till"
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def test_x509_svids_read_as_the_specification_has_them() -> None:
    data = workload_messages.x509_svids([SVID], {"eu.acme": b"root"}, {"us.acme": b"other"})
    read = workload_pb2.X509SVIDResponse.FromString(data)
    (svid,) = read.svids
    assert (svid.spiffe_id, svid.x509_svid, svid.x509_svid_key) == (
        SVID.spiffe_id,
        b"leafca",
        b"key",
    )
    assert (svid.bundle, svid.hint) == (b"root", "till")
    assert dict(read.federated_bundles) == {"spiffe://us.acme": b"other"}


def test_bundles_read_as_the_specification_has_them() -> None:
    bundles = {"eu.acme": b"one", "us.acme": b"two"}
    expected = {f"spiffe://{domain}": data for domain, data in bundles.items()}
    x509 = workload_pb2.X509BundlesResponse.FromString(workload_messages.x509_bundles(bundles))
    jwt = workload_pb2.JWTBundlesResponse.FromString(workload_messages.jwt_bundles(bundles))
    assert dict(x509.bundles) == dict(jwt.bundles) == expected


def test_jwt_messages_read_as_the_specification_has_them() -> None:
    asked = workload_pb2.JWTSVIDRequest(audience=["a", "b"], spiffe_id=SVID.spiffe_id)
    wanted = workload_messages.read_wanted_jwt(asked.SerializeToString())
    assert (wanted.audience, wanted.spiffe_id) == (("a", "b"), SVID.spiffe_id)
    token = JwtSvid(SVID.spiffe_id, "a.b.c", NOW, NOW)
    reply = workload_pb2.JWTSVIDResponse.FromString(workload_messages.jwt_svids([(token, "till")]))
    assert [(s.spiffe_id, s.svid, s.hint) for s in reply.svids] == [
        (SVID.spiffe_id, "a.b.c", "till")
    ]
    ask = workload_pb2.ValidateJWTSVIDRequest(audience="a", svid="a.b.c")
    assert workload_messages.read_validation(ask.SerializeToString()) == ("a", "a.b.c")


@given(st.dictionaries(st.text(), JSON, max_size=6))
@example({"aud": ["a"], "exp": 1.5, "deep": {"a": [None, True, {}]}})
def test_claims_read_back_as_they_were(claims: dict[str, object]) -> None:
    data = workload_messages.validated(SVID.spiffe_id, claims)
    read = workload_pb2.ValidateJWTSVIDResponse.FromString(data)
    expected = struct_pb2.Struct()
    json_format.ParseDict(claims, expected)
    assert read.spiffe_id == SVID.spiffe_id
    assert read.claims == expected


def test_claims_nested_without_end_are_cut_off() -> None:
    claims: dict[str, object] = {}
    for _ in range(500):
        claims = {"a": claims}
    read = workload_pb2.ValidateJWTSVIDResponse.FromString(
        workload_messages.validated("spiffe://a/b", claims)
    )
    assert read.claims.fields["a"].struct_value.fields


@given(st.binary(max_size=200))
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x0a" * 40)
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for read in (
        protobuf.read,
        workload_messages.read_wanted_jwt,
        workload_messages.read_validation,
        lambda d: [protobuf.messages(protobuf.read(d), n) for n in range(1, 6)],
    ):
        try:
            read(data)
        except Malformed:
            continue


def test_noise_can_be_a_message() -> None:
    assert protobuf.read(b"\x0a\x01a\x10\x05\x0a\x01b") == {1: [b"a", b"b"], 2: [5]}
    with pytest.raises(Malformed):
        protobuf.read(b"\x0b")
    with pytest.raises(Malformed, match="fields"):
        protobuf.read(b"\x08\x01" * (protobuf.FIELDS + 1))


@pytest.mark.parametrize("audience", [[], [""], ["a"] * 0, [str(i) for i in range(17)]])
def test_a_token_is_for_somebody_and_not_for_everybody(audience: list[str]) -> None:
    asked = workload_pb2.JWTSVIDRequest(audience=audience)
    with pytest.raises(Malformed):
        workload_messages.read_wanted_jwt(asked.SerializeToString())


def test_foreign_trust_is_only_for_those_that_federate() -> None:
    own, other, third = (DomainBundle((name,)) for name in (b"own", b"other", b"third"))
    bundles = TrustBundles(1, {"eu.acme": own}, {"partner": other, "third": third})
    assert workload_messages.trusted(bundles, ["partner", "nobody"]) == {
        "eu.acme": own,
        "partner": other,
    }


def test_a_foreign_bundle_cannot_replace_our_own() -> None:
    own, forged = DomainBundle((b"own",)), DomainBundle((b"forged",))
    bundles = TrustBundles(1, {"eu.acme": own}, {"eu.acme": forged})
    assert workload_messages.trusted(bundles, ["eu.acme"]) == {"eu.acme": own}


def test_keys_that_are_not_ours_to_read_are_left_out_of_a_jwks() -> None:
    document = json.loads(workload_messages.jwks(DomainBundle((), {"k": b"an RSA key"})))
    assert document == {"keys": []}
