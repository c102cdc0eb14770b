"""The worker as the resident agent sees it: one process for the tasks of one update."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from edgewise.host import processes
from edgewise.model.errors import TryLater
from edgewise.protocol.attest import AttestReply
from edgewise.protocol.channel import NodeRecord, Signed
from edgewise.protocol.installed import Installed
from edgewise.protocol.report import Receipt
from edgewise.protocol.sync import SyncReply
from edgewise.protocol.tasks import (
    AttestTask,
    Done,
    Failed,
    FetchTask,
    JoinTask,
    OpenTask,
    OwnKey,
    OwnKeyTask,
    Progress,
    RenewTask,
    RetrustTask,
    Said,
    SignTask,
    SvidAsk,
    SvidIssued,
    SvidsTask,
    Task,
    VerifyTask,
    error_of,
)
from edgewise.rollout.node_ports import Crypto, News

_LINE: Final = 64 << 20
"""Bytes of one answer: an installed release with its configs' texts."""


class WorkerProcess:
    """Starts the worker when there is a task; it ends soon after the last (protocol.tasks).

    Starting it costs a quarter of a second of processor time, so the tasks of an update
    share one. Cancelling a call kills the worker; what it stored stays.
    """

    def __init__(self, state: Path) -> None:
        self._command = (sys.executable, "-m", "edgewise.roles.worker", str(state))
        self._idle: processes.Conversation | None = None

    async def verify(self, reply: SyncReply) -> News:
        news: News = await self._do(VerifyTask(reply), News)
        return news

    async def fetch(
        self, release: str, record: NodeRecord, progress: Callable[[float], None]
    ) -> Installed:
        task = FetchTask(release, record)
        installed: Installed = await self._do(task, Installed, progress)
        return installed

    async def sign(self, receipts: tuple[Receipt, ...]) -> tuple[Signed, ...]:
        signed: tuple[Signed, ...] = await self._do(SignTask(receipts), tuple[Signed, ...])
        return signed

    async def open_sealed(self, sealed: str) -> dict[str, str]:
        """File names and texts of a sealed object."""
        texts: dict[str, str] = await self._do(OpenTask(sealed), dict[str, str])
        return texts

    async def renew(self, *, rejoin: bool) -> None:
        """A new certificate on disk. Raises what the far end says."""
        await self._do(RenewTask(rejoin), None)

    async def svids(self, wanted: tuple[SvidAsk, ...]) -> tuple[SvidIssued, ...]:
        """Keys, and X509-SVIDs for them. Raises what the far end says."""
        issued: tuple[SvidIssued, ...] = await self._do(SvidsTask(wanted), tuple[SvidIssued, ...])
        return issued

    async def own_key(self) -> OwnKey:
        """See ``roles.node_certificate.KeyKeeper``."""
        own: OwnKey = await self._do(OwnKeyTask(), OwnKey)
        return own

    async def retrust(self) -> bool:
        """See ``roles.node_certificate.Renewer``."""
        return bool(await self._do(RetrustTask(), bool))

    async def join(self, task: JoinTask) -> None:
        """Join with a token, a TPM or a factory certificate."""
        await self._do(task, None)

    async def attest(self) -> AttestReply:
        """Say anew what was booted. Raises what the hub says."""
        reply: AttestReply = await self._do(AttestTask(), AttestReply)
        return reply

    async def _do(
        self, task: Task, answer: Any, progress: Callable[[float], None] = lambda share: None
    ) -> Any:
        pending = bytearray()
        last: list[Done | Failed] = []
        decoder = msgspec.json.Decoder(Said)

        def take(data: bytes) -> bool:
            pending.extend(data)
            while (end := pending.find(b"\n")) >= 0:
                said: Said = decoder.decode(bytes(pending[:end]))
                del pending[: end + 1]
                if isinstance(said, Progress):
                    progress(said.share)
                else:
                    last[:] = [said]
            if len(pending) > _LINE:
                pending.clear()
            return bool(last)

        question = msgspec.json.encode(task) + b"\n"
        try:
            await self._ask(question, take)
        except EOFError:
            last[:] = []
        except OSError as error:
            raise TryLater(f"the worker cannot be started: {error}") from error
        match last:
            case [Done(data)]:
                return msgspec.json.decode(data, type=answer)
            case [Failed() as failed]:
                raise error_of(failed)
            case _:
                raise TryLater(
                    f"the worker ended without an answer to {type(task).__name__}",
                    hint="see the agent's log; is the node out of memory?",
                )

    async def _ask(self, question: bytes, take: Callable[[bytes], bool]) -> None:
        """By the worker that waits, if one does; else, or if it was just leaving, by a new one."""
        waiting, self._idle = self._idle, None
        if waiting is not None:
            try:
                await waiting.ask(question, take)
            except EOFError:
                waiting.end()
            else:
                self._keep(waiting)
                return
        fresh = processes.Conversation(self._command)
        await fresh.ask(question, take)
        self._keep(fresh)

    def _keep(self, worker: processes.Conversation) -> None:
        if self._idle is not None:
            self._idle.end()  # two tasks ran at once: one worker is enough to wait
        self._idle = worker

        def over() -> None:
            if self._idle is worker:
                self._idle = None

        worker.rest(over)

    def close(self) -> None:
        """End the worker that waits."""
        if self._idle is not None:
            self._idle.end()
            self._idle = None


def _meets_its_port(worker: WorkerProcess) -> Crypto:
    return worker
