"""What lies on a real node: secrets, and files that somebody changed by hand."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import zstandard

sys.path.insert(0, str(Path(__file__).parent))

from fleet_on_laptop import Fleet, fleet_on_laptop

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    async with fleet_on_laptop(tmp_path) as running:
        yield running


def leaks(places: list[Path], *plaintexts: str) -> Iterator[str]:
    """Files below ``places`` that hold one of the texts, packed or not."""
    for place in places:
        for path in place.rglob("*"):
            if not path.is_file() or path.is_symlink():
                continue
            data = path.read_bytes()
            if path.suffix == ".zst":
                data += zstandard.ZstdDecompressor().decompressobj().decompress(data)
            for text in plaintexts:
                if text.encode() in data:
                    yield f"{path}: {text}"


async def test_a_secret_from_git_is_a_file_on_its_nodes_and_plaintext_nowhere_else(
    fleet: Fleet,
) -> None:
    top = fleet.laptop.directory
    files = fleet.files("1.0.0")
    await fleet.publish("1.0.0")

    async def sealed(text: str) -> str:
        (top / "password.txt").write_text(text)
        value = f"password={top / 'password.txt'}"
        said = await fleet.edgewise("secret", "seal", "db", "--value", value)
        (top / "password.txt").unlink()
        return said + "\n"

    first, second = "correct-horse-battery", "staple-of-another-kind"
    files["edgewise.yaml"] = files["edgewise.yaml"].replace("policies]", "policies, secrets]")
    files["fleets/shops.yaml"] += "  secrets:\n  - {ref: {name: db}}\n"
    commit = await fleet.change({**files, "secrets/db.yaml": await sealed(first)}, "a password")
    assert (await fleet.ended(commit)).state == "Succeeded"
    placed = [fleet.state(n.name) / "root/run/secrets/db/password" for n in fleet.nodes]
    assert [path.read_text() for path in placed] == [first, first]
    assert [path.stat().st_mode & 0o777 for path in placed] == [0o400, 0o400]

    commit = await fleet.change({"secrets/db.yaml": await sealed(second)}, "another password")
    assert (await fleet.ended(commit)).state == "Succeeded"
    assert [path.read_text() for path in placed] == [second, second]

    for path in placed:  # a boot empties the tmpfs
        path.unlink()
    for node in fleet.nodes:
        await fleet.kill(node.name)
        await fleet.start_agent(node.name)
    await fleet.until(lambda: all(path.exists() for path in placed), "the secrets are back")
    assert [path.read_text() for path in placed] == [second, second]
    for path in placed:
        path.unlink()
    assert list(leaks([top], first, second)) == []


async def test_a_file_changed_by_hand_is_put_right_or_only_told(fleet: Fleet) -> None:
    files = fleet.files("1.0.0")
    fleet_file = files["fleets/shops.yaml"]
    correct = fleet_file + "  driftPolicy: {mode: Correct, interval: 1s}\n"
    await fleet.publish("1.0.0")
    commit = await fleet.change({**files, "fleets/shops.yaml": correct}, "correct drift")
    assert (await fleet.ended(commit)).state == "Succeeded"
    greeting = fleet.state("node-1") / "root/etc/shop/greeting.txt"
    right = greeting.read_text()
    pid = fleet.app_pid("node-1")
    for damage in (lambda: greeting.write_text("edited\n"), greeting.unlink):
        damage()
        await fleet.until(
            lambda: greeting.exists() and greeting.read_text() == right, "it is right again", 20
        )

    report = fleet_file + "  driftPolicy: {mode: Report, interval: 1s}\n"
    commit = await fleet.change({"fleets/shops.yaml": report}, "only report drift")
    release = fleet.trace(commit).releases["shops"]
    await fleet.until(  # no rollout: what the nodes run stays the same
        lambda: fleet.node("node-1").summary.running == release, "the node has the new rule", 40
    )
    assert fleet.rollout(commit) is None
    greeting.write_text("edited\n")
    drifted = await fleet.until(lambda: fleet.node("node-1").drifted, "the drift is told", 40)
    assert drifted == ("/etc/shop/greeting.txt",)
    assert greeting.read_text() == "edited\n"
    assert fleet.node("node-1").summary.sync == "OutOfSync"
    assert fleet.app_pid("node-1") == pid, "no app was restarted for any of this"
