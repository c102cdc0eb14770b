"""What the agent does for identities of its apps, beside the supply itself."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from edgewise.identity.supply import JWTS, HeldJwt, without_stale
from edgewise.protocol.bundles import DomainBundle, TrustBundles
from edgewise.protocol.codec import encode
from edgewise.protocol.content import ProcessApp, WorkloadRegistration
from edgewise.protocol.installed import Installed, InstalledApp, InstalledIdentity
from edgewise.protocol.workload import JwtSvid
from edgewise.roles.agent_workloads import REAL_SOCKET, REAL_STATE, NodeWorkloads, socket_of
from edgewise.runtime.credentials import CredentialFiles
from edgewise.testing.chance import SeededChance
from edgewise.testing.clock import ManualClock
from edgewise.testing.log import ListLog
from edgewise.testing.svids import DeskInProcess

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OWN = WorkloadRegistration("till", "/app/shops/till", ("edgewise:app:till",))


def app(name: str, identity: WorkloadRegistration | None = None) -> InstalledApp:
    part = ProcessApp(name, {}, ("true",))
    if identity is not None:
        part = ProcessApp(name, {}, ("true",), identity=identity)
    return InstalledApp("part", part, "tree", f"apps/{name}")


class World:
    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.log = ListLog()
        clock = ManualClock()
        self.desk = DeskInProcess(folder, clock)
        outside = (clock, SeededChance(), self.log)
        self.workloads = NodeWorkloads(
            self.state, self.state / "w.sock", lambda pid: None, self.desk, outside
        )

    def joined(self) -> TrustBundles | None:
        self.workloads.joined("eu.acme", lambda: None)  # type: ignore[arg-type, return-value]
        return self.workloads.svids.bundles()


def test_only_apps_that_an_identity_is_for_are_told_where_to_ask(tmp_path: Path) -> None:
    workloads = World(tmp_path).workloads
    audit = WorkloadRegistration("audit", "/app/audit", ("edgewise:app:ledger", "unix:uid:7"))
    workloads.heard(
        Installed(
            "r", "n", "linux/amd64", (app("till", OWN), app("ledger"), app("other")),
            identities=(InstalledIdentity("", audit),),
        )
    )  # fmt: skip
    socket = {"SPIFFE_ENDPOINT_SOCKET": f"unix://{tmp_path}/state/w.sock"}
    assert workloads.environment("till") == workloads.environment("ledger") == socket
    assert workloads.environment("other") == {}
    workloads.heard(None)
    assert workloads.environment("till") == {}


def test_facts_are_read_only_where_a_selector_asks_for_them(tmp_path: Path) -> None:
    workloads = World(tmp_path).workloads
    assert not workloads.facts.wanted
    digest = WorkloadRegistration("x", "/app/x", ("unix:sha256:" + "a" * 64,))
    workloads.heard(Installed("r", "n", "p", identities=(InstalledIdentity("", digest),)))
    assert set(workloads.facts.wanted) == {"sha256"}


def test_before_the_first_bundles_a_node_believes_its_own_roots(tmp_path: Path) -> None:
    world = World(tmp_path)
    CredentialFiles(world.state / "identity").trust([b"root"])
    assert world.joined() == TrustBundles(0, {"eu.acme": DomainBundle((b"root",))})


def test_verified_bundles_count_and_damaged_ones_fall_back_loudly(tmp_path: Path) -> None:
    world = World(tmp_path)
    CredentialFiles(world.state / "identity").trust([b"root"])
    bundles = TrustBundles(7, {"eu.acme": DomainBundle((b"new",))})
    (world.state / "identity" / "bundles.json").write_bytes(encode(bundles))
    assert world.joined() == bundles
    (world.state / "identity" / "bundles.json").write_bytes(b"{")
    world.workloads.svids.trusting()
    found = world.workloads.svids.bundles()
    assert found is not None
    assert found.own == {"eu.acme": DomainBundle((b"root",))}
    assert "bundles" in str(world.log.lines)


def test_the_socket_of_a_real_node_is_where_everybody_can_reach_it() -> None:
    assert socket_of(REAL_STATE, None) == REAL_SOCKET
    assert socket_of(Path("/home/n"), None) == Path("/home/n/run/workload.sock")
    assert socket_of(REAL_STATE, Path("/x/s")) == Path("/x/s")


def test_of_too_many_tokens_those_that_end_last_are_kept() -> None:
    def held(number: int) -> HeldJwt:
        expires = NOW + timedelta(seconds=number + 1)
        return HeldJwt(JwtSvid("spiffe://a/app/x", "t", NOW, expires))

    jwts = {("spiffe://a/app/x", (str(n),)): held(n) for n in range(JWTS + 9)}
    kept = without_stale(jwts, NOW)
    assert len(kept) == JWTS
    assert ("spiffe://a/app/x", ("0",)) not in kept
    assert without_stale(jwts, NOW + timedelta(hours=1)) == {}
