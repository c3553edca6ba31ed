"""What the programs take while nothing happens. Each is executed as in its image, because a forked one shares."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from tests.bench import report
from tests.bench.executed import executed
from tests.sandbox import mountspace
from tests.sandbox.nodes import NodeSpec
from tests.sandbox.programs import Program
from tests.sandbox.sandbox import Sandbox

_SETTLED = 6
"""Seconds: several periods of the daemon's resync in the sandbox."""


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="elastic-"))
    try:
        async with Sandbox(folder, [NodeSpec("node")]) as sandbox:
            for program, bound in ((sandbox.provisioners[0], 60), (sandbox.nodes["node"].daemon, 64)):
                await program.stop()
                name = program.name.split()[0]
                report.memory(f"{name}, idle (bound: {bound} MiB)", [await _idle(program)])
    finally:
        shutil.rmtree(folder)


async def _idle(program: Program) -> int:
    async with executed(program) as process:
        await asyncio.sleep(_SETTLED)
        return process.resident


if __name__ == "__main__":
    mountspace.enter_private()
    asyncio.run(main())
