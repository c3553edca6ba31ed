"""Cleaning one volume in this process: a program is run on it, until it ends or its time is up.

Folders too are cleaned by a program (cleaners/folder.py), for the same reason that devices are: what hangs on a broken
disk can be killed, and takes nothing of the daemon with it.
"""

import asyncio
import logging
import os
from collections.abc import Mapping

from daemon.static import cleaners
from daemon.static.configuration import BLOCK, ClassConfiguration
from daemon.static.place import Place
from host.command import CommandError, CommandFailed, CommandTimedOut, run

log = logging.getLogger(__name__)


class CleaningFailed(Exception):
    """The volume is not clean: says why."""


def command(mode: str, settings: ClassConfiguration) -> tuple[str, ...]:
    """As configured, or what cleans when nothing is."""
    return settings.block_cleaner if mode == BLOCK else settings.filesystem_cleaner or cleaners.FOLDER_CLEAN


async def clean(volume: str, place: Place, settings: ClassConfiguration, deadline: float) -> None:
    """At most `deadline` seconds. Raises CleaningFailed."""
    argv = cleaners.bundled(command(place.mode, settings))
    variable = cleaners.BLOCK_DEVICE if place.mode == BLOCK else cleaners.FOLDER
    try:
        if place.mode == BLOCK:
            # Held open, so that the kernel can't give the name of a disk that goes to one that comes.
            held = await asyncio.to_thread(os.open, place.target, os.O_RDONLY | os.O_CLOEXEC)
            try:
                await _run(volume, argv, {variable: str(place.target)}, deadline)
            finally:
                os.close(held)
        else:
            await _run(volume, argv, {variable: str(place.target)}, deadline)
    except CommandTimedOut as error:
        raise CleaningFailed(f"{error}: raise cleaningTimeout if it needs longer") from None
    except CommandFailed as error:
        done = error.completed
        raise CleaningFailed(f"{done.command_line} failed with exit code {done.exit_code}: {done.words}") from None
    except (CommandError, OSError) as error:
        raise CleaningFailed(f"{argv[0]} can't be run: {error}") from None


async def _run(volume: str, argv: tuple[str, ...], environment: Mapping[str, str], deadline: float) -> None:
    completed = await run(*argv, deadline=deadline, env=environment)
    for line in (completed.stdout + completed.stderr).splitlines():
        log.info("cleaning %s: %s", volume, line)
