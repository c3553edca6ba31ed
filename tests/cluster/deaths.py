"""Daemons that die at a step of a test's choice, and one that is alive again."""

from pathlib import Path

from tests.cluster import fatal
from tests.sandbox.programs import Program
from tests.waiting import until

_FOLDER = str(Path(fatal.__file__).parent)
_VARIABLES = ("PYTHONPATH", "DEATH")


async def launch_dying(program: Program, step: str) -> None:
    """Kill it, and start one that kills itself when it comes to `step` (see fatal/sitecustomize.py)."""
    await program.kill()
    program.environment = {**program.environment, "PYTHONPATH": _FOLDER, "DEATH": step}
    program.launch()


async def until_dead(program: Program) -> None:
    await until(lambda: not program.running, what=f"{program.name} dies {program.environment.get('DEATH', '')}")


async def revive(program: Program) -> None:
    """Start it as it should be, unless it runs so."""
    mortal = any(name in program.environment for name in _VARIABLES)
    if program.running and not mortal:
        return
    await program.kill()
    program.environment = {name: value for name, value in program.environment.items() if name not in _VARIABLES}
    await program.start()
