"""Two hubs on one data directory would sign against each other: the second is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from edgewise.model.errors import NeedsPerson
from edgewise.roles.hub import open_hub
from edgewise.roles.hub_parts import HubSettings
from edgewise.testing.log import ListLog


def digests(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


async def test_a_second_hub_on_one_data_directory_is_refused_and_touches_nothing(
    tmp_path: Path,
) -> None:
    settings = HubSettings(tmp_path / "hub", "acme", "127.0.0.1:0")
    first = await open_hub(settings, log=ListLog())
    try:
        before = digests(settings.data)
        with pytest.raises(NeedsPerson, match="in use by another Edgewise process") as refused:
            await open_hub(settings, log=ListLog())
        assert "--data" in refused.value.hint
        assert digests(settings.data) == before
    finally:
        await first.close()
    again = await open_hub(settings, log=ListLog())
    await again.close()


async def test_a_hub_that_cannot_listen_lets_go_of_its_directory(tmp_path: Path) -> None:
    first = await open_hub(HubSettings(tmp_path / "a", "acme", "127.0.0.1:0"), log=ListLog())
    taken = first.url.removeprefix("https://")
    try:
        with pytest.raises(Exception, match=taken.rpartition(":")[2]):
            await open_hub(HubSettings(tmp_path / "b", "acme", taken), log=ListLog())
    finally:
        await first.close()
    second = await open_hub(HubSettings(tmp_path / "b", "acme", taken), log=ListLog())
    await second.close()
