"""Completion for `kubectl elastic-local`: kubectl runs kubectl_complete-elastic_local with the words so far, of which
the last is being typed, and reads a line for each that may follow, and a number that says what else to offer.

Source: kubectl help plugin; the numbers are those of cobra's shell completion (4: no names of files).
"""

import contextlib
import os
import shlex
import sys

from command.main import app

_PROGRAM = "elastic-local"
_NO_FILES = 4


def main() -> None:
    words = [_PROGRAM, *sys.argv[1:]]
    os.environ |= {
        f"_{_PROGRAM.replace('-', '_').upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(words[:-1]) + f" {words[-1]}",
        "COMP_CWORD": str(len(words) - 1),
    }
    with contextlib.suppress(SystemExit):
        app(prog_name=_PROGRAM)
    print(f":{_NO_FILES}")
