"""Lucene, the library that keeps the data of Elasticsearch, behind a small server of ours (Index.java)."""

import asyncio
import atexit
import contextlib
import functools
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.databases.engine import Engine, Refused, Session, connection

_SECONDS = 60.0
_JARS = ("core", "analyzers-common", "backward-codecs")


class _IndexSession(Session):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def put(self, number: int, payload: str) -> None:
        self._say(f"put {number} {payload}")
        if (heard := await self._hear()) != f"ok {number}":
            raise Refused(heard)

    async def digests(self) -> dict[int, str]:
        self._say("list")
        found = {}
        while (line := await self._hear()) != "end":
            number, each = line.split()
            found[int(number)] = each
        return found

    async def check(self) -> None:
        self._say("check")
        await self._hear()

    def _say(self, line: str) -> None:
        self._writer.write(line.encode() + b"\n")

    async def _hear(self) -> str:
        try:
            async with asyncio.timeout(_SECONDS):
                await self._writer.drain()
                line = await self._reader.readline()
        except (OSError, TimeoutError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from None
        heard = line.decode().strip()
        if not heard or heard.startswith("error: "):
            raise Refused(heard or "the connection was closed")
        return heard


@dataclass(frozen=True)
class Lucene(Engine):
    def version(self) -> str:
        (core,) = Path("/usr/share/java").glob("lucene-core-8.*.jar")
        return core.stem.rpartition("-")[2]

    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        jars = ":".join(f"/usr/share/java/lucene-{name}-{self.version()}.jar" for name in _JARS)
        return f"exec java -Xmx256m -cp {jars}:{_classes(jars)} Index {folder} {port}"

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Session]:
        async with connection(port) as (reader, writer):
            yield _IndexSession(reader, writer)


@functools.cache
def _classes(jars: str) -> Path:
    """The folder of the compiled server. Any account can read it; it goes with this process."""
    made = tempfile.TemporaryDirectory(prefix="databases-")
    atexit.register(made.cleanup)
    folder = Path(made.name)
    folder.chmod(0o755)
    subprocess.run(["javac", "-cp", jars, "-d", folder, Path(__file__).with_name("Index.java")], check=True)
    return folder
