"""Content in a real object store, written by `edgewise content sync`, as docs/cdn.md says."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "fault"))

from content_place import Place, everything, get, served
from file_servers import S3_KEYS, Bucket, Nginx, documented
from fleet_on_laptop import fleet_on_laptop

from edgewise.backends.files.mirroring import MirrorTerms, mirror
from edgewise.backends.s3.bucket import BucketTarget
from edgewise.cli.main import app
from edgewise.model.errors import NotFound, TryLater

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
TARGET = "s3://bucket/edgewise"


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    place = Place(tmp_path)
    await place.publish(1)
    place.hub_nginx = Nginx(place.content, tmp_path / "nginx-hub")
    place.cdn_server = Bucket(tmp_path / "bucket")
    yield place
    place.hub_nginx.close()
    place.cdn_server.close()


def bucket(place: Place) -> Bucket:
    assert isinstance(place.cdn_server, Bucket)
    return place.cdn_server


def sync(place: Place, *more: str) -> dict[str, int]:
    """As a person does; what it said."""
    verb = ("content", "sync", TARGET, "--data", str(place.folder), *more)
    endpoint = ("--endpoint", bucket(place).endpoint)
    done = CliRunner().invoke(app, ["--output", "json", *verb, *endpoint])
    assert done.exit_code == 0, done.output
    said: dict[str, int] = json.loads(done.stdout)
    return said


def written(place: Place) -> list[str]:
    """Paths that were put, in order."""
    said = (place.folder / "bucket" / "said").read_text()
    return re.findall(r'"\S*(?:PUT|POST) /bucket/edgewise/([\w./-]+)', said)


async def test_a_sync_brings_what_is_new_and_the_timestamp_last(place: Place) -> None:
    would = sync(place, "--dry-run")
    assert written(place) == []
    done = sync(place)
    assert (done["copied"], done["bytes"]) == (would["copied"], would["bytes"])
    assert done["copied"] > len(place.paths)
    assert written(place)[-1] == "tuf/timestamp.json"
    payload = [path for path in written(place) if not path.startswith("tuf/")]
    assert written(place)[: len(payload)] == payload
    before = len(written(place))
    assert sync(place)["copied"] == 0
    assert len(written(place)) == before, "not even the timestamp"

    old = set(place.paths)
    await place.publish(2)
    again = sync(place)
    assert again["present"] >= len(old)
    new = written(place)[before:]
    assert set(place.paths) - old <= set(new)
    assert not old & set(new)
    assert new[-1] == "tuf/timestamp.json"

    gone = next(iter(old))
    (place.content / gone).unlink()
    assert sync(place, "--prune", "--dry-run")["pruned"] == 1
    assert sync(place, "--prune")["pruned"] == 1
    assert gone not in BucketTarget(TARGET, bucket(place).endpoint).sizes()


async def test_a_sync_that_is_interrupted_is_a_complete_older_state(place: Place) -> None:
    sync(place)
    target = BucketTarget(TARGET, bucket(place).endpoint)
    old = (place.content / "tuf/timestamp.json").read_bytes()
    for number in range(40):
        data = os.urandom(500)
        (place.content / f"objects/ab/{number:062x}.zst").parent.mkdir(exist_ok=True)
        (place.content / f"objects/ab/{number:062x}.zst").write_bytes(data)
    await place.publish(2)

    def interrupt(done: int, of: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mirror(place.content, target, MirrorTerms(progress=interrupt))
    target.sizes()
    assert target.same("tuf/timestamp.json", old)
    rest = sync(place)
    assert rest["copied"] < 40, "what came before is not sent again"
    cache, sources = place.relay()
    await everything(place, cache)
    await sources.close()


async def test_a_relay_gets_everything_but_the_timestamp_from_an_object_store(
    place: Place,
) -> None:
    big = os.urandom(9 << 20)  # goes up in two parts
    path = await place.put(big)
    sync(place)
    cache, sources = place.relay()
    await everything(place, cache)
    assert served(sources)["hub"] == (place.content / "tuf/timestamp.json").stat().st_size
    assert served(sources)[f"127.0.0.1:{place.cdn_server.port}"] > len(big)
    assert sources.choice.standings[0].failures == 0
    await sources.close()
    async with aiohttp.ClientSession(auto_decompress=False) as web:
        url = f"{place.cdn_server.url}/{path}"
        async with web.get(url) as answer:
            assert "immutable" in answer.headers["Cache-Control"]
            assert answer.headers["Content-Type"] == "application/zstd"
            tag = answer.headers["ETag"]
        async with web.get(url, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
        async with web.get(url, headers={"Range": "bytes=1000-1999"}) as answer:
            assert (answer.status, await answer.read()) == (206, place.paths[path][1000:2000])
        async with web.get(f"{place.cdn_server.url}/tuf/timestamp.json") as answer:
            assert answer.headers["Cache-Control"] == "no-cache"


async def test_a_store_with_nothing_behind_the_end_of_a_file_is_no_liar(place: Place) -> None:
    sync(place)
    path = max(place.paths, key=lambda p: len(place.paths[p]))
    _, sources = place.relay()
    store = sources.origins[0]

    async def read_on(start: int) -> None:
        async with store.open(path, (start, None), 1 << 30) as opened:
            async for _ in opened.pieces:
                pass

    with pytest.raises(TryLater, match="no bytes from"):  # S3 does not say how many there are
        await read_on(len(place.paths[path]))
    await sources.close()


async def test_a_store_that_forbids_or_encodes_files_is_helped_out(place: Place) -> None:
    sync(place)
    first, second = [p for p in place.paths if p.endswith(".zst")][:2]
    policy = json.loads(documented("json"))
    allow = policy["Statement"][0]
    resource = f"arn:aws:s3:::bucket/edgewise/{first}"
    policy["Statement"].append({**allow, "Effect": "Deny", "Resource": resource})
    private = json.dumps(policy).encode()
    as_json = {"Content-Type": "application/json"}
    assert bucket(place).put("/bucket?policy", private, as_json) == 200
    cache, sources = place.relay()
    assert await get(cache, first) == place.paths[first]
    store = sources.choice.standings[0]
    assert (store.refusals, store.failures, store.lies) == (1, 0, 0)
    encoded = {"Content-Encoding": "gzip"}
    path = f"/bucket/edgewise/{second}"
    assert bucket(place).put(path, place.paths[second], encoded) == 200
    assert await get(cache, second) == place.paths[second]
    assert store.lies == 1
    await everything(place, cache)
    await sources.close()


async def test_a_fleet_updates_from_an_object_store_that_its_hub_announces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in S3_KEYS.items():
        monkeypatch.setenv(name, value)
    store = Bucket(tmp_path / "bucket")
    try:
        async with fleet_on_laptop(tmp_path / "fleet", "--content-url", store.url) as fleet:
            sync = ("content", "sync", TARGET, "--data", str(fleet.data))
            sync = (*sync, "--endpoint", store.endpoint)
            for version in ("1.0.0", "1.1.0"):
                await fleet.publish(version, beside={"lib/data": os.urandom(300_000)})
                await fleet.edgewise(*sync)
                assert (await fleet.ended(await fleet.commit(version))).state == "Succeeded"
            said = (tmp_path / "bucket" / "said").read_text()
            got = Counter(re.findall(r'GET /bucket/edgewise/(objects\S+) HTTP/1.1" 20[06]', said))
            large = max(
                (fleet.data / "content").glob("objects/*/*.zst"), key=lambda o: o.stat().st_size
            )
            path = str(large.relative_to(fleet.data / "content"))
            assert got[path] == 1, "two nodes, one relay: once"
    finally:
        store.close()


async def test_a_sync_says_what_an_object_store_objects_to(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound, match="NoSuchBucket"):
        mirror(place.content, BucketTarget("s3://nobodys/edgewise", bucket(place).endpoint))
    for bad in ("s3://", "s3://UPPER/x", "gs://bucket/x"):
        done = CliRunner().invoke(app, ["content", "sync", bad, "--data", str(place.folder)])
        assert done.exit_code == 2, done.output
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    done = CliRunner().invoke(app, ["content", "sync", TARGET, "--data", str(place.folder)])
    assert done.exit_code == 4
    assert "edgewise[s3]" in done.output
