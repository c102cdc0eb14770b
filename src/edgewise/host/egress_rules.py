"""nftables rules that leave an app no way out of the node but the gateway.

Held are connections that an app *opens*: answers to whoever called it go out, and loopback is
open, where the gateway listens; the node's own name server is not, because names carry data
out as well. Told apart are apps by their user, or by their cgroup.

Sources: nft(8), "socket cgroupv2" (Linux 5.13), "ct direction".
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgewise.host.cgroups import mounts
from edgewise.model.errors import NeedsPerson

NAME_PORTS: Final = (53, 853)
NFT_S: Final = 10
"""Seconds that nft may take."""

_CGROUP2: Final = Path("/sys/fs/cgroup")
"""Where nft looks for cgroups, wherever they are mounted."""


@dataclass(frozen=True, slots=True)
class HeldApp:
    """An app that may only leave through the gateway: by its user, or by its cgroup."""

    name: str
    uid: int | None = None
    cgroup: str = ""
    """Path below the root of the cgroup v2 hierarchy."""


def table_of(state: Path) -> str:
    """The table's name: one for each agent of a machine."""
    return f"edgewise_egress_{hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]}"


def ruleset(table: str, apps: Iterable[HeldApp]) -> str:
    """What nft is given: the table from scratch, in one transaction."""
    lines = []
    for app in sorted(apps, key=lambda a: a.name):
        if app.uid is not None:
            match = f"meta skuid {app.uid}"
        else:
            match = f'socket cgroupv2 level {app.cgroup.count("/") + 1} "{app.cgroup}"'
        lines.append(f'    {match} jump held comment "{app.name}"')
    names = ", ".join(map(str, NAME_PORTS))
    reject = "reject with icmpx admin-prohibited"
    return "\n".join(
        [
            f"table inet {table}",  # so that the next line finds one
            f"delete table inet {table}",
            f"table inet {table} {{",
            "  chain held {",
            "    ct direction reply accept",
            f'    oifname "lo" meta l4proto {{ tcp, udp }} th dport {{ {names} }} {reject}',
            '    oifname "lo" accept',
            f"    counter {reject}",
            "  }",
            "  chain out {",
            "    type filter hook output priority filter; policy accept;",
            *lines,
            "  }",
            "}",
            "",
        ]
    )


def apply(text: str) -> None:
    """Put rules in place. Raises NeedsPerson when this machine cannot."""
    _nft(text, "put the egress rules in place")


def remove(table: str) -> None:
    """Take them away; nothing when there are none. Raises NeedsPerson."""
    _nft(f"table inet {table}\ndelete table inet {table}\n", "remove the egress rules")


def _nft(text: str, what: str) -> None:
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if nft is None:
        raise NeedsPerson(f"cannot {what}: nft is not installed", hint="install nftables")
    command = [nft, "-f", "-"]
    mounted = mounts()
    if "cgroupv2" in text and mounted and _CGROUP2 not in mounted:
        # nft looks below /sys/fs/cgroup only; in a mount namespace of its own it is there.
        script = 'mount --make-rprivate / && mount --bind "$0" "$1" && exec "$2" -f -'
        command = ["unshare", "-m", "sh", "-c", script, str(mounted[0]), str(_CGROUP2), nft]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=NFT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NeedsPerson(f"cannot {what}: {error}") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nft says nothing"])[0]
        raise NeedsPerson(
            f"cannot {what}: {said}",
            hint="it takes root, and a kernel with nf_tables, nft_socket and nf_conntrack",
        )
