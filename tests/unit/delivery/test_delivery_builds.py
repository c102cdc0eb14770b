"""From directories to signed builds that the hub takes, and what it refuses."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import Signature

from edgewise.backends.files.builds import BuildFolder, run_script
from edgewise.backends.files.objects import FileObjects
from edgewise.backends.files.trees import scan
from edgewise.backends.tuf.repository import FileKeys, FileMetadata, load_key, new_key
from edgewise.delivery import trust
from edgewise.delivery.builder import make_artifact, own_targets, sign_builds
from edgewise.delivery.on_hub import AwaitingBuilder, Publisher
from edgewise.delivery.trust import KEPT_RELEASES, key_id
from edgewise.model.errors import BadUsage, Conflict, Forbidden, NeedsPerson, Untrusted
from edgewise.protocol.api import Builds, BuildsUpload
from edgewise.protocol.channel import Channel
from edgewise.protocol.content import Artifact
from edgewise.testing.clock import ManualClock
from edgewise.testing.content import Content


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def make_directory(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / "bin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    return path


def build(folder: Path, source: Path, **files: str) -> tuple[Artifact, bytes, BuildFolder]:
    """``hello`` 1.0 of these files, as `edgewise artifact build` makes it."""
    made = BuildFolder(folder)
    tree = made.add_tree(make_directory(source, **files))
    artifact = make_artifact("hello", "1.0", {"linux/amd64": tree})
    return artifact, made.add(artifact), made


async def send(content: Content, folder: BuildFolder, artifact: Artifact) -> None:
    """What `edgewise artifact publish` does with the objects."""
    files = folder.objects(artifact)
    for sha256 in await content.objects.missing(files):
        await content.objects.put(sha256, files[sha256].read_bytes())


async def test_a_builder_publishes_and_the_hub_schedules_only_that(
    clock: ManualClock, tmp_path: Path
) -> None:
    content = await Content.open(clock, mode="builder")
    key = new_key(tmp_path / "ci.pem")
    await content.publisher.set_builders([key.public_key])
    artifact, document, local = build(tmp_path / "local", tmp_path / "src", run="echo hello")
    upload = sign_builds(content.publisher.builds(), key, (document,), clock.now())
    with pytest.raises(BadUsage, match="1 objects that builds names are not here"):
        await content.publisher.accept_builds(upload)
    await send(content, local, artifact)
    await content.publisher.accept_builds(upload)
    assert content.publisher.artifacts() == {("hello", "1.0"): artifact}

    release, documents = await content.documents({"hello": {"bin/run": b"x"}})
    with pytest.raises(AwaitingBuilder):
        await content.publisher.publish_release(release, documents)
    upload = sign_builds(
        content.publisher.builds(),
        load_key(tmp_path / "ci.pem"),
        (documents[release],),
        clock.now(),
    )
    await content.publisher.accept_builds(upload)
    await content.publisher.publish_release(release, documents)
    with pytest.raises(Conflict, match="does not follow"):
        await content.publisher.accept_builds(upload)


async def test_only_a_delegated_key_signs_builds(clock: ManualClock, tmp_path: Path) -> None:
    content = await Content.open(clock, mode="builder")
    stranger = new_key(tmp_path / "stranger.pem")
    release, documents = await content.documents({"hello": {"bin/run": b"x"}})
    with pytest.raises(Forbidden):
        sign_builds(content.publisher.builds(), stranger, (documents[release],), clock.now())
    builds = content.publisher.builds()
    forged = type(builds)(builds.metadata, (key_id(stranger.public_key),), builds.trust)
    upload = sign_builds(forged, stranger, (documents[release],), clock.now())
    with pytest.raises(Untrusted):
        await content.publisher.accept_builds(upload)


async def test_a_published_version_never_changes(clock: ManualClock, tmp_path: Path) -> None:
    content = await Content.open(clock)
    uploads = []
    for text in ("one", "two"):
        artifact, document, local = build(tmp_path / text, tmp_path / f"src-{text}", run=text)
        await send(content, local, artifact)
        uploads.append(BuildsUpload(b"", (document,)))
    await content.publisher.accept_builds(uploads[0])
    await content.publisher.accept_builds(uploads[0])
    with pytest.raises(Conflict, match="other content"):
        await content.publisher.accept_builds(uploads[1])


async def test_old_releases_leave_builds_but_not_those_that_fleets_run(clock: ManualClock) -> None:
    content = await Content.open(clock)
    first = await content.release({"a": {"bin/run": b"first"}})
    await content.announce(1, first)
    others = {}
    for number in range(KEPT_RELEASES + 5):
        release, documents = await content.documents({"a": {"bin/run": b"%d" % number}})
        others[release] = documents
    for release, documents in others.items():
        await content.publisher.publish_release(release, documents)
    assert content.publisher.is_signed(first)
    assert not content.publisher.is_signed(next(iter(others)))
    assert content.publisher.is_signed(list(others)[-1])


async def test_turning_to_trust_builder_takes_the_hubs_key_away(
    clock: ManualClock, tmp_path: Path
) -> None:
    content = await Content.open(clock)
    await content.announce(1, await content.release({"a": {"bin/run": b"1"}}))
    await content.reopen(clock, mode="builder")
    assert content.publisher.builds().keys == ()
    release, documents = await content.documents({"a": {"bin/run": b"2"}})
    with pytest.raises(AwaitingBuilder):
        await content.publisher.publish_release(release, documents)


async def test_an_old_channel_comes_too_late(clock: ManualClock) -> None:
    content = await Content.open(clock)
    await content.announce(2, "")
    await content.announce(2, "")
    with pytest.raises(Conflict, match="too late"):
        await content.announce(1, "")


async def test_a_crash_between_any_two_files_leaves_a_valid_repository(
    clock: ManualClock, tmp_path: Path
) -> None:
    class PowerCut(Exception):
        pass

    content = await Content.open(clock)
    release = await content.release({"a": {"bin/run": b"1"}})
    await content.announce(1, release)
    write = content.metadata.write
    seen = set()
    for survive in range(4):
        left = survive

        def cut(name: str, data: bytes) -> None:
            nonlocal left
            if left == 0:
                raise PowerCut
            left -= 1
            write(name, data)

        content.metadata.write = cut
        published = content.publisher.channel("lab")
        try:
            await content.announce(published.sequence + 1, release)
        except PowerCut:
            pass
        content.metadata.write = write
        await content.reopen(clock)
        channel = content.publisher.channel("lab")
        seen.add(channel.sequence - published.sequence)
        await content.announce(channel.sequence + 1, release)
    assert seen == {0, 1}


async def test_file_servers_are_announced_with_the_next_sequence(
    clock: ManualClock, tmp_path: Path
) -> None:
    publisher = await Publisher.open(
        FileMetadata(tmp_path / "tuf"), FileKeys(tmp_path / "keys"), FileObjects(tmp_path),
        clock=clock,
    )  # fmt: skip
    await publisher.publish_channels([Channel("lab", 1)])
    publisher.content_urls = ("https://cdn.example/edgewise",)
    await publisher.publish_channels([Channel("lab", 1)])
    assert publisher.channel("lab") == Channel("lab", 1)
    await publisher.publish_channels([Channel("lab", 2)])
    assert publisher.channel("lab") == Channel("lab", 2, content_urls=publisher.content_urls)
    publisher.content_urls = ()
    await publisher.publish_channels([Channel("lab", 3)])
    assert publisher.channel("lab") == Channel("lab", 3)


async def test_the_real_repository_survives_a_restart(clock: ManualClock, tmp_path: Path) -> None:
    async def start() -> Publisher:
        return await Publisher.open(
            FileMetadata(tmp_path / "content" / "tuf"),
            FileKeys(tmp_path / "keys"),
            FileObjects(tmp_path / "content"),
            clock=clock,
        )

    publisher = await start()
    await publisher.publish_channels([Channel("lab", 1), Channel("shop", 7)])
    root = publisher.root
    again = await start()
    assert again.root == root
    assert again.channel("shop") == Channel("shop", 7)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "keys").iterdir()} == {0o600}
    (tmp_path / "keys" / "root.pem").unlink()
    (tmp_path / "keys" / "targets.pem").unlink()
    offline = await start()
    await offline.publish_channels([Channel("lab", 2)])
    assert {line.name: line.present for line in offline.key_lines()} == {
        "root": False,
        "targets": False,
        "online": True,
        "builder": True,
    }
    with pytest.raises(NeedsPerson, match=r"root.pem is not here"):
        await offline.rotate("root")


async def test_the_online_key_is_refused_when_others_can_read_it(
    clock: ManualClock, tmp_path: Path
) -> None:
    path = tmp_path / "k.pem"
    new_key(path)
    path.chmod(0o644)
    with pytest.raises(NeedsPerson, match="read by others"):
        load_key(path)


async def test_a_script_fills_a_directory_for_each_platform(tmp_path: Path) -> None:
    script = tmp_path / "build"
    script.write_text(
        '#!/bin/sh\nmkdir "$OUTPUT/bin"\necho $TARGETARCH$TARGETVARIANT > "$OUTPUT/bin/arch"\n'
    )
    script.chmod(0o755)
    for platform, says in (("linux/amd64", "amd64"), ("linux/arm/v7", "armv7")):
        output = tmp_path / says
        output.mkdir()
        await run_script(script, platform, "1", output)
        assert (output / "bin" / "arch").read_text().strip() == says
    script.write_text("#!/bin/sh\necho no compiler; exit 3\n")
    with pytest.raises(NeedsPerson, match="exit code 3: no compiler"):
        await run_script(script, "linux/amd64", "1", tmp_path)


def test_what_a_build_folder_lost_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    artifact, _, folder = build(tmp_path / "built", tmp_path / "src", run="echo hello")
    next((tmp_path / "built" / "objects").iterdir()).unlink()
    with pytest.raises(BadUsage, match="is not there any more"):
        folder.objects(artifact)
    with pytest.raises(BadUsage, match="cannot be read"):
        folder.read("hello", "2.0")


def test_a_setuid_file_is_not_delivered(tmp_path: Path) -> None:
    make_directory(tmp_path, su="x")
    (tmp_path / "bin" / "su").chmod(0o4755)
    with pytest.raises(BadUsage, match="'bin/su' has mode 4755"):
        scan(tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../x", ".."])
def test_a_link_out_of_the_tree_is_not_delivered(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(BadUsage, match="leaves the tree"):
        scan(tmp_path)


async def test_builds_are_signed_again_in_time(clock: ManualClock) -> None:
    content = await Content.open(clock)
    await content.release({"a": {"bin/run": b"1"}})
    clock.advance(timedelta(days=200))
    assert set(await content.publisher.refresh()) == {
        "root",
        "targets",
        "builds",
        "channels",
        "snapshot",
        "timestamp",
    }
    assert await content.publisher.refresh() == ()


def test_a_builder_takes_over_no_list_that_a_thief_of_the_hub_made(tmp_path: Path) -> None:
    own, other = new_key(tmp_path / "own.pem"), new_key(tmp_path / "other.pem")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    made = trust.successor_of_builds(None, now, {"artifacts/evil/1.json": b"{}"}, frozenset())
    forged = Builds(trust.serialise(trust.signed(made, [other])), (), "builder")
    with pytest.raises(Untrusted, match="none of the builders you trust"):
        own_targets(forged, [own.public_key])
    assert list(own_targets(forged, [own.public_key, other.public_key])) == [
        "artifacts/evil/1.json"
    ]
    claimed = trust.signed(made, [other])
    claimed.signatures[own.public_key.keyid] = Signature(own.public_key.keyid, "00" * 64)
    with pytest.raises(Untrusted):
        own_targets(Builds(trust.serialise(claimed), (), "builder"), [own.public_key])
    assert own_targets(Builds(b"", (), "builder"), [own.public_key]) == {}
