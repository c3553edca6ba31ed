"""The entry points: `elastic-local`, which is also `kubectl elastic-local`, and how kubectl completes that."""

import contextlib
import errno
import io
import os
import shlex
import sys

from command import starting

_PROGRAM = "elastic-local"
_NO_FILES = 4
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""A closed pipe, as of `| head`: command.options.Commands."""


def main() -> None:
    """A program that runs for months starts by itself, without what the commands need (command.programs)."""
    starting.begin()
    from command.programs import PROGRAMS

    if len(sys.argv) == 2 and (program := PROGRAMS.get(sys.argv[1])):
        starting.done()
        program()
        return
    from command.main import app, is_plugin

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what the locale's encoding lacks
    try:
        app(prog_name=f"kubectl {_PROGRAM}" if is_plugin() else None)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written at the end
        sys.exit(f"elastic-local: the answer can't be written: {error.strerror}")


def complete() -> None:
    """kubectl runs kubectl_complete-elastic_local with the words so far, of which the last is being typed, and reads a
    line for each that may follow, and a number that says what else to offer.

    Source: kubectl help plugin; the numbers are those of cobra's shell completion (4: no names of files).
    """
    from command.main import app

    words = [_PROGRAM, *sys.argv[1:]]
    os.environ |= {
        f"_{_PROGRAM.replace('-', '_').upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words[:-1]) + f" {words[-1]}",
        "COMP_CWORD": str(len(words) - 1),
    }
    with contextlib.suppress(SystemExit):
        app(prog_name=_PROGRAM)
    print(f":{_NO_FILES}")
