"""The entry point of `elastic-local`, and the two programs that run for months.

Those are started without the library of the commands: typer takes 7 MB for as long as a program runs that has no
options.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from service.environment import SettingsError

EXECUTABLE = "kubectl-elastic_local"
"""By which kubectl finds the command as its plugin `kubectl elastic-local`."""


def main() -> None:
    program = _PROGRAMS.get(sys.argv[1]) if len(sys.argv) == 2 else None
    if program is not None:
        program()
        return
    from command.main import app

    app(prog_name="kubectl elastic-local" if Path(sys.argv[0]).name == EXECUTABLE else None)


def daemon() -> None:
    if sys.platform != "linux":
        sys.exit(f"elastic-local: the daemon runs on a node, which has Linux, and not on {sys.platform}")
    from daemon import node, settings

    _run(lambda: node.run(settings.read(os.environ)))


def provisioner() -> None:
    from provisioner import main, settings

    _run(lambda: main.run(settings.read(os.environ)))


_PROGRAMS: dict[str, Callable[[], None]] = {"daemon": daemon, "provisioner": provisioner}


def _run(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a program until it ends. A wrong setting ends it before it began, with a line instead of a traceback."""
    try:
        asyncio.run(program())
    except SettingsError as error:
        print(f"elastic-local: {error}", file=sys.stderr)
        sys.exit(2)
