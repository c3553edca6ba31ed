"""What a database must offer to be tried: how its server is started in a pod, and a client that writes and reads."""

import asyncio
import contextlib
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

_LONGEST_LINE = 1 << 24
"""Bytes of one answer."""
_ANSWER_SECONDS = 60.0
_END_SECONDS = 5.0


class Refused(Exception):
    """The database did not take a write, or could not be reached: the text is its own."""


class Session(ABC):
    """A connection of a client. Each method raises Refused, and the session is of no use then."""

    @abstractmethod
    async def put(self, number: int, payload: str) -> None:
        """Write one record, and return when the database says that it is safe."""

    @abstractmethod
    async def digests(self) -> dict[int, str]:
        """MD5 of the payload of each record that it has."""

    @abstractmethod
    async def check(self) -> None:
        """Have the database look for damage, where it has a command for that."""


@contextlib.asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """To a server of this machine, for a protocol of lines. Raises Refused."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_LONGEST_LINE)
    except OSError as error:
        raise Refused(str(error)) from None
    try:
        yield reader, writer
    finally:
        writer.close()


@dataclass(frozen=True)
class Engine(ABC):
    """A database, and the sample of deploy/samples/databases that its pod is made of."""

    name: str
    sample: str
    needs_of: str = ""
    """The database of the docs whose needs this one shows, if it is another. Empty: it is that database."""
    user: str = ""
    """As which account of this machine it runs, where the program wants an account. Empty: the user of the sample."""

    silent_when_full: bool = False
    """Whether it gives a client no answer and logs nothing when its disk is full."""

    hangs_when_full: bool = False
    """Whether its process lives on and answers nothing once its disk was full. Who runs it has a liveness probe; the
    sandbox has none."""

    @abstractmethod
    def version(self) -> str:
        """As its program tells it."""

    @abstractmethod
    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        """For sh: starts the server in the foreground on 127.0.0.1. `environment` is that of the sample's container,
        `folder` where the volume is mounted."""

    @abstractmethod
    def connect(self, port: int) -> AbstractAsyncContextManager[Session]:
        """Raises Refused while it does not answer."""


class ClientProgram:
    """A client of a database that takes a command for each line of its input. What it says on either output is read."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def say(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise Refused(await self._rest()) from None

    async def hear(self) -> str:
        """The next line. Raises Refused when the program has ended, or says nothing for a minute."""
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise Refused(f"no answer after {_ANSWER_SECONDS:g} s") from None
        if not line:
            raise Refused("the client has ended")
        return line.decode(errors="replace").rstrip("\n")

    async def expect(self, wanted: str) -> None:
        """The next line is this one. Raises Refused with what came instead."""
        heard = await self.hear()
        if heard != wanted:
            raise Refused(heard)

    async def _rest(self) -> str:
        assert self._process.stdout is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                rest = await self._process.stdout.read()
            return rest.decode(errors="replace").strip() or "the client has ended"
        return "the client does not end"


@contextlib.asynccontextmanager
async def client_program(
    argv: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> AsyncIterator[ClientProgram]:
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ | dict(environment or {}),
        limit=_LONGEST_LINE,
    )
    try:
        yield ClientProgram(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def payload_of(number: int, characters: int) -> str:
    """What record `number` holds: text that no database can compress much, the same each time."""
    parts = (hashlib.sha256(f"{number}.{part}".encode()).hexdigest() for part in range(characters // 64))
    return f"{number} {''.join(parts)}"


def digest(payload: str) -> str:
    return hashlib.md5(payload.encode(), usedforsecurity=False).hexdigest()
