"""Content from nginx, set up as docs/cdn.md says: right, stale, mixed, damaged, half there."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pyrage
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from content_place import Place, everything, get, served
from file_servers import Caddy, Nginx
from relay_region import eventually, join_node, region

from edgewise.backends.files import mirroring
from edgewise.backends.files.mirroring import FolderTarget, MirrorTerms, mirror
from edgewise.backends.files.objects import FileObjects
from edgewise.delivery import packing
from edgewise.delivery.ports import Source
from edgewise.model.errors import BadUsage, EdgewiseError, NeedsPerson, NotFound
from edgewise.model.names import Digest
from edgewise.net.client import HttpSource
from edgewise.net.sources import checked_urls
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import encode
from edgewise.protocol.content import object_path
from edgewise.roles.worker import InProcessWorker


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await place.publish(1)
    mirror(place.content, FolderTarget(place.cdn))
    place.hub_nginx = Nginx(place.content, tmp_path / "nginx-hub")
    place.cdn_server = Nginx(place.cdn, tmp_path / "nginx-cdn")
    yield place
    place.hub_nginx.close()
    place.cdn_server.close()


async def test_a_relay_gets_everything_but_the_timestamp_from_a_file_server(place: Place) -> None:
    cache, sources = place.relay()
    await everything(place, cache)
    small = sum((place.content / "tuf" / f"{n}").stat().st_size for n in ("timestamp.json",))
    assert served(sources)["hub"] == small
    assert served(sources)[f"127.0.0.1:{place.cdn_server.port}"] > 300_000
    await sources.close()


@pytest.mark.parametrize("kind", [Nginx, Caddy])
async def test_a_file_server_as_documented_says_what_caches_need_to_know(
    place: Place, tmp_path: Path, kind: type[Nginx] | type[Caddy]
) -> None:
    server = kind(place.cdn, tmp_path / "server")
    path = max(place.paths, key=lambda p: len(place.paths[p]))
    whole = place.paths[path]
    asks = {"Accept-Encoding": "gzip, zstd"}
    async with aiohttp.ClientSession(server.url, auto_decompress=False) as web:
        async with web.get(f"/{path}", headers=asks) as answer:
            assert await answer.read() == whole
            assert "immutable" in answer.headers["Cache-Control"]
            assert "Content-Encoding" not in answer.headers
            assert answer.headers["Accept-Ranges"] == "bytes"
            tag, date = answer.headers["ETag"], answer.headers["Last-Modified"]
        for known in ({"If-None-Match": tag}, {"If-Modified-Since": date}):
            async with web.get(f"/{path}", headers=known) as answer:
                assert (answer.status, await answer.read()) == (304, b"")
        async with web.get(f"/{path}", headers={"Range": "bytes=1000-1999"}) as answer:
            assert (answer.status, await answer.read()) == (206, whole[1000:2000])
        async with web.get(f"/{path}", headers={"Range": f"bytes={len(whole)}-"}) as answer:
            assert answer.status == 416
        async with web.get("/tuf/timestamp.json", headers=asks) as answer:
            assert answer.headers["Cache-Control"] == "no-cache"
            assert "Content-Encoding" not in answer.headers
        for missing in (f"/objects/{'0' * 2}/{'0' * 62}.zst", "/tuf/999.snapshot.json"):
            async with web.get(missing) as answer:
                assert answer.status == 404
                assert "Cache-Control" not in answer.headers, "it may come at any moment"
        for nobodys in ("/objects/", "/objects/.incoming/x", "/objects/ab/.x.zst.new"):
            async with web.get(nobodys) as answer:
                assert answer.status in (403, 404)
    server.close()


async def test_caddy_that_compresses_for_whoever_asks_is_not_asked_to(
    place: Place, tmp_path: Path
) -> None:
    place.cdn_server.close()
    place.cdn_server = Caddy(place.cdn, tmp_path / "caddy", "encode {\n gzip\n minimum_length 1\n}")
    async with aiohttp.ClientSession(place.cdn_server.url, auto_decompress=False) as web:
        metadata = place.publisher.metadata_for("lab")
        name = next(one for one in metadata if one.endswith(".targets.json"))
        async with web.get(f"/tuf/{name}", headers={"Accept-Encoding": "gzip"}) as answer:
            assert answer.headers["Content-Encoding"] == "gzip"
    cache, sources = place.relay()
    await everything(place, cache)
    assert served(sources)["hub"] == (place.content / "tuf/timestamp.json").stat().st_size
    await sources.close()


async def test_a_file_server_that_compresses_unasked_or_redirects_is_left_alone(
    place: Place, tmp_path: Path
) -> None:
    place.cdn_server.close()
    for number, bad in enumerate(
        ("header Content-Encoding gzip", "redir https://elsewhere.example{uri} 302")
    ):
        place.cdn_server = Caddy(place.cdn, tmp_path / f"caddy-{number}", bad)
        cache, sources = place.relay()
        await everything(place, cache)
        assert [standing.lies for standing in sources.choice.standings] == [1, 0]
        place.cdn_server.close()
        await sources.close()
    said = [str(more["because"]) for what, more in place.log.lines if "fails" in what]
    assert any("compressed" in one for one in said)
    assert any("302 to https://elsewhere.example/" in one for one in said)
    place.cdn_server = Nginx(place.cdn, tmp_path / "nginx-again")


async def test_a_file_server_that_forbids_what_it_does_not_have_is_asked_again(
    place: Place, tmp_path: Path
) -> None:
    lost = list(place.paths)[::2]
    for path in lost:
        (place.cdn / path).unlink()
    place.cdn_server.close()
    as_s3 = "@lost not file\nrespond @lost `<Error><Code>AccessDenied</Code></Error>` 403"
    place.cdn_server = Caddy(place.cdn, tmp_path / "caddy", as_s3)
    cache, sources = place.relay()
    await everything(place, cache)
    cdn = sources.choice.standings[0]
    assert (cdn.failures, cdn.lies, cdn.refusals) == (0, 0, len(lost))
    assert cdn.served_bytes > 0
    warned = [what for what, _ in place.log.lines if "forbids" in what]
    assert len(warned) == 1
    await sources.close()


async def test_a_stale_file_server_delays_nothing(place: Place) -> None:
    await place.publish(2)  # and nobody has synced since
    cache, sources = place.relay()
    await everything(place, cache)
    assert served(sources)["hub"] > 300_000
    assert [standing.lies for standing in sources.choice.standings] == [0, 0]
    await sources.close()


async def test_an_old_timestamp_among_new_files_is_never_asked_for(place: Place) -> None:
    old = (place.cdn / "tuf" / "timestamp.json").read_bytes()
    await place.publish(2)
    mirror(place.content, FolderTarget(place.cdn))
    (place.cdn / "tuf" / "timestamp.json").write_bytes(old)
    cache, sources = place.relay()
    await everything(place, cache)
    assert await get(cache, "tuf/timestamp.json") != old
    await sources.close()


async def test_a_damaged_file_costs_a_second_download_and_the_source_its_place(
    place: Place,
) -> None:
    path = max(place.paths, key=lambda p: len(place.paths[p]) if p.endswith(".zst") else 0)
    damaged = bytearray(place.paths[path])
    damaged[len(damaged) // 2] ^= 1
    (place.cdn / path).write_bytes(damaged)
    cache, sources = place.relay()
    assert await get(cache, path) == place.paths[path]
    assert [standing.lies for standing in sources.choice.standings] == [1, 0]
    await everything(place, cache)
    assert any(what == "a source is not believed" for what, _ in place.log.lines)
    await sources.close()


async def test_a_file_server_that_lost_files_is_helped_out(place: Place) -> None:
    for path in list(place.paths)[::2]:
        (place.cdn / path).unlink()
    cache, sources = place.relay()
    await everything(place, cache)
    assert served(sources)["hub"] > 0
    assert sources.choice.standings[0].failures == 0
    await sources.close()


async def test_a_file_server_that_is_down_costs_one_try(place: Place) -> None:
    place.cdn_server.close()
    cache, sources = place.relay()
    await everything(place, cache)
    assert sources.choice.standings[0].failures == 1
    await sources.close()


def test_a_mirror_that_is_cut_off_anywhere_is_a_complete_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, target = tmp_path / "content", tmp_path / "target"
    for folder in ("objects/ab", "tuf"):
        (content / folder).mkdir(parents=True)
    (content / "objects/ab/1.zst").write_bytes(b"1")
    (content / "tuf/1.snapshot.json").write_bytes(b"{}")
    (content / "tuf/timestamp.json").write_bytes(b"first")
    mirror(content, FolderTarget(target))
    (content / "objects/ab/2.zst").write_bytes(b"2")
    (content / "tuf/2.snapshot.json").write_bytes(b"{}")
    (content / "tuf/timestamp.json").write_bytes(b"second")
    steps = []
    real = mirroring.FolderTarget._copy

    def noted(self: FolderTarget, copy: mirroring.Copy, waiting: Any) -> None:
        missing = [p for p in ("objects/ab/2.zst",) if not (target / p).exists()]
        steps.append((copy.path, missing, (target / "tuf/timestamp.json").read_bytes()))
        real(self, copy, waiting)

    monkeypatch.setattr(mirroring.FolderTarget, "_copy", noted)
    mirror(content, FolderTarget(target))
    assert steps == [
        ("objects/ab/2.zst", ["objects/ab/2.zst"], b"first"),
        ("tuf/2.snapshot.json", [], b"first"),
    ]
    assert (target / "tuf/timestamp.json").read_bytes() == b"second"
    assert mirror(content, FolderTarget(target)).copied == 0


def test_a_mirror_that_fails_in_a_batch_leaves_no_half_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, target = tmp_path / "content", tmp_path / "target"
    for folder in ("objects/ab", "tuf"):
        (content / folder).mkdir(parents=True)
    for number in range(10):
        (content / f"objects/ab/{number}.zst").write_bytes(b"%d" % number)
    (content / "tuf/timestamp.json").write_bytes(b"first")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(mirroring, "sync_filesystem", full)
        with pytest.raises(NeedsPerson, match="full"):
            mirror(content, FolderTarget(target))
    assert [path for path in target.rglob("*") if path.is_file()] == []
    assert mirror(content, FolderTarget(target)).copied == 10


def test_a_mirror_replaces_metadata_of_a_publication_that_never_ended(tmp_path: Path) -> None:
    content, target = tmp_path / "content", tmp_path / "target"
    (content / "tuf").mkdir(parents=True)
    (content / "tuf/timestamp.json").write_bytes(b"first")
    (content / "tuf/2.channels.json").write_bytes(b"written before the hub was killed")
    mirror(content, FolderTarget(target))
    (content / "tuf/2.channels.json").write_bytes(b"WRITTEN BEFORE THE HUB WAS KILLED")
    assert mirror(content, FolderTarget(target)).copied == 1
    assert (target / "tuf/2.channels.json").read_bytes().isupper()


def test_a_dry_run_says_what_a_mirror_would_do_and_does_nothing(tmp_path: Path) -> None:
    content, target = tmp_path / "content", tmp_path / "target"
    for folder in (content / "objects/ab", content / "tuf", target / "objects/ab"):
        folder.mkdir(parents=True)
    (content / "objects/ab/1.zst").write_bytes(b"1")
    (content / "tuf/timestamp.json").write_bytes(b"first")
    (target / "objects/ab/old.zst").write_bytes(b"old")
    would = mirror(content, FolderTarget(target), MirrorTerms(prune=True, dry_run=True))
    assert (would.copied, would.bytes, would.pruned, would.dry_run) == (1, 1, 1, True)
    assert [path.name for path in target.rglob("*.*")] == ["old.zst"]
    done = mirror(content, FolderTarget(target), MirrorTerms(prune=True))
    assert (done.copied, done.pruned) == (would.copied, would.pruned)


def test_a_mirror_leaves_sealed_secrets_out_unless_told_otherwise(tmp_path: Path) -> None:
    content, target = tmp_path / "content", tmp_path / "target"
    for folder in ("objects/ab", "tuf"):
        (content / folder).mkdir(parents=True)
    recipient = pyrage.x25519.Identity.generate().to_public()
    sealed = packing.pack(pyrage.encrypt(b"secret", [recipient]))
    (content / "objects/ab/sealed.zst").write_bytes(sealed)
    (content / "objects/ab/plain.zst").write_bytes(packing.pack(b"plain"))
    (content / "tuf/timestamp.json").write_bytes(b"1")
    assert mirror(content, FolderTarget(target)).sealed == 1
    assert not (target / "objects/ab/sealed.zst").exists()
    assert mirror(content, FolderTarget(target), MirrorTerms(sealed=True)).copied == 1
    (content / "objects/ab/plain.zst").unlink()
    assert mirror(content, FolderTarget(target), MirrorTerms(sealed=True, prune=True)).pruned == 1


async def test_a_node_that_asks_again_for_a_whole_file_gets_it_from_somebody_else(
    place: Place,
) -> None:
    path = max(place.paths, key=lambda p: len(place.paths[p]) if p.endswith(".zst") else 0)
    (place.cdn / path).write_bytes(place.paths[path][:-1] + bytes([place.paths[path][-1] ^ 1]))
    _, sources = place.relay()
    got = [
        b"".join([piece async for piece in sources.read(path, at_most=1 << 30)]) for _ in range(2)
    ]
    assert got[0] != place.paths[path]
    assert got[1] == place.paths[path]
    assert sources.choice.standings[0].lies == 1
    await sources.close()


async def test_a_node_fetches_from_a_file_server_and_takes_the_rest_from_its_relay(
    tmp_path: Path,
) -> None:
    there, elsewhere = os.urandom(20_000), os.urandom(20_000)
    paths = [object_path(Digest.of(data).sha256) for data in (there, elsewhere)]
    (tmp_path / "cdn" / paths[0]).parent.mkdir(parents=True)
    (tmp_path / "cdn" / paths[0]).write_bytes(packing.pack(there))
    nginx = Nginx(tmp_path / "cdn", tmp_path / "nginx")
    async with region(tmp_path) as (hub, relay):
        token = await hub.token(region="eu", via="frankfurt")
        node = await join_node(tmp_path / "node", "identity", token)
        await node.client.close()
        (tmp_path / "node" / "content-urls").write_text(f"{nginx.url}\n")
        await hub.publisher.put_objects({Digest.of(elsewhere).sha256: elsewhere})
        async with InProcessWorker(tmp_path / "node")._source() as source:
            got = [await whole(source, path) for path in paths]
        assert got == [there, elsewhere]
        assert (await relay.health())["fetched_bytes"] == len(packing.pack(elsewhere))
    nginx.close()


async def test_a_relay_learns_of_file_servers_from_the_hub_and_forgets_those_withdrawn(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "cdn"
    (folder / "objects/.incoming").mkdir(parents=True)
    nginx = Nginx(folder, tmp_path / "nginx")
    async with region(tmp_path) as (hub, relay):
        token = await hub.token(region="eu", via="frankfurt")
        node = await join_node(tmp_path / "node", "identity", token)
        source = HttpSource(node.client)

        async def has(data: bytes) -> bool:
            try:
                return await whole(source, object_path(Digest.of(data).sha256)) == data
            except EdgewiseError:
                return False

        texts = [os.urandom(2000) for _ in range(3)]
        for data in texts:  # only there, so whoever has it asked there
            await FileObjects(folder).put(Digest.of(data).sha256, data)
        assert not await has(texts[0])
        hub.publisher.content_urls = (nginx.url, "ftp://nobody", "https://user:pw@cdn.example")
        await hub.announce(1)
        await eventually(lambda: has(texts[0]))
        assert await has(texts[1])
        hub.publisher.content_urls = ()
        await hub.announce(2)

        async def withdrawn() -> bool:
            data = os.urandom(2000)
            await FileObjects(folder).put(Digest.of(data).sha256, data)
            return not await has(data)

        await eventually(withdrawn)
        assert not await has(texts[2])
        hub.publisher.content_urls = (nginx.url,)
        await hub.announce(3)
        await eventually(lambda: has(texts[2]))
        await node.client.close()
        await relay.stop()
    nginx.close()


@pytest.mark.parametrize(
    "bad",
    ["cdn.example", "ftp://cdn.example", "https://u:p@cdn.example", "https://cdn.example/?a",
     "https://cdn.example/#a", "https://cdn.example/ a", "https://[::1", "http://x:99999/",
     "https://cdn.example/" + "a" * 1000, "https://exämple/"],
)  # fmt: skip
def test_a_hub_announces_only_urls_of_plain_file_servers(bad: str) -> None:
    with pytest.raises(BadUsage):
        checked_urls([bad])
    with pytest.raises(BadUsage, match="4 at most"):
        checked_urls([f"https://cdn-{number}.example" for number in range(5)])
    assert checked_urls(["https://a.example/x/", "https://a.example/x"]) == ("https://a.example/x",)


async def test_a_node_without_a_relay_asks_announced_file_servers_and_one_with_a_relay_does_not(
    tmp_path: Path,
) -> None:
    data, other = os.urandom(2000), os.urandom(2000)
    path, known = (object_path(Digest.of(one).sha256) for one in (data, other))
    (tmp_path / "cdn" / path).parent.mkdir(parents=True)
    (tmp_path / "cdn" / path).write_bytes(packing.pack(data))
    nginx = Nginx(tmp_path / "cdn", tmp_path / "nginx")
    channel = encode(Channel("shops", 1, content_urls=(nginx.url,)))
    async with region(tmp_path) as (hub, _):
        await hub.publisher.put_objects({Digest.of(other).sha256: other})
        for name, via in (("alone", ""), ("behind", "frankfurt")):
            folder = tmp_path / name
            node = await join_node(folder, name, await hub.token(region="eu", via=via))
            await node.client.close()
            (folder / name).rename(folder / "identity")
            (folder / "trust").mkdir()
            (folder / "trust/channel.json").write_bytes(channel)
            async with InProcessWorker(folder)._source() as source:
                assert await whole(source, known) == other
                if via:
                    with pytest.raises(NotFound):
                        await whole(source, path)
                else:
                    assert await whole(source, path) == data
    nginx.close()


async def whole(source: Source, path: str) -> bytes:
    packed = b"".join([piece async for piece in source.read(path, at_most=1 << 20)])
    return packing.unpack(packed, path[8:10] + path[11:-4], at_most=1 << 20)
