"""One program of the sandbox: started, known to be ready, killed, started again.

Not bound to an event loop, so that tests with loops of their own can share a sandbox. A program dies with the process
that started it, also when that is killed with SIGKILL (tests/forkserver.py): nothing outlives the caller.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests import forkserver
from tests.waiting import NeverHappened, until

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_TAIL_LINES = 40

Check = Callable[["Program"], Awaitable[bool]]


class StartFailed(AssertionError):
    """A program did not become ready; the message has the end of its log."""


def says(message: str) -> Check:
    """Ready when these words stand in what it wrote since it started."""

    async def check(program: "Program") -> bool:
        return message in program.output

    return check


def answers(address: str) -> Check:
    """Ready when this URL answers 200."""

    async def check(_program: "Program") -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(address) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    return check


@dataclass
class Program:
    name: str
    argv: Sequence[str]
    """A program in Python, as tests/forkserver.py knows them."""
    log: Path
    ready: Check
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()
    """File descriptors that it inherits."""
    _process: forkserver.Process | None = None
    _log_start: int = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll() if self._process is not None else None

    @property
    def output(self) -> str:
        """What it wrote since it was last started."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def launch(self) -> None:
        """Start it and don't wait."""
        assert not self.running, f"{self.name} runs already"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = forkserver.start(
                self.argv,
                stdout=log.fileno(),
                stderr=log.fileno(),
                environment=os.environ | {"PYTHONUNBUFFERED": "1"} | dict(self.environment),
                descriptors=self.descriptors,
            )

    async def wait_ready(self, seconds: float = _START_SECONDS) -> None:
        """Raises StartFailed when it ends or isn't ready in time."""

        async def ready_or_ended() -> bool:
            return not self.running or await self.ready(self)

        try:
            await until(ready_or_ended, seconds=seconds)
        except NeverHappened:
            raise StartFailed(f"{self.name} is not ready after {seconds:g} s:\n{self._tail()}") from None
        if not self.running:
            assert self._process is not None
            raise StartFailed(f"{self.name} ended with exit code {self._process.returncode}:\n{self._tail()}")

    async def start(self) -> None:
        self.launch()
        await self.wait_ready()

    async def kill(self) -> None:
        """SIGKILL, to the program alone: what it started lives on, as on a node."""
        await self._end(signal.SIGKILL, _STOP_SECONDS)

    async def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """SIGTERM, and SIGKILL if it doesn't end in time."""
        try:
            await self._end(signal.SIGTERM, seconds)
        except NeverHappened:
            await self.kill()

    async def restart(self) -> None:
        """Kill it with SIGKILL and start it again."""
        await self.kill()
        await self.start()

    async def _end(self, number: signal.Signals, seconds: float) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        await until(lambda: process.poll() is not None, what=f"{self.name} ends by {number.name}", seconds=seconds)

    def _tail(self) -> str:
        return "\n".join(self.output.splitlines()[-_TAIL_LINES:])


async def start_all(programs: Sequence[Program]) -> None:
    """Start them at once and wait for all."""
    for program in programs:
        program.launch()
    await asyncio.gather(*(program.wait_ready() for program in programs))
