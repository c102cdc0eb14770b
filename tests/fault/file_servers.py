"""File servers as docs/cdn.md sets them up: nginx, Caddy, and an object store that speaks S3."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs" / "cdn.md"
SEARCHED = f"{os.environ.get('PATH', '')}:/usr/sbin"
S3_SERVER = Path(sys.prefix) / "s3" / "bin" / "moto_server"
"""In an environment of its own: it needs older packages than we do (scripts/object-store)."""
S3_KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_REGION": "us-east-1",
}


def documented(language: str) -> str:
    """The first block of that language in docs/cdn.md."""
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


class FileServer:
    """A process that serves files on a port of its own."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Of the content root."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *command: str, said: Path, **env: str) -> None:
        with said.open("wb") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **env}, stdout=output, stderr=output
            )
        for _ in range(2000):  # it is a process of its own
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, said.read_text()
            time.sleep(0.01)
        raise AssertionError(f"{command[0]} does not listen")

    def close(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


class Nginx(FileServer):
    """One nginx that serves a folder."""

    def __init__(self, folder: Path, state: Path) -> None:
        super().__init__()
        program = shutil.which("nginx", path=SEARCHED)
        assert program is not None, "nginx is missing: `make tools`"
        server = documented("nginx").replace("/srv/edgewise", str(folder))
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
        self.start(program, "-p", str(state), "-c", str(config), said=state / "said")


class Caddy(FileServer):
    """One Caddy that serves a folder; ``more`` goes into the site's block."""

    def __init__(self, folder: Path, state: Path, more: str = "") -> None:
        super().__init__()
        program = shutil.which("caddy", path=SEARCHED)
        assert program is not None, "caddy is missing: `make tools`"
        site = documented("caddy").replace("/srv/edgewise", str(folder))
        site = site.replace("cdn.example {", f"http://127.0.0.1:{self.port} {{\n{more}")
        state.mkdir()
        config = state / "Caddyfile"
        config.write_text(f"{{\n  admin off\n}}\n{site}")
        homes = {"XDG_DATA_HOME": str(state), "XDG_CONFIG_HOME": str(state), "HOME": str(state)}
        command = (program, "run", "--config", str(config), "--adapter", "caddyfile")
        self.start(*command, said=state / "said", **homes)


class Bucket(FileServer):
    """An object store with one bucket, whose policy is the documented one."""

    def __init__(self, state: Path) -> None:
        super().__init__()
        assert S3_SERVER.exists(), f"{S3_SERVER} is missing: `make object-store`"
        state.mkdir()
        command = (str(S3_SERVER), "-H", "127.0.0.1", "-p", str(self.port))
        self.start(*command, said=state / "said")
        assert self.put("/bucket", b"") == 200
        policy = documented("json").encode()
        assert self.put("/bucket?policy", policy, {"Content-Type": "application/json"}) == 200

    @property
    def endpoint(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """See ``FileServer.url``."""
        return f"{self.endpoint}/bucket/edgewise"

    def put(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> int:
        """As somebody with the right to; the status."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        signed = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/"
            "aws4_request, SignedHeaders=host, Signature=00"
        }
        line.request("PUT", path, body, {**signed, **(headers or {})})
        status = line.getresponse().status
        line.close()
        return status
