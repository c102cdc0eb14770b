"""A person at a shell: a home of their own, a hub in it, commands."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Shell:
    """One person's home; commands run in it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.data = home / ".edgewise" / "hub"
        home.mkdir(parents=True, exist_ok=True)

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EDGEWISE", "GIT_"))}
        return {**kept, "HOME": str(self.home)}

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "edgewise", *arguments],
            env=self.environment(), capture_output=True, text=True, timeout=60, check=False,
            cwd=cwd or self.home,
        )  # fmt: skip

    @contextmanager
    def up(self, *arguments: str, listen: str = "127.0.0.1:0") -> Iterator[str]:
        """A hub that serves; its URL. Stopped by SIGINT at the end, which must end well."""
        hub = subprocess.Popen(
            [sys.executable, "-m", "edgewise", "up", "--listen", listen, *arguments],
            env=self.environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert hub.stderr is not None
        try:
            said: list[str] = []
            while not said or "Ctrl-C stops the hub" not in said[-1]:
                line = hub.stderr.readline()
                assert line, "".join(said)
                said.append(line)
            yield json.loads((self.data / "ready.json").read_bytes())["url"]
            hub.send_signal(signal.SIGINT)
            assert hub.wait(20) == 0
        finally:
            hub.kill()
            hub.wait()
            hub.stderr.close()
