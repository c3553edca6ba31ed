"""PostgreSQL and MariaDB, by the programs of their packages."""

import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.databases.engine import ClientProgram, Engine, Refused, Session, client_program


def _postgresql() -> Path:
    """Its programs. Debian has a folder for each major version."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))


class _PostgresSession(Session):
    def __init__(self, client: ClientProgram) -> None:
        self._client = client

    async def open(self) -> None:
        await self._client.say("SET client_min_messages = error;")
        await self._client.say("CREATE TABLE IF NOT EXISTS load (n bigint PRIMARY KEY, payload text);")
        await self._client.say("CREATE EXTENSION IF NOT EXISTS amcheck;")
        await self._done()

    async def put(self, number: int, payload: str) -> None:
        await self._client.say(f"INSERT INTO load VALUES ({number}, '{payload}') RETURNING n;")
        await self._client.expect(str(number))

    async def digests(self) -> dict[int, str]:
        await self._client.say("SELECT n, md5(payload) FROM load;")
        return _read(await self._done())

    async def check(self) -> None:
        """Checksums of the pages are checked by all that reads them (initdb --data-checksums); amcheck reads the table,
        its long values and its index."""
        await self._client.say("SELECT * FROM verify_heapam('load', check_toast => true);")
        await self._client.say("SELECT bt_index_check('load_pkey', true);")
        if found := [line for line in await self._done() if line]:
            raise Refused("\n".join(found))

    async def _done(self) -> list[str]:
        """All lines that come before the end of what was asked for."""
        await self._client.say("\\echo done")
        lines = []
        while (line := await self._client.hear()) != "done":
            if ": error: " in line or line.startswith(("ERROR:", "FATAL:", "PANIC:")):
                raise Refused(line)
            lines.append(line)
        return lines


@dataclass(frozen=True)
class Postgresql(Engine):
    def version(self) -> str:
        return subprocess.check_output([_postgresql() / "postgres", "--version"], text=True).split()[2]

    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        data, programs = environment["PGDATA"], _postgresql()
        # The first lines are what the entry point of the image does (docker-entrypoint.sh of docker-library/postgres),
        # the last ones hand on SIGTERM as SIGINT, the STOPSIGNAL of the image: clients are not waited for. As process 1
        # of a container the server passes over the lock file of a crash; containers of the sandbox share the machine's
        # process numbers, and in a copy the file names a server that lives.
        return f"""
            mkdir -p {data} && chmod 700 {data}
            test -s {data}/PG_VERSION || {programs}/initdb --pgdata={data} --auth=trust --data-checksums --no-locale
            rm -f {data}/postmaster.pid
            {programs}/postgres -D {data} -p {port} -c listen_addresses=127.0.0.1 \
                -c unix_socket_directories= -c shared_buffers=16MB -c max_wal_size=64MB -c min_wal_size=32MB &
            trap "kill -INT $!" TERM
            wait $! || wait $!
        """

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Session]:
        options = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--field-separator= ")
        server = ("--host=127.0.0.1", f"--port={port}", "--username=postgres", "--dbname=postgres")
        async with client_program(["psql", *options, *server]) as client:
            session = _PostgresSession(client)
            await session.open()
            yield session


class _MariadbSession(Session):
    """The client ends at an error."""

    def __init__(self, client: ClientProgram) -> None:
        self._client = client

    async def open(self) -> None:
        await self._client.say("CREATE TABLE IF NOT EXISTS test.n (n BIGINT PRIMARY KEY, payload LONGTEXT);")
        await self._done()

    async def put(self, number: int, payload: str) -> None:
        await self._client.say(f"INSERT INTO test.n VALUES ({number}, '{payload}') RETURNING n;")
        if (heard := await self._client.hear()) == str(number):
            return
        while not heard.startswith("ERROR "):  # before its error it shows the statement
            heard = await self._client.hear()
        raise Refused(heard)

    async def digests(self) -> dict[int, str]:
        await self._client.say("SELECT n, MD5(payload) FROM test.n;")
        return _read([line.replace("\t", " ") for line in await self._done()])

    async def check(self) -> None:
        await self._client.say("CHECK TABLE test.n EXTENDED;")
        if (found := await self._done()) != ["test.n\tcheck\tstatus\tOK"]:
            raise Refused("\n".join(found))

    async def _done(self) -> list[str]:
        await self._client.say("SELECT 'done';")
        lines = []
        while (line := await self._client.hear()) != "done":
            if line.startswith("ERROR "):
                raise Refused(line)
            lines.append(line)
        return lines


@dataclass(frozen=True)
class Mariadb(Engine):
    def version(self) -> str:
        return subprocess.check_output(["mariadbd", "--version"], text=True).split()[2].partition("-")[0]

    def script(self, environment: Mapping[str, str], folder: str, port: int) -> str:
        data = environment["PGDATA"]
        options = f"--no-defaults --datadir={data}"
        return f"""
            mkdir -p {data}
            test -d {data}/mysql || mariadb-install-db {options} --auth-root-authentication-method=normal
            exec mariadbd {options} --port={port} --bind-address=127.0.0.1 --socket=/tmp/socket \
                --innodb-log-file-size=16M --innodb-buffer-pool-size=32M --innodb-flush-log-at-trx-commit=1 \
                --max-allowed-packet=64M
        """

    @contextlib.asynccontextmanager
    async def connect(self, port: int) -> AsyncIterator[Session]:
        options = ("--no-defaults", "--batch", "--skip-column-names", "--unbuffered", "--max-allowed-packet=64M")
        server = ("--protocol=TCP", "--host=127.0.0.1", f"--port={port}", "--user=root", "--skip-ssl")
        async with client_program([shutil.which("mariadb") or "mariadb", *options, *server]) as client:
            session = _MariadbSession(client)
            await session.open()
            yield session


def _read(lines: list[str]) -> dict[int, str]:
    return {int(number): found for number, found in (line.split() for line in lines)}
