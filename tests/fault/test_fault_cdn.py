"""Content from nginx, set up as docs/cdn.md says: right, stale, mixed, damaged, half there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pyrage
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from relay_region import join_node, region

from edgewise.backends.files import mirroring
from edgewise.backends.files.cache_files import CacheFiles
from edgewise.backends.files.mirroring import mirror
from edgewise.backends.files.objects import FileObjects
from edgewise.backends.files.shelf import FileShelf
from edgewise.backends.files.space import Space, SpaceTerms
from edgewise.backends.tuf.repository import FileMetadata
from edgewise.delivery import packing
from edgewise.delivery.on_hub import Publisher
from edgewise.delivery.on_relay import Cache
from edgewise.delivery.ports import Source
from edgewise.model.names import Digest
from edgewise.net.client import Client, Endpoint
from edgewise.net.sources import Origin, Sources, plain_origin
from edgewise.protocol.channel import Channel
from edgewise.protocol.codec import encode
from edgewise.protocol.content import NotActedOn, PartRef, Release, object_path
from edgewise.roles.worker import InProcessWorker
from edgewise.runtime.clock import SystemClock
from edgewise.testing.content import MemoryKeys
from edgewise.testing.delta_files import delta_file
from edgewise.testing.log import ListLog

DOCS = Path(__file__).parents[2] / "docs" / "cdn.md"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Nginx:
    """One nginx that serves a folder as docs/cdn.md says; ``port`` is its own."""

    def __init__(self, folder: Path, state: Path) -> None:
        assert NGINX is not None, "nginx is missing: `make tools`"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        found = re.search(r"```nginx\n(.*?)```", DOCS.read_text(), re.DOTALL)
        assert found is not None
        server = found[1].replace("/srv/edgewise", str(folder))
        server = server.replace("listen 8080", f"listen 127.0.0.1:{self.port}")
        state.mkdir()
        temporary = "\n".join(
            f"{kind}_temp_path {state}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        config = state / "nginx.conf"
        config.write_text(
            f"daemon off; master_process off; pid {state}/pid; error_log {state}/errors;\n"
            f"events {{}}\nhttp {{ access_log {state}/access; gzip_types *;\n"
            f"{temporary}\n{server} }}\n"
        )
        self._process = subprocess.Popen([NGINX, "-p", str(state), "-c", str(config)])
        for _ in range(1000):  # it is a process of its own
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, (state / "errors").read_text()
            time.sleep(0.01)
        raise AssertionError("nginx does not listen")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


class Place:
    """A hub's content on disk, a mirror of it, and nginx before each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.content, self.cdn = folder / "content", folder / "cdn"
        self.paths: dict[str, bytes] = {}
        self.publisher: Publisher
        self.log = ListLog()
        self.hub_nginx: Nginx
        self.cdn_nginx: Nginx

    async def publish(self, sequence: int) -> None:
        objects = FileObjects(self.content)
        if sequence == 1:
            self.publisher = await Publisher.open(
                FileMetadata(self.content / "tuf"), MemoryKeys(), objects, clock=SystemClock()
            )
        for size in (100, 5_000, 300_000):
            data = os.urandom(size)
            digest = Digest.of(data).sha256
            await objects.put(digest, data)
            path = object_path(digest)
            self.paths[path] = (self.content / path).read_bytes()
        path, data = delta_file([os.urandom(30_000) for _ in range(8)])
        (self.content / path).parent.mkdir(parents=True, exist_ok=True)
        (self.content / path).write_bytes(data)
        self.paths[path] = data
        part = encode(NotActedOn("Thing", f"thing-{sequence}"))
        refs = (PartRef("other", f"thing-{sequence}", (), {"": Digest.of(part).sha256}),)
        release = encode(Release("lab", refs))
        name = Digest.of(release).sha256
        await self.publisher.publish_release(name, {Digest.of(part).sha256: part, name: release})
        await self.publisher.publish_channels([Channel("lab", sequence, stable=name)])

    def relay(self) -> tuple[Cache, Sources]:
        clock = SystemClock()
        hub = Client(Endpoint((self.hub_nginx.url,)), clock, 8)
        sources = Sources(
            (plain_origin(self.cdn_nginx.url, clock), Origin("hub", hub, "/")), clock, self.log
        )
        self.disk = self.folder / f"relay-{len(list(self.folder.iterdir()))}"
        space = Space(CacheFiles(self.disk), SpaceTerms(1 << 30, 0), clock, self.log)
        cache = Cache(
            FileShelf(space, sources, self.log),
            FileMetadata(self.disk / "tuf"),
            sources,
            root=self.publisher.root,
            clock=clock,
        )
        return cache, sources


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path)
    await place.publish(1)
    mirror(place.content, place.cdn)
    place.hub_nginx = Nginx(place.content, tmp_path / "nginx-hub")
    place.cdn_nginx = Nginx(place.cdn, tmp_path / "nginx-cdn")
    yield place
    place.hub_nginx.close()
    place.cdn_nginx.close()


async def get(cache: Cache, path: str) -> bytes:
    return b"".join([piece async for piece in cache.read(path, at_most=1 << 30)])


def served(sources: Sources) -> dict[str, int]:
    return {standing.name: standing.served_bytes for standing in sources.choice.standings}


async def everything(place: Place, cache: Cache) -> None:
    await get(cache, "tuf/timestamp.json")
    for path, data in place.paths.items():
        assert await get(cache, path) == data
    newest = place.publisher.metadata_for("lab")
    for name, data in newest.items():
        if not name.startswith("channels/"):
            assert await get(cache, f"tuf/{name}") == data


async def test_a_relay_gets_everything_but_the_timestamp_from_a_file_server(place: Place) -> None:
    cache, sources = place.relay()
    await everything(place, cache)
    small = sum((place.content / "tuf" / f"{n}").stat().st_size for n in ("timestamp.json",))
    assert served(sources)["hub"] == small
    assert served(sources)[f"127.0.0.1:{place.cdn_nginx.port}"] > 300_000
    await sources.close()


async def test_nginx_as_documented_says_what_caches_need_to_know(place: Place) -> None:
    path = max(place.paths, key=lambda p: len(place.paths[p]))
    whole = place.paths[path]
    asks = {"Accept-Encoding": "gzip, zstd"}
    async with aiohttp.ClientSession(place.cdn_nginx.url, auto_decompress=False) as web:
        async with web.get(f"/{path}", headers=asks) as answer:
            assert await answer.read() == whole
            assert "immutable" in answer.headers["Cache-Control"]
            assert "Content-Encoding" not in answer.headers
            assert answer.headers["Accept-Ranges"] == "bytes"
            assert answer.headers["ETag"]
        async with web.get(f"/{path}", headers={"Range": "bytes=1000-1999"}) as answer:
            assert (answer.status, await answer.read()) == (206, whole[1000:2000])
        async with web.get(f"/{path}", headers={"Range": f"bytes={len(whole)}-"}) as answer:
            assert answer.status == 416
        async with web.get("/tuf/timestamp.json", headers=asks) as answer:
            assert answer.headers["Cache-Control"] == "no-cache"
            assert "Content-Encoding" not in answer.headers
        async with web.get("/objects/") as answer:
            assert answer.status == 403


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
    mirror(place.content, place.cdn)
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
    place.cdn_nginx.close()
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
    mirror(content, target)
    (content / "objects/ab/2.zst").write_bytes(b"2")
    (content / "tuf/2.snapshot.json").write_bytes(b"{}")
    (content / "tuf/timestamp.json").write_bytes(b"second")
    steps = []
    real = mirroring._copy

    def noted(*args: object, **more: object) -> None:
        steps.append((target / "tuf/timestamp.json").read_bytes())
        real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(mirroring, "_copy", noted)
    mirror(content, target)
    assert set(steps) == {b"first"}
    assert (target / "tuf/timestamp.json").read_bytes() == b"second"
    assert mirror(content, target).copied == 0


def test_a_mirror_leaves_sealed_secrets_out_unless_told_otherwise(tmp_path: Path) -> None:
    content, target = tmp_path / "content", tmp_path / "target"
    for folder in ("objects/ab", "tuf"):
        (content / folder).mkdir(parents=True)
    recipient = pyrage.x25519.Identity.generate().to_public()
    sealed = packing.pack(pyrage.encrypt(b"secret", [recipient]))
    (content / "objects/ab/sealed.zst").write_bytes(sealed)
    (content / "objects/ab/plain.zst").write_bytes(packing.pack(b"plain"))
    (content / "tuf/timestamp.json").write_bytes(b"1")
    assert mirror(content, target).sealed == 1
    assert not (target / "objects/ab/sealed.zst").exists()
    assert mirror(content, target, sealed=True).copied == 1
    (content / "objects/ab/plain.zst").unlink()
    assert mirror(content, target, sealed=True, prune=True).pruned == 1


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


async def whole(source: Source, path: str) -> bytes:
    packed = b"".join([piece async for piece in source.read(path, at_most=1 << 20)])
    return packing.unpack(packed, path[8:10] + path[11:-4], at_most=1 << 20)
