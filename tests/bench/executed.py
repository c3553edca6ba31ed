"""A program of the sandbox, executed instead of forked, so that its memory and processor time are its own, and what the
kernel counts for it."""

import contextlib
import os
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from tests.sandbox.programs import Program
from tests.waiting import until

_TICKS = os.sysconf("SC_CLK_TCK")
_END_SECONDS = 20.0


@dataclass(frozen=True)
class Executed:
    process: "subprocess.Popen[bytes]"

    @property
    def resident(self) -> int:
        """Bytes of memory, as cgroups and kubectl top would count a program that is alone."""
        return self._memory("VmRSS")

    @property
    def most_resident(self) -> int:
        """Bytes; the most there ever was."""
        return self._memory("VmHWM")

    @property
    def processor_seconds(self) -> float:
        """User and system time of all its threads, without its children."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def _memory(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{self.process.pid}/status").read_text(), re.MULTILINE)
        assert found, f"no {name}: it has ended with {self.process.poll()}"
        return int(found[1]) << 10


@contextlib.asynccontextmanager
async def executed(program: Program, seconds: float = 60.0) -> AsyncIterator[Executed]:
    """`program`, which does not run, until it is ready, and ended afterwards."""
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        process = subprocess.Popen(
            program.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | dict(program.environment)
        )
    try:

        async def ready() -> bool:
            assert process.poll() is None, f"{program.name} ended: {program.log.read_text()[-2000:]}"
            return await program.ready(program)

        await until(ready, what=f"{program.name} is ready", seconds=seconds)
        yield Executed(process)
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
