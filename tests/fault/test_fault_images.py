"""Container images: hostile ones at import, and who may pull what from a relay."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from image_region import import_image, publish, shown
from relay_region import Node, RelayProcess, SecureHub, eventually, join_node, region

from edgewise.backends.files import image_import
from edgewise.delivery import images
from edgewise.model.errors import BadUsage
from edgewise.protocol.codec import decode
from edgewise.protocol.content import Tree
from edgewise.testing.images import Layout, member, program, rich_layer, tar


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def refused(layout: Layout, tmp_path: Path, match: str) -> None:
    with pytest.raises(BadUsage, match=match):
        import_image(tmp_path / "built", f"oci:{layout.directory}", "till", "1")


# At import


def test_names_in_a_layer_are_hints_and_never_paths(layout: Layout, tmp_path: Path) -> None:
    slip = {"../../etc/passwd": program(1), "/abs": program(2), "a": program(3), "a/b": program(4)}
    slip |= {"\udcff\n": program(5), "x/" * 90: program(6), "b/c": program(7), "b": program(8)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", errors="surrogateescape") as out:
        for name, data in slip.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            out.addfile(about, io.BytesIO(data))
    layout.add(layout.image(archive.getvalue()))
    made = import_image(tmp_path / "built", f"oci:{layout.directory}", "till", "1")
    manifest = tmp_path / "built" / "trees" / made.trees["linux/amd64"].sha256
    tree = decode(manifest.read_bytes(), Tree, what="tree", at_most=1 << 20)
    files = {e.path for e in tree.entries if e.kind == "file"}
    assert "layers/0/files/etc/passwd" in files
    assert len(files) == len(slip) + 3
    assert all(path.isprintable() for path in files)


def test_a_gzip_bomb_is_refused(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_import, "FREE", 1 << 20)
    layout.add(layout.image(tar({"zeros": member("zeros", tarfile.REGTYPE, size=64 << 20)})))
    refused(layout, tmp_path, "taken for a bomb")


def test_a_zstd_bomb_is_refused(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_import, "FREE", 1 << 20)
    zeros = tar({"zeros": member("zeros", tarfile.REGTYPE, size=64 << 20)})
    layout.add(layout.image(zeros, packed="zstd"))
    refused(layout, tmp_path, "taken for a bomb")


def test_an_image_beyond_its_bound_is_refused(layout: Layout, tmp_path: Path) -> None:
    layout.add(layout.image(tar({"a": program(1, 3 << 20)}), tar({"b": program(2, 3 << 20)})))
    found = image_import.Source.parse(f"oci:{layout.directory}").images()
    folder = image_import.BuildFolder(tmp_path / "built")
    with pytest.raises(BadUsage, match="unpacks to more"):
        image_import.import_images(folder, found, frozenset(), at_most=5 << 20)


def test_a_layer_that_is_not_what_its_digest_says_is_refused(
    layout: Layout, tmp_path: Path
) -> None:
    layer = tar({"a": program(1)})
    layout.add(layout.image(layer))
    other = gzip.compress(layer, 1, mtime=0)  # unpacks to the same
    packed = gzip.compress(layer, 6, mtime=0)
    place = layout.directory / "blobs" / "sha256" / hashlib.sha256(packed).hexdigest()
    place.write_bytes(other)
    refused(layout, tmp_path, "is not what its digest says")


def test_a_layer_that_unpacks_to_something_else_is_refused(layout: Layout, tmp_path: Path) -> None:
    layout.add(layout.image(tar({"a": b"1"}), rootfs={"diff_ids": [f"sha256:{'0' * 64}"]}))
    refused(layout, tmp_path, "the image's configuration says")


def test_a_layer_that_breaks_off_is_refused(layout: Layout, tmp_path: Path) -> None:
    descriptor = layout.image(tar({"a": program(1, 90_000)}))
    manifest = _document(layout, descriptor)
    blob = _place(layout, manifest["layers"][0])
    short = blob.read_bytes()[:-40]
    manifest["layers"][0] |= layout.blob(short, manifest["layers"][0]["mediaType"])
    layout.add(layout.blob(json.dumps(manifest).encode(), manifest["mediaType"]))
    refused(layout, tmp_path, "not sound")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"layers": "x"}, "malformed"),
        ({"config": {"mediaType": "text/plain", "digest": "sha256:" + "0" * 64, "size": 1}}, "no"),
        ({"config": {"mediaType": "", "digest": "sha256:../../../etc/passwd", "size": 1}}, "kind"),
    ],
)
def test_a_manifest_with_tricks_is_refused(
    layout: Layout, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    manifest = _document(layout, layout.image(tar({"a": b"1"}))) | change
    layout.add(layout.blob(json.dumps(manifest).encode(), images.MANIFEST_TYPE))
    refused(layout, tmp_path, match)


def test_a_foreign_layer_a_deep_index_and_a_wrong_digest_are_refused(
    layout: Layout, tmp_path: Path
) -> None:
    manifest = _document(layout, layout.image(tar({"a": b"1"})))
    manifest["layers"][0]["urls"] = ["http://169.254.169.254/"]
    layout.add(layout.blob(json.dumps(manifest).encode(), images.MANIFEST_TYPE))
    refused(layout, tmp_path, "foreign")
    layout.manifests.clear()
    deep = layout.image(tar({"a": b"1"}))
    for _ in range(5):
        deep = layout.index(deep)
    layout.add(deep)
    refused(layout, tmp_path, "deep")
    layout.manifests.clear()
    one = layout.image(tar({"a": b"1"}))
    _place(layout, one).write_bytes(b"{}")
    layout.add(one)
    refused(layout, tmp_path, "not what its digest says")


def test_a_link_out_of_a_layout_or_an_archive_is_not_followed(
    layout: Layout, tmp_path: Path
) -> None:
    layout.add(layout.image(tar({"a": b"1"})))
    secret = tmp_path / "secret"
    secret.write_bytes((layout.directory / "index.json").read_bytes())
    archived = layout.archive(tmp_path / "image.tar")
    (layout.directory / "index.json").unlink()
    (layout.directory / "index.json").symlink_to(secret)
    refused(layout, tmp_path, "cannot be read")
    linked = tmp_path / "linked.tar"
    with tarfile.open(linked, "w") as out:
        out.addfile(member("index.json", tarfile.SYMTYPE, linkname=str(secret)))
        out.addfile(member("a", tarfile.SYMTYPE, linkname="b"))
        out.addfile(member("b", tarfile.SYMTYPE, linkname="a"))
        out.addfile(member("manifest.json", tarfile.SYMTYPE, linkname="a"))
    for source in (f"oci-archive:{linked}", f"docker-archive:{linked}"):
        with pytest.raises(BadUsage, match="has no file"):
            import_image(tmp_path / "built", source, "till", "1")
    import_image(tmp_path / "built", f"oci-archive:{archived}", "till", "1")


def _document(layout: Layout, descriptor: dict[str, Any]) -> dict[str, Any]:
    return json.loads(_place(layout, descriptor).read_bytes())


def _place(layout: Layout, descriptor: dict[str, Any]) -> Path:
    return layout.directory / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")


# From a relay

Place = tuple[SecureHub, RelayProcess, Node]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with region(tmp_path) as (hub, relay):
        token = await hub.token(role="node", region="eu", via="frankfurt")
        yield hub, relay, await join_node(tmp_path, "till-1", token)


class Puller:
    """A registry client: plain HTTPS with certificates in files."""

    def __init__(self, relay: RelayProcess, node: Node, *, known: bool = True) -> None:
        files = node.identity.credentials
        tls = shown(files if known else None, files.roots)
        self.session = aiohttp.ClientSession(relay.url, connector=aiohttp.TCPConnector(ssl=tls))

    async def __aenter__(self) -> Puller:
        return self

    async def until_known(self, *names: str) -> None:
        """A relay looks for new artifacts every five seconds, or when the hub says so."""
        for name in names:

            async def known(name: str = name) -> bool:
                _, body, _ = await self.get(f"/v2/{name}/manifests/nothing")
                return b"MANIFEST_UNKNOWN" in body

            await eventually(known)

    async def __aexit__(self, *error: object) -> None:
        await self.session.close()

    async def get(
        self, path: str, method: str = "GET", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        async with self.session.request(method, path, headers=headers) as answer:
            return answer.status, await answer.read(), dict(answer.headers)


async def test_every_blob_of_an_image_comes_from_the_relay_as_its_digest_says(
    place: Place, layout: Layout, tmp_path: Path
) -> None:
    hub, relay, node = place
    layers = rich_layer(), tar({"top": program(1), "more": program(9, 700)})
    two = [layout.image(*layers, architecture=one) for one in ("amd64", "arm64")]
    layout.add(layout.index(*two))
    built = tmp_path / "built"
    await publish(hub, built, import_image(built, f"oci:{layout.directory}", "till", "1.0+a"))
    async with Puller(relay, node) as puller:
        await puller.until_known("till")
        assert (await puller.get("/v2/"))[0] == 200
        _, tags, _ = await puller.get("/v2/till/tags/list")
        assert json.loads(tags) == {"name": "till", "tags": ["1.0_a"]}
        status, index, headers = await puller.get("/v2/till/manifests/latest")
        assert (status, headers["Content-Type"]) == (200, images.INDEX_TYPE)
        assert headers["Docker-Content-Digest"] == f"sha256:{hashlib.sha256(index).hexdigest()}"
        digest = headers["Docker-Content-Digest"]
        status, nothing, headers = await puller.get("/v2/till/manifests/latest", "HEAD")
        assert (status, nothing, headers["Docker-Content-Digest"]) == (200, b"", digest)
        assert headers["Content-Length"] == str(len(index))
        assert (await puller.get("/v2/till/manifests/latest"))[1] == index, "same connection"
        assert (await puller.get(f"/v2/till/manifests/{digest}"))[1] == index
        seen: set[bytes] = set()
        for one in json.loads(index)["manifests"]:
            _, data, _ = await puller.get(f"/v2/till/manifests/{one['digest']}")
            manifest = json.loads(data)
            for blob in (manifest["config"], *manifest["layers"]):
                path = f"/v2/till/blobs/{blob['digest']}"
                status, content, headers = await puller.get(path)
                assert (status, len(content)) == (200, blob["size"])
                assert f"sha256:{hashlib.sha256(content).hexdigest()}" == blob["digest"]
                status, nothing, headers = await puller.get(path, "HEAD")
                assert (status, nothing) == (200, b"")
                assert headers["Content-Length"] == str(blob["size"])
                seen.add(content)
        assert set(layers) <= seen
        blob = f"/v2/till/blobs/sha256:{hashlib.sha256(layers[0]).hexdigest()}"
        status, piece, headers = await puller.get(blob, Range="bytes=2000-700000")
        assert (status, piece) == (206, layers[0][2000:700001])
        assert headers["Content-Range"] == f"bytes 2000-700000/{len(layers[0])}"
        status, piece, _ = await puller.get(blob, Range="bytes=2500000-")
        assert (status, piece) == (206, layers[0][2500000:])
        status, _, headers = await puller.get(blob, Range="bytes=99999999-")
        assert (status, headers["Content-Range"]) == (416, f"bytes */{len(layers[0])}")


async def test_nobody_gets_a_blob_that_is_not_of_the_image_it_asks(
    place: Place, layout: Layout, tmp_path: Path
) -> None:
    hub, relay, node = place
    layout.add(layout.image(tar({"a": program(1)})), "a")
    layout.add(layout.image(tar({"a": program(2)})), "b")
    built = tmp_path / "built"
    for name in ("a", "b"):
        await publish(hub, built, import_image(built, f"oci:{layout.directory}:{name}", name, "1"))
    secret = b"a sealed secret of another node"
    sha256 = hashlib.sha256(secret).hexdigest()
    await hub.publisher.put_objects({sha256: secret})
    async with Puller(relay, node) as puller:
        await puller.until_known("a", "b")
        _, data, _ = await puller.get("/v2/b/manifests/1")
        of_b = json.loads(data)["layers"][0]["digest"]
        assert (await puller.get(f"/v2/b/blobs/{of_b}"))[0] == 200
        for path, code in [
            (f"/v2/a/blobs/{of_b}", "BLOB_UNKNOWN"),
            (f"/v2/a/blobs/sha256:{sha256}", "BLOB_UNKNOWN"),
            (f"/v2/a/manifests/sha256:{sha256}", "MANIFEST_UNKNOWN"),
            ("/v2/a/manifests/2", "MANIFEST_UNKNOWN"),
            ("/v2/nothing/manifests/1", "NAME_UNKNOWN"),
            ("/v2/a/blobs/sha256:../../x", "DIGEST_INVALID"),
            ("/v2/../a/manifests/1", ""),
            ("/v2/_catalog", "NAME_INVALID"),
        ]:
            status, body, _ = await puller.get(path)
            assert 400 <= status < 500, path
            assert not code or json.loads(body)["errors"][0]["code"] == code, path
        status, body, _ = await puller.get("/v2/a/blobs/uploads/", "POST")
        assert (status, json.loads(body)["errors"][0]["code"]) == (405, "UNSUPPORTED")
    async with Puller(relay, node, known=False) as stranger:
        status, body, _ = await stranger.get(f"/v2/b/blobs/{of_b}")
        assert (status, json.loads(body)["errors"][0]["code"]) == (401, "UNAUTHORIZED")


async def test_an_artifact_of_another_shape_is_no_image(place: Place, tmp_path: Path) -> None:
    hub, relay, node = place
    built = image_import.BuildFolder(tmp_path / "built")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text("{}")
    ref = built.add_tree(tmp_path / "app")
    for shape in ({}, {"shape": "oci"}):
        name = "app" if not shape else "liar"
        artifact = image_import_artifact(name, ref, **shape)
        built.add(artifact)
        await publish(hub, built.path, artifact)
    async with Puller(relay, node) as puller:
        await puller.until_known("liar")
        assert (await puller.get("/v2/app/manifests/1"))[0] == 404
        status, body, _ = await puller.get("/v2/liar/manifests/1")
        assert (status, json.loads(body)["errors"][0]["code"]) == (502, "MANIFEST_INVALID")


def image_import_artifact(name: str, ref: Any, **shape: Any) -> Any:
    from edgewise.delivery.builder import make_artifact

    return make_artifact(name, "1", {"linux/amd64": ref}, **shape)


async def test_a_relay_whose_disk_lies_cuts_the_blob_off(
    place: Place, layout: Layout, tmp_path: Path
) -> None:
    hub, relay, node = place
    layer = tar({"a": program(1, 4 << 20), "b": program(2, 900)})
    layout.add(layout.image(layer))
    built = tmp_path / "built"
    await publish(hub, built, import_image(built, f"oci:{layout.directory}", "till", "1"))
    blob = f"/v2/till/blobs/sha256:{hashlib.sha256(layer).hexdigest()}"
    async with Puller(relay, node) as puller:
        await puller.until_known("till")
        assert (await puller.get(blob))[1] == layer
    import zstandard

    content = hashlib.sha256(program(2, 900)).hexdigest()
    kept = tmp_path / "relay" / "content" / "objects" / content[:2] / f"{content[2:]}.zst"
    kept.write_bytes(zstandard.compress(program(3, 900)))
    async with Puller(relay, node) as puller:
        with pytest.raises(aiohttp.ClientError):
            await puller.get(blob)


async def test_a_relay_without_its_hub_serves_what_it_has(
    place: Place, layout: Layout, tmp_path: Path
) -> None:
    hub, relay, node = place
    layer = tar({"a": program(1)})
    layout.add(layout.image(layer))
    built = tmp_path / "built"
    await publish(hub, built, import_image(built, f"oci:{layout.directory}", "till", "1"))
    async with Puller(relay, node) as puller:
        await puller.until_known("till")
        blob = f"/v2/till/blobs/sha256:{hashlib.sha256(layer).hexdigest()}"
        assert (await puller.get("/v2/till/manifests/1"))[0] == 200
        assert (await puller.get(blob))[1] == layer
        await hub.away()
        assert (await puller.get("/v2/till/manifests/1"))[0] == 200
        assert (await puller.get(blob))[1] == layer


async def test_many_pulls_at_once_fetch_each_object_once(
    place: Place, layout: Layout, tmp_path: Path
) -> None:
    hub, relay, node = place
    layer = tar({f"f{n}": program(n, 600) for n in range(150)})
    layout.add(layout.image(layer))
    built = tmp_path / "built"
    await publish(hub, built, import_image(built, f"oci:{layout.directory}", "till", "1"))
    blob = f"/v2/till/blobs/sha256:{hashlib.sha256(layer).hexdigest()}"
    async with Puller(relay, node) as puller:
        await puller.until_known("till")
        found = await asyncio.gather(*(puller.get(blob) for _ in range(8)))
    assert {content for _, content, _ in found} == {layer}
