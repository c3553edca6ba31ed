"""etcd, NATS JetStream and ZooKeeper: what keeps a log of its own and syncs it."""

import asyncio
import base64
import contextlib
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tests.databases.engine import ClientProgram, Engine, Refused, Session, client_program, connection, digest

_SECONDS = 30.0
_LARGE_REQUESTS = "-Djute.maxbuffer=8388608"
_ZOOKEEPER_JARS = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar"


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class _EtcdSession(Session):
    """The JSON that stands beside the gRPC of its API."""

    def __init__(self, session: aiohttp.ClientSession, address: str) -> None:
        self._session = session
        self._address = address

    async def ask(self, path: str, body: Any) -> Any:
        try:
            async with self._session.post(self._address + path, json=body) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Refused(f"no answer: {type(error).__name__} {error}") from None
        if "error" in answer:
            raise Refused(str(answer["error"]))
        return answer

    async def put(self, number: int, payload: str) -> None:
        await self.ask("/v3/kv/put", {"key": _encoded(f"load/{number:09}"), "value": _encoded(payload)})

    async def digests(self) -> dict[int, str]:
        """In pieces: an answer must not be larger than 2 GiB, and need not be as large as the database."""
        found: dict[int, str] = {}
        first = "load/"
        while True:
            body = {"key": _encoded(first), "range_end": _encoded("load0"), "limit": 100}
            pairs = (await self.ask("/v3/kv/range", body)).get("kvs") or []
            for pair in pairs:
                key = base64.b64decode(pair["key"]).decode()
                found[int(key.partition("/")[2])] = digest(base64.b64decode(pair["value"]).decode())
                first = key + "\0"
            if not pairs:
                return found

    async def check(self) -> None:
        """It has no command for that. What was read was checked by its own checksums."""


@dataclass(frozen=True)
class Etcd(Engine):
    def version(self) -> str:
        return subprocess.check_output(["etcd", "--version"], text=True).split()[2]

    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        # Nobody comes to the port of its peers: with one member it only has to have one.
        return f"""
            exec etcd --data-dir {environment["PGDATA"]} --quota-backend-bytes 8589934592 --logger zap \
                --listen-client-urls http://127.0.0.1:{port} --advertise-client-urls http://127.0.0.1:{port} \
                --listen-peer-urls http://127.0.0.1:0 --initial-advertise-peer-urls http://127.0.0.1:1 \
                --initial-cluster default=http://127.0.0.1:1
        """

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Session]:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            client = _EtcdSession(session, f"http://127.0.0.1:{port}")
            await client.ask("/v3/maintenance/status", {})
            yield client


class _StreamSession(Session):
    """The protocol of NATS: a line for each command, and JetStream's answers come to a subject of ours."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"

    async def open(self) -> None:
        await self._hear(b"INFO ")
        options = '{"verbose":false,"pedantic":false,"lang":"python","version":"1"}'
        self._writer.write(f"CONNECT {options}\r\nSUB {self._inbox} 1\r\n".encode())
        # No limit of its own, or it reserves what the disk had free when it was made.
        stream = {"name": "load", "subjects": ["load.>"], "storage": "file", "retention": "limits", "max_bytes": -1}
        await self._ask("$JS.API.STREAM.CREATE.load", json.dumps(stream))

    async def put(self, number: int, payload: str) -> None:
        await self._ask(f"load.{number}", payload)

    async def digests(self) -> dict[int, str]:
        found = {}
        state = (await self._ask("$JS.API.STREAM.INFO.load", ""))["state"]
        for sequence in range(state["first_seq"], state["last_seq"] + 1):
            message = (await self._ask("$JS.API.STREAM.MSG.GET.load", json.dumps({"seq": sequence})))["message"]
            payload = base64.b64decode(message["data"]).decode()
            found[int(message["subject"].partition(".")[2])] = digest(payload)
        return found

    async def check(self) -> None:
        """It has no command for that. What was read was checked by its own checksums."""

    async def _ask(self, subject: str, body: str) -> Any:
        data = body.encode()
        self._writer.write(f"PUB {subject} {self._inbox} {len(data)}\r\n".encode() + data + b"\r\n")
        size = int((await self._hear(b"MSG ")).split()[-1])
        try:
            async with asyncio.timeout(_SECONDS):
                answer = json.loads(await self._reader.readexactly(size + 2))
        except (OSError, EOFError, TimeoutError) as error:
            raise Refused(f"no answer: {type(error).__name__} {error}") from None
        if "error" in answer:
            raise Refused(f"{answer['error']['code']} {answer['error']['description']}")
        return answer

    async def _hear(self, wanted: bytes) -> bytes:
        """The next line that begins so. Pings are answered."""
        while True:
            try:
                async with asyncio.timeout(_SECONDS):
                    await self._writer.drain()
                    line = await self._reader.readline()
            except (OSError, TimeoutError) as error:
                raise Refused(f"no answer: {type(error).__name__} {error}") from None
            if line.startswith(wanted):
                return line
            if line.startswith(b"PING"):
                self._writer.write(b"PONG\r\n")
            elif not line or line.startswith(b"-ERR"):
                raise Refused(line.decode().strip() or "the connection was closed")


@dataclass(frozen=True)
class JetStream(Engine):
    def version(self) -> str:
        return subprocess.check_output(["nats-server", "--version"], text=True).split()[1].removeprefix("v")

    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        store = environment["KAFKA_LOG_DIRS"]
        settings = (
            f"host: 127.0.0.1, port: {port}, max_payload: 8MB\\n"
            f'jetstream: {{ store_dir: "{store}", max_file_store: 100GB, max_memory_store: 64MB }}\\n'
        )
        return f"""
            mkdir -p {store}
            printf '{settings}' > /tmp/nats.conf
            exec nats-server --config /tmp/nats.conf
        """

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Session]:
        async with connection(port) as (reader, writer):
            session = _StreamSession(reader, writer)
            await session.open()
            yield session


class _ZooKeeperSession(Session):
    """Its command line client. It echoes nothing when its input is no terminal, but logs much."""

    def __init__(self, client: ClientProgram) -> None:
        self._client = client

    async def put(self, number: int, payload: str) -> None:
        await self._client.say(f'create /load-{number} "{payload}"')
        await self._until(f"Created /load-{number}")

    async def digests(self) -> dict[int, str]:
        names = [name for name in await self.listed("/") if name.startswith("load-")]
        found = {}
        for name in names:
            number = int(name.partition("-")[2])
            await self._client.say(f"get /{name}")
            line = ""
            while not line.startswith(f"{number} "):
                line = await self._client.hear()
                self._refused(line)
            found[number] = digest(line)
        return found

    async def check(self) -> None:
        """It has no command for that. What was read was checked by its own checksums."""

    async def listed(self, path: str) -> list[str]:
        await self._client.say(f"ls {path}")
        line = ""
        while not line.startswith("["):
            line = await self._client.hear()
            self._refused(line)
        return line.strip("[]").split(", ")

    async def _until(self, wanted: str) -> None:
        while (line := await self._client.hear()) != wanted:
            self._refused(line)

    def _refused(self, line: str) -> None:
        if "Exception" in line or "KeeperErrorCode" in line or "ConnectionLoss" in line:
            raise Refused(line)


@dataclass(frozen=True)
class ZooKeeper(Engine):
    def version(self) -> str:
        listed = subprocess.check_output(["dpkg-query", "-W", "-f", "${Version}", "zookeeper"], text=True)
        return listed.partition("-")[0]

    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        logs = environment["KAFKA_LOG_DIRS"]
        settings = (
            f"tickTime=2000\\ndataDir={logs}\\ndataLogDir={logs}\\nclientPort={port}\\nclientPortAddress=127.0.0.1\\n"
            "admin.enableServer=false\\nautopurge.purgeInterval=0\\nforceSync=yes\\n"
        )
        return f"""
            mkdir -p {logs}
            printf '{settings}' > /tmp/zoo.cfg
            exec java -Xmx512m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn {_LARGE_REQUESTS} -cp {_ZOOKEEPER_JARS} \
                org.apache.zookeeper.server.quorum.QuorumPeerMain /tmp/zoo.cfg
        """

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Session]:
        # What zkCli.sh runs, without the shell, which would not end it.
        # Its log would stand among the answers.
        options = ("-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=off", _LARGE_REQUESTS, "-cp", _ZOOKEEPER_JARS)
        main = ("org.apache.zookeeper.ZooKeeperMain", "-server", f"127.0.0.1:{port}")
        async with client_program(["java", *options, *main]) as client:
            session = _ZooKeeperSession(client)
            await session.listed("/zookeeper")  # it takes commands before it is connected
            yield session
