"""How a command that a person typed runs: to its end, with a sign of life when it takes long, and with one line that
says what to do when it fails. Tracebacks are for what nobody foresaw."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from command import starting
from command.options import ApiAccess
from command.terminal import in_unicode, visible
from daemon.errors import VolumeError
from host.command import CommandError
from host.disks import NotADisk
from kube.client import Cluster
from kube.errors import ApiError, Unreachable
from kube.kubeconfig import ConfigurationError
from lvm import LvmError
from service.environment import SettingsError

T = TypeVar("T")

_INTERRUPTED = 128 + signal.SIGINT
"""Exit code, as a shell has it for a program that the signal ended."""
_PATIENCE = 2.0
"""Seconds for which a person waits without wondering."""
_AGAIN = 5.0
"""Seconds between two lines."""


class Stop(Exception):
    """The command can't go on. The message says why and what to do."""


def run(work: Coroutine[Any, Any, T], *, resumable: bool = False) -> T:
    """Runs `work`; what can be expected to go wrong becomes a line on stderr and exit code 1. `resumable`: the same
    command goes on where it was interrupted."""
    starting.done()
    logging.getLogger("host.command").setLevel(logging.CRITICAL)  # a command that fails is in the line
    try:
        return asyncio.run(work)
    except (Stop, NotADisk, VolumeError, LvmError, CommandError, SettingsError) as error:
        message = str(error)
    except ConfigurationError as error:
        message = f"{error}; see --kubeconfig and --context"
    except Unreachable as error:
        message = f"{error}. Does `kubectl cluster-info` reach it?"
    except ApiError as error:
        message = f"the API server answers: {error}"
    except KeyboardInterrupt:
        if resumable:
            typer.echo("elastic-local: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(_INTERRUPTED) from None
    typer.echo("\n".join(map(visible, f"elastic-local: {message}".splitlines())), err=True)
    raise typer.Exit(1)


def need_root(what: str, instead: str = "") -> None:
    """`instead`: what else may have been meant. Raises Stop."""
    if os.geteuid() != 0:
        raise Stop(f"{what} needs root: {', '.join(filter(None, ('try again with sudo', instead)))}")


@contextlib.asynccontextmanager
async def patience(doing: str | Callable[[], str]) -> AsyncIterator[None]:
    """Says on stderr what is being done once it has taken two seconds: a spinner for a person, a line for a log, and
    another one when that has changed after a while."""

    def now() -> str:
        return visible(f"{doing if isinstance(doing, str) else doing()} ...")

    async def lines() -> None:
        told = ""
        while True:
            if (text := now()) != told:
                typer.echo(text, err=True)
            told = text
            await asyncio.sleep(_AGAIN)

    async def report() -> None:
        await asyncio.sleep(_PATIENCE)
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            await lines()
        spinner = "dots" if in_unicode(sys.stderr) else "line"
        with Console(stderr=True).status(escape(now()), spinner=spinner) as status:
            while True:
                await asyncio.sleep(1)
                status.update(escape(now()))

    reporting = asyncio.create_task(report())
    try:
        yield
    finally:
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting


@contextlib.asynccontextmanager
async def cluster(access: ApiAccess, deadline: float = 30.0) -> AsyncIterator[Cluster]:
    """Raises ConfigurationError."""
    async with await Cluster.connect(
        access.kubeconfig, access.context, program="elastic-local-command", deadline=deadline
    ) as connected:
        yield connected
