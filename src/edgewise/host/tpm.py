"""The TPM of this machine, by its own wire protocol: no tss library, no daemon.

Commands are those of the TCG "Trusted Platform Module Library", part 3, revision 1.59.
``/dev/tpmrm0`` is the kernel's resource manager: what a process leaves behind in it goes with
its file descriptor. ``unix:PATH`` and ``tcp:HOST:PORT`` are TPM simulators (swtpm): they have
no resource manager, so everything here flushes what it loaded.

Authorisations are empty passwords and one policy session. What is sealed travels encrypted
(``identity.tpm_session``), the rest does not: whoever can tap the bus of the board sees what is
activated and what is signed, and gets no key (docs/attestation.md).
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from edgewise.identity.ports import NewSession, ParameterSession
from edgewise.identity.tpm_structures import (
    ENCRYPTED_IN,
    ENCRYPTED_OUT,
    NULL,
    PCRS,
    SEAL_LARGEST,
    SHA256,
    STORAGE,
    Public,
    Reader,
    Sealed,
    parse_public,
    parse_sealed,
    sealed_template,
    selection_wire,
    sized,
)
from edgewise.model.errors import BadUsage, EdgewiseError, NeedsPerson, TryLater, Untrusted

DEVICE: Final = "/dev/tpmrm0"
LARGEST: Final = 4096
"""Bytes of a command or an answer (TPM2_PT_MAX_RESPONSE_SIZE of every TPM that is known)."""
PATIENCE_S: Final = 120.0
"""The slowest command, making an RSA key, takes some chips a minute."""
RETRIES: Final = 10
"""Of a command that the TPM was too busy for."""
NV_PIECE: Final = 512
"""Bytes of one NV read; some TPMs take no more than 768."""
NV_LARGEST: Final = 16 << 10
"""Bytes of one NV index: a certificate."""
MOST_INDEXES: Final = 256

OWNER, ENDORSEMENT, NO_HIERARCHY, PASSWORD = 0x40000001, 0x4000000B, 0x40000007, 0x40000009
_PLAIN, _AUTHORISED = 0x8001, 0x8002
_HASHCHECK: Final = 0x8024
_NV_FIRST: Final = 0x01000000

_BUSY: Final = {0x922, 0x908, 0x90A}  # RETRY, YIELDED, TESTING
_LOCKED: Final = 0x921
_BAD_AUTH: Final = {0x08E, 0x0A2}  # AUTH_FAIL, BAD_AUTH; bits 0x080 up say which parameter


class Wire(Protocol):
    """Carries one command to the chip and brings its answer."""

    def exchange(self, command: bytes) -> bytes: ...
    def close(self) -> None: ...


class TpmRefused(NeedsPerson):
    """The TPM answered with an error. ``code``: its response code (part 2, 6.6)."""

    def __init__(self, what: str, code: int, *, hint: str = "") -> None:
        super().__init__(what, hint=hint)
        self.code = code


class _Device:
    """A character device: one write is a command, one read its answer."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def exchange(self, command: bytes) -> bytes:
        os.write(self._descriptor, command)
        if not select.select([self._descriptor], [], [], PATIENCE_S)[0]:
            raise TryLater(f"the TPM did not answer in {PATIENCE_S:.0f} s")
        return os.read(self._descriptor, LARGEST + 1)

    def close(self) -> None:
        os.close(self._descriptor)


class SocketWire:
    """A simulator: a stream of commands, each answer as long as its header says."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self._connection = connection

    def exchange(self, command: bytes) -> bytes:
        self._connection.sendall(command)
        head = self._read(10)
        size = int.from_bytes(head[2:6], "big")
        if not 10 <= size <= LARGEST:
            raise Untrusted(f"the TPM announces an answer of {size} bytes")
        return head + self._read(size - 10)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._connection.recv(count - len(data))
            if not piece:
                raise TryLater("the TPM ended the connection in the middle of an answer")
            data += piece
        return data

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A key inside the TPM, for as long as it is not flushed."""

    handle: int
    public: Public


class Tpm:
    """``identity.ports.Tpm`` over a wire. Every method raises TpmRefused, TryLater, Untrusted."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def close(self) -> None:
        """Let go of the device."""
        self._wire.close()

    # Keys

    @contextmanager
    def primary(self, hierarchy: int, template: Public) -> Iterator[Loaded]:
        """A primary key, made of the hierarchy's seed and the template (TPM2_CreatePrimary)."""
        parameters = sized(sized(b"") + sized(b"")) + sized(template.wire) + sized(b"")
        handles, answer = self._run(
            0x131, (hierarchy,), parameters + bytes(4), sessions=(PASSWORD,), returns=1
        )
        [handle] = handles
        try:
            yield Loaded(handle, parse_public(answer.sized()))
        finally:
            self._flush(handle)

    @contextmanager
    def endorsement_key(self, template: Public) -> Iterator[Loaded]:
        """The endorsement key of a template."""
        with self.primary(ENDORSEMENT, template) as loaded:
            yield loaded

    @contextmanager
    def attestation_key(self, template: Public) -> Iterator[Loaded]:
        """A signing key of the endorsement hierarchy."""
        with self.primary(ENDORSEMENT, template) as loaded:
            yield loaded

    @contextmanager
    def own_key(self, template: Public) -> Iterator[Loaded]:
        """A signing key of the owner hierarchy."""
        with self.primary(OWNER, template) as loaded:
            yield loaded

    def sign(self, key: Loaded, digest: bytes) -> bytes:
        """TPMT_SIGNATURE over a digest that was made outside (TPM2_Sign)."""
        ticket = struct.pack(">HI", _HASHCHECK, NO_HIERARCHY) + sized(b"")
        parameters = sized(digest) + struct.pack(">H", NULL) + ticket
        _, answer = self._run(0x15D, (key.handle,), parameters, sessions=(PASSWORD,))
        return answer.rest()

    def quote(self, key: Loaded, extra: bytes, pcrs: Iterable[int]) -> tuple[bytes, bytes]:
        """TPMS_ATTEST over PCRs of the SHA-256 bank, and its TPMT_SIGNATURE (TPM2_Quote)."""
        parameters = sized(extra) + struct.pack(">H", NULL) + selection_wire(pcrs)
        _, answer = self._run(0x158, (key.handle,), parameters, sessions=(PASSWORD,))
        return answer.sized(), answer.rest()

    def certify(self, subject: Loaded, key: Loaded, extra: bytes) -> tuple[bytes, bytes]:
        """TPMS_ATTEST that ``subject`` is in this TPM, and its signature (TPM2_Certify)."""
        parameters = sized(extra) + struct.pack(">H", NULL)
        _, answer = self._run(
            0x148, (subject.handle, key.handle), parameters, sessions=(PASSWORD, PASSWORD)
        )
        return answer.sized(), answer.rest()

    def activate(self, key: Loaded, ek: Loaded, blob: bytes, secret: bytes) -> bytes:
        """What a credential for ``key``'s name holds (TPM2_ActivateCredential)."""
        with self._endorsement_session() as session:
            _, answer = self._run(
                0x147,
                (key.handle, ek.handle),
                sized(blob) + sized(secret),
                sessions=(PASSWORD, session),
            )
            return answer.sized()

    @contextmanager
    def _endorsement_session(self) -> Iterator[int]:
        """A policy session that fits ``EK_POLICY``: PolicySecret of the endorsement hierarchy."""
        start = sized(os.urandom(16)) + sized(b"") + struct.pack(">BHH", 1, NULL, SHA256)
        handles, _ = self._run(0x176, (NO_HIERARCHY, NO_HIERARCHY), start, returns=1)
        [session] = handles
        try:
            policy = sized(b"") * 3 + bytes(4)
            self._run(0x151, (ENDORSEMENT, session), policy, sessions=(PASSWORD,))
            yield session
        finally:
            # A session ends with the command that used it, unless that failed.
            self._flush(session)

    def _flush(self, handle: int) -> None:
        with suppress(TpmRefused):
            self._run(0x165, (), struct.pack(">I", handle))

    # Sealing

    def seal(self, secret: bytes, session: NewSession) -> Sealed:
        """Bytes that only this TPM opens, until it is cleared (TPM2_Create)."""
        if not 0 < len(secret) <= SEAL_LARGEST:
            raise BadUsage(f"a TPM seals 1 to {SEAL_LARGEST} bytes, not {len(secret)}")
        sensitive = sized(sized(b"") + sized(secret))
        parameters = sensitive + sized(sealed_template()) + sized(b"") + bytes(4)
        with self.primary(OWNER, STORAGE) as parent:
            answer = self._encrypted(
                0x153,
                (parent.handle, parent.public.name),
                parameters,
                ENCRYPTED_IN,
                (parent, session),
            )
            private, public = answer.sized(), answer.sized()
            parse_sealed(public)
            return Sealed(parent.public.wire, public, private)

    def unseal(self, sealed: Sealed, session: NewSession) -> bytes:
        """What ``seal`` was given (TPM2_Load, TPM2_Unseal)."""
        name = parse_sealed(sealed.public)
        with self.primary(OWNER, STORAGE) as parent:
            if parent.public.wire != sealed.parent:
                raise NeedsPerson(
                    "the keys of this node are sealed to another TPM, or it was cleared since",
                    hint="`edgewise node forget NAME` at the hub, then `edgewise agent join - "
                    "--tpm --anew` here; apps go on running meanwhile",
                )
            parameters = sized(sealed.private) + sized(sealed.public)
            handles, _ = self._run(
                0x157, (parent.handle,), parameters, sessions=(PASSWORD,), returns=1
            )
            [handle] = handles
            try:
                answer = self._encrypted(
                    0x15E, (handle, name), b"", ENCRYPTED_OUT, (parent, session)
                )
                secret = answer.sized()
                answer.done()
                return secret
            finally:
                self._flush(handle)

    def _encrypted(
        self,
        code: int,
        subject: tuple[int, bytes],
        parameters: bytes,
        what: int,
        by: tuple[Loaded, NewSession],
    ) -> Reader:
        """One command on one object (handle and name), in a session of its own."""
        key, new = by
        session = new(key.public)
        handles, answer = self._run(0x176, (key.handle, NO_HIERARCHY), session.start, returns=1)
        [number] = handles
        try:
            session.begun(answer.sized())
            return self._said(code, subject, parameters, what, (number, session))
        finally:
            # A session ends with the command that used it, unless that failed.
            self._flush(number)

    def _said(
        self,
        code: int,
        subject: tuple[int, bytes],
        parameters: bytes,
        what: int,
        session: tuple[int, ParameterSession],
    ) -> Reader:
        number, crypt = session
        area, parameters = crypt.outgoing(code, subject[1], parameters, what)
        area = struct.pack(">I", number) + area
        body = struct.pack(">II", subject[0], len(area)) + area + parameters
        command = struct.pack(">HII", _AUTHORISED, 10 + len(body), code) + body
        if len(command) > LARGEST:
            raise BadUsage(f"a TPM command of {len(command)} bytes is too long")
        answer = self._tried(code, command)
        _, reader = read_answer(answer, _AUTHORISED, 0)
        shown = reader.rest()
        return Reader(crypt.incoming(code, shown, answer[14 + len(shown) :], what), "an answer")

    # Memory

    def read_pcrs(self, pcrs: Iterable[int]) -> dict[int, bytes]:
        """PCRs of the SHA-256 bank (TPM2_PCR_Read); those that the bank lacks are left out."""
        found = {}
        for pcr in sorted(set(pcrs)):
            if not 0 <= pcr < PCRS:
                raise BadUsage(f"PCR {pcr} is not between 0 and {PCRS - 1}")
            _, answer = self._run(0x17E, (), selection_wire([pcr]))
            answer.number(4)  # a counter that other processes move
            count = answer.number(4)
            for _ in range(min(count, 16)):
                answer.number(2)
                answer.take(answer.number(1))
            if answer.number(4) == 1:
                found[pcr] = answer.sized()
        return found

    def nv_indexes(self, among: range) -> tuple[int, ...]:
        """Which NV indexes of a range are defined (TPM2_GetCapability), ascending."""
        parameters = struct.pack(">III", 1, among.start, MOST_INDEXES)
        _, answer = self._run(0x17A, (), parameters)
        answer.number(1)
        answer.number(4)
        count = answer.number(4)
        if count > MOST_INDEXES:
            raise Untrusted(f"the TPM lists {count} NV indexes, more than were asked for")
        return tuple(i for i in (answer.number(4) for _ in range(count)) if i in among)

    def read_nv(self, index: int) -> bytes:
        """The content of an NV index that anybody may read (TPM2_NV_Read)."""
        _, answer = self._run(0x169, (index,), b"")
        size = int.from_bytes(answer.sized()[-2:], "big")
        if size > NV_LARGEST:
            raise Untrusted(f"NV index {index:#x} has {size} bytes, at most {NV_LARGEST} are read")
        data = b""
        while len(data) < size:
            wanted = struct.pack(">HH", min(NV_PIECE, size - len(data)), len(data))
            _, answer = self._run(0x14E, (index, index), wanted, sessions=(PASSWORD,))
            piece = answer.sized()
            if not piece:
                raise Untrusted(f"NV index {index:#x} ends after {len(data)} of {size} bytes")
            data += piece
        return data

    # One command

    def _run(
        self,
        code: int,
        handles: Sequence[int],
        parameters: bytes,
        *,
        sessions: Sequence[int] = (),
        returns: int = 0,
    ) -> tuple[tuple[int, ...], Reader]:
        """One command: the handles that it returns, and its parameters."""
        body = b"".join(struct.pack(">I", handle) for handle in handles)
        if sessions:
            # TPMS_AUTH_COMMAND: handle, no nonce, continueSession for passwords, no password.
            each = (struct.pack(">IHBH", s, 0, int(s == PASSWORD), 0) for s in sessions)
            area = b"".join(each)
            body += struct.pack(">I", len(area)) + area
        body += parameters
        tag = _AUTHORISED if sessions else _PLAIN
        command = struct.pack(">HII", tag, 10 + len(body), code) + body
        if len(command) > LARGEST:
            raise BadUsage(f"a TPM command of {len(command)} bytes is too long")
        return read_answer(self._tried(code, command), tag, returns)

    def _tried(self, code: int, command: bytes) -> bytes:
        for _ in range(RETRIES):
            try:
                answer = self._wire.exchange(command)
            except TimeoutError as error:
                raise TryLater(f"the TPM did not answer in {PATIENCE_S:.0f} s") from error
            except OSError as error:
                raise TryLater(f"the TPM cannot be reached: {error}") from error
            result = _result(answer)
            if result in _BUSY:
                continue
            if result:
                raise _refusal(code, result)
            return answer
        raise TryLater(f"the TPM is too busy for command {code:#x}")


def _result(answer: bytes) -> int:
    if len(answer) < 10:
        raise Untrusted(f"the TPM's answer is cut short: {len(answer)} bytes")
    size = int.from_bytes(answer[2:6], "big")
    if size != len(answer) or size > LARGEST:
        raise Untrusted(f"the TPM's answer has {len(answer)} bytes and says {size}")
    return int.from_bytes(answer[6:10], "big")


def read_answer(answer: bytes, tag: int, returns: int) -> tuple[tuple[int, ...], Reader]:
    """Handles and parameters of a good answer. Raises Untrusted for a malformed one."""
    if int.from_bytes(answer[:2], "big") != tag:
        raise Untrusted(f"the TPM's answer begins with {answer[:2].hex()}")
    reader = Reader(answer[10:], "the TPM's answer")
    handles = tuple(reader.number(4) for _ in range(returns))
    if tag == _AUTHORISED:
        reader = Reader(reader.take(reader.number(4)), "the TPM's answer")
    return handles, reader


def _refusal(code: int, result: int) -> EdgewiseError:
    # Format-one codes carry the number of the parameter, handle or session in the other bits.
    plain = result & 0x0BF if result & 0x080 else result
    if plain in _BAD_AUTH:
        return NeedsPerson(
            f"the TPM asks for a password (command {code:#x}, response {result:#x})",
            hint="owner and endorsement hierarchy must have an empty one: tpm2_changeauth",
        )
    if result == _LOCKED:
        return TryLater("the TPM is locked after wrong passwords", hint="tpm2_dictionarylockout")
    return TpmRefused(f"the TPM refuses command {code:#x}: response code {result:#x}", result)


@contextmanager
def open_tpm(place: str = DEVICE) -> Iterator[Tpm]:
    """The TPM at a device path, ``unix:PATH`` or ``tcp:HOST:PORT``.

    Raises NeedsPerson when there is none, or when it may not be used.
    """
    try:
        tpm = Tpm(_wire(place))
    except PermissionError as error:
        raise NeedsPerson(
            f"{place} may not be opened", hint="run as root, or be in the group tss"
        ) from error
    except OSError as error:
        raise NeedsPerson(
            f"there is no TPM at {place}: {error.strerror or error}",
            hint="is it switched on in the firmware? name another with --tpm-device",
        ) from error
    try:
        yield tpm
    finally:
        tpm.close()


def _wire(place: str) -> Wire:
    kind, colon, rest = place.partition(":")
    if not colon:
        return _Device(place)
    if kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(PATIENCE_S)
            connection.connect(rest)
        except BaseException:
            connection.close()
            raise
        return SocketWire(connection)
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not host or not port.isdecimal():
        raise BadUsage(
            f"{place!r} is no TPM", hint="it takes /dev/tpmrm0, unix:PATH or tcp:HOST:PORT"
        )
    return SocketWire(socket.create_connection((host, int(port)), PATIENCE_S))
