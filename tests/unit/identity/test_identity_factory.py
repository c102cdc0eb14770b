"""Factory certificates: who is let in as what, and what is kept out with which reason."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import structs

from edgewise.identity.admission import JoinRules
from edgewise.identity.attestation import Unproven
from edgewise.identity.on_agent import ByFactory, Machine, MachineIdentity, join
from edgewise.identity.tokens import join_proof_bytes
from edgewise.model.documents import DeviceList
from edgewise.model.documents.joining import (
    DeviceListSpec,
    DeviceRow,
    FactoryRule,
    FactoryRules,
    JoinSpec,
    TokenRules,
)
from edgewise.model.documents.words import Metadata
from edgewise.model.errors import BadUsage, Forbidden, NeedsPerson
from edgewise.protocol.join import JoinRequest
from edgewise.runtime.credentials import pem_of
from edgewise.testing.proving import Door, ProvingHub
from edgewise.testing.swtpm import Maker

FACTORY = Maker("Kiosk works")
UNNAMED = Machine("node", "")
RULE = FactoryRule(serials="SN-*", name="kiosk-{serial}", region="eu", labels={"type": "pos"})


def rules(*rows: DeviceRow, **more: Any) -> JoinRules:
    listed = DeviceList(
        api_version="edgewise.dev/v1",
        metadata=Metadata(name="kiosks"),
        spec=DeviceListSpec(devices=rows),
    )
    factory = FactoryRules(roots=(FACTORY.pem,), rules=(RULE,))
    return JoinRules.of(JoinSpec(factory=factory, **more), [listed])


@pytest.fixture
def hub(tmp_path: Path) -> ProvingHub:
    return ProvingHub(tmp_path, rules())


def device(folder: Path, serial: str, maker: Maker = FACTORY) -> ByFactory:
    """Certificate and key of a machine, as its maker put them there."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    chain = (maker.device_certificate(key.public_key(), serial), maker.middle_der)
    by = ByFactory(folder / "idevid.pem", folder / "idevid.key")
    by.certificates.write_text(pem_of(chain))
    by.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return by


async def joined(hub: ProvingHub, by: ByFactory, state: str = "state") -> MachineIdentity:
    identity = hub.machine(state)
    await join(identity, hub.invitation, UNNAMED, Door(hub, identity), by)
    return identity


async def refused(hub: ProvingHub, by: ByFactory) -> str:
    with pytest.raises(Unproven) as caught:
        await joined(hub, by)
    return caught.value.reason


async def test_a_rule_makes_a_name_of_the_serial_number(hub: ProvingHub, tmp_path: Path) -> None:
    identity = await joined(hub, device(tmp_path, "SN-4711"))
    assert identity.card().spiffe_id == "spiffe://eu.acme/node/kiosk-sn-4711"
    enrolled = hub.register.enrolled["kiosk-sn-4711"]
    assert (enrolled.method, enrolled.serial) == ("factory", "SN-4711")
    assert enrolled.labels == {"type": "pos"}
    assert enrolled.vouched == "CN=Kiosk works root"


async def test_a_row_wins_over_the_rules(hub: ProvingHub, tmp_path: Path) -> None:
    hub.rules = rules(DeviceRow(name="lab-1", serial="SN-1", region="lab"))
    identity = await joined(hub, device(tmp_path, "SN-1"))
    assert identity.card().spiffe_id == "spiffe://lab.acme/node/lab-1"


async def test_the_same_machine_may_ask_again(hub: ProvingHub, tmp_path: Path) -> None:
    by = device(tmp_path, "SN-1")
    identity = hub.machine("state")
    door = Door(hub, identity, lose=1)
    with pytest.raises(ConnectionResetError):
        await join(identity, hub.invitation, UNNAMED, door, by)
    await join(identity, hub.invitation, UNNAMED, door, by)
    assert hub.reasons == ["factory", "repeat"]


async def test_another_factory_is_refused(hub: ProvingHub, tmp_path: Path) -> None:
    by = device(tmp_path, "SN-1", Maker("Kiosk works"))  # the same name, another key
    assert await refused(hub, by) == "unknown-maker"


async def test_a_certificate_without_its_key_is_refused(hub: ProvingHub, tmp_path: Path) -> None:
    mine, stolen = device(tmp_path / "a", "SN-1"), device(tmp_path / "b", "SN-2")
    assert await refused(hub, ByFactory(stolen.certificates, mine.key)) == "forged-proof"


async def test_a_proof_that_is_used_again_is_refused(hub: ProvingHub, tmp_path: Path) -> None:
    identity = hub.machine("state")
    door = Door(hub, identity)
    await join(identity, hub.invitation, UNNAMED, door, device(tmp_path, "SN-1"))
    with pytest.raises(Unproven) as caught:
        await hub.enroller.join(door.sent[0])
    assert caught.value.reason == "stale-challenge"


async def test_a_proof_for_another_key_is_refused(hub: ProvingHub, tmp_path: Path) -> None:
    """Somebody in between puts an enrolment key of his own into the request."""
    mallory = hub.machine("mallory").enrolment_key()

    class Between(Door):
        async def join(self, request: JoinRequest) -> Any:
            changed = structs.replace(request, enrolment_key=mallory.spki)
            proof = mallory.sign(join_proof_bytes(changed))
            return await super().join(structs.replace(changed, proof=proof))

    identity = hub.machine("state")
    with pytest.raises(Unproven) as caught:
        await join(identity, hub.invitation, UNNAMED, Between(hub), device(tmp_path, "SN-1"))
    assert caught.value.reason == "forged-proof"


async def test_a_certificate_without_a_serial_number_is_refused(
    hub: ProvingHub, tmp_path: Path
) -> None:
    assert await refused(hub, device(tmp_path, "")) == "no-serial"


async def test_an_authority_is_no_device(hub: ProvingHub, tmp_path: Path) -> None:
    by = device(tmp_path, "SN-1")
    by.certificates.write_text(pem_of([FACTORY.middle_der]))
    assert await refused(hub, by) == "wrong-kind"


async def test_a_serial_number_that_nobody_knows_or_that_makes_no_name_is_refused(
    hub: ProvingHub, tmp_path: Path
) -> None:
    with pytest.raises(Forbidden, match="no device list has its serial number 'X-1'"):
        await joined(hub, device(tmp_path / "x", "X-1"))
    with pytest.raises(Forbidden, match="makes no name"):
        await joined(hub, device(tmp_path / "y", "SN-4711/b"))
    assert hub.reasons == ["not-listed", "bad-name"]


async def test_another_machine_with_the_same_serial_number_does_not_take_the_name(
    hub: ProvingHub, tmp_path: Path
) -> None:
    await joined(hub, device(tmp_path / "a", "SN-1"))
    with pytest.raises(Exception, match="belongs to a node with another proof"):
        await joined(hub, device(tmp_path / "b", "SN-1"), "other")


async def test_a_machine_in_two_lists_is_nobody(hub: ProvingHub, tmp_path: Path) -> None:
    one, two = (
        DeviceList(
            api_version="edgewise.dev/v1",
            metadata=Metadata(name=name),
            spec=DeviceListSpec(devices=(DeviceRow(name=name, serial="SN-1"),)),
        )
        for name in ("one", "two")
    )
    hub.rules = JoinRules.of(hub.rules.spec, [one, two])
    with pytest.raises(Forbidden, match="as one and as two"):
        await joined(hub, device(tmp_path, "SN-1"))


async def test_a_quarantined_machine_stays_out(hub: ProvingHub, tmp_path: Path) -> None:
    by = device(tmp_path, "SN-1")
    await joined(hub, by)
    await hub.register.quarantine("kiosk-sn-1", "stolen")
    with pytest.raises(Forbidden, match="stolen"):
        await joined(hub, by, "again")


async def test_where_nodes_have_to_prove_themselves_a_token_is_not_enough(
    hub: ProvingHub,
) -> None:
    token = await hub.token()
    hub.rules = rules(token=TokenRules(roles=("relay",)))
    with pytest.raises(Forbidden, match="no node join with a token"):
        await join(hub.machine("a"), token, Machine("node", "a"), Door(hub))
    hub.rules = rules(token=TokenRules(tpm="Required"))
    with pytest.raises(Forbidden, match="a TPM beside the token"):
        await join(hub.machine("a"), token, Machine("node", "a"), Door(hub))
    assert hub.reasons == ["token-not-allowed", "tpm-required"]


async def test_an_invitation_lets_nobody_in(hub: ProvingHub) -> None:
    with pytest.raises(BadUsage, match="a token, a TPM or a factory certificate"):
        await join(hub.machine("a"), hub.invitation, Machine("node", "a"), Door(hub))


async def test_files_that_are_no_certificate_or_key_are_named(
    hub: ProvingHub, tmp_path: Path
) -> None:
    by = device(tmp_path, "SN-1")
    by.key.write_text("junk")
    with pytest.raises(NeedsPerson, match=r"idevid\.key cannot be read as a private key"):
        await joined(hub, by)
    by.certificates.write_text("junk")
    with pytest.raises(NeedsPerson, match=r"idevid\.pem holds no certificate"):
        await joined(hub, by)
