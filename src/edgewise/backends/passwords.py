"""Argon2id, off the event loop and bounded.

Parameters: RFC 9106, section 4, second recommended option (t=3, m=64 MiB, p=4, 128-bit salt,
256-bit tag). Each hash takes 64 MiB while it is made, so two are made at a time and few wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from edgewise.identity.people_ports import Passwords
from edgewise.model.errors import TryLater

T = TypeVar("T")
AT_ONCE: Final = 2
"""Hashes made at the same time: 128 MiB."""
WAITING: Final = 32
"""Calls that wait for one; each is some 50 ms. More are told to come later."""


class Argon2Passwords:
    """The Passwords port."""

    def __init__(self, time_cost: int = 3, memory_kib: int = 65536, parallelism: int = 4) -> None:
        self._hasher = PasswordHasher(time_cost, memory_kib, parallelism, 32, 16)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._nobody = self._hasher.hash("nobody has this password")

    async def hashed(self, password: str) -> str:
        return await self._run(self._hasher.hash, password)

    async def matches(self, password: str, kept: str) -> bool:
        same = await self._run(self._verify, password, kept or self._nobody)
        return same and bool(kept)

    def outdated(self, kept: str) -> bool:
        return self._hasher.check_needs_rehash(kept)

    def _verify(self, password: str, kept: str) -> bool:
        try:
            return self._hasher.verify(kept, password)
        except (VerificationError, InvalidHashError):
            return False

    async def _run(self, work: Callable[..., T], *arguments: str) -> T:
        if self._waiting >= WAITING:
            raise TryLater("too many people log in at once", wait=timedelta(seconds=2))
        self._waiting += 1
        try:
            async with self._slots:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting -= 1


def _meets_its_port(passwords: Argon2Passwords) -> Passwords:
    return passwords
