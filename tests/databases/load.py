"""A client that writes all the time, and knows what the database promised it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from tests.databases.engine import Engine, Refused, digest, payload_of
from tests.waiting import until

_log = logging.getLogger(__name__)

RECORD = 2048
"""Characters of a record, unless told otherwise."""
_PAUSE = 0.005
"""Seconds between two writes: the machine has others to serve."""
_RECONNECT_SECONDS = 0.2


class Load:
    """It writes one record after the other. What became of one that failed nobody knows: the next has a new number."""

    def __init__(self, engine: Engine, port: int) -> None:
        self._engine = engine
        self._port = port
        self.acknowledged: set[int] = set()
        self.errors: list[str] = []
        self.digests: dict[int, str] = {}
        """Of all that was begun to be written."""
        self.characters = RECORD
        self._next = 1

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        writing = asyncio.create_task(self._write())
        try:
            yield
        finally:
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing

    async def goes_on(self, records: int = 50) -> None:
        """Until so many more were acknowledged."""
        goal = len(self.acknowledged) + records
        await until(lambda: len(self.acknowledged) >= goal, what=f"{records} more records are written", seconds=120)

    async def _write(self) -> None:
        while True:
            try:
                async with self._engine.connect(self._port) as session:
                    while True:
                        number, self._next = self._next, self._next + 1
                        payload = payload_of(number, self.characters)
                        self.digests[number] = digest(payload)
                        await session.put(number, payload)
                        self.acknowledged.add(number)
                        await asyncio.sleep(_PAUSE)
            except Refused as error:
                if str(error) not in self.errors[-1:]:
                    _log.info("%s", str(error)[:200])
                self.errors.append(str(error))
                await asyncio.sleep(_RECONNECT_SECONDS)
