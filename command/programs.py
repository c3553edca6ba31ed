"""Starts the two long-running programs, daemon and provisioner, with settings from the environment.

They are started without the library of the commands: typer takes 7 MB for as long as a program runs that has no
options.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from service.environment import SettingsError


def daemon() -> None:
    if sys.platform != "linux":
        sys.exit(f"elastic-local: the daemon runs on a node, which has Linux, and not on {sys.platform}")
    from daemon import node, settings

    _run(lambda: node.run(settings.read(os.environ)))


def provisioner() -> None:
    # Of these only: the command is an archive for all machines, and both libraries are compiled for one.
    import orjson
    import uvloop

    from provisioner import main, settings

    _run(lambda: main.run(settings.read(os.environ), orjson.loads), uvloop.new_event_loop)


PROGRAMS: Mapping[str, Callable[[], None]] = {"daemon": daemon, "provisioner": provisioner}


def _run(
    program: Callable[[], Coroutine[Any, Any, None]],
    event_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> None:
    """Run a program until it ends. A wrong setting ends it before it began, with a line instead of a traceback."""
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            runner.run(program())
    except SettingsError as error:
        print(f"elastic-local: {error}", file=sys.stderr)
        sys.exit(2)
