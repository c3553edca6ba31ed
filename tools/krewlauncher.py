#!/usr/bin/env python3
"""What krew links as `kubectl-elastic_local`: starts the command from the folder `lib` beside it. A person may link it
as `kubectl_complete-elastic_local` too, by which kubectl completes.

Its first lines run in older interpreters, such as the one of macOS: they look for a newer one, or say what is needed.
"""

import os
import shutil
import sys

OLDEST = (3, 11)
_NEWEST = 20


def main() -> None:
    if sys.version_info < OLDEST:
        _with_newer()
    # In place of this folder, and before anything that the person has installed.
    sys.path[0:1] = [os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib")]  # noqa: PTH118, PTH120
    from command import entrypoints

    if os.path.basename(sys.argv[0]).startswith("kubectl_complete"):  # noqa: PTH119
        entrypoints.complete()
    else:
        entrypoints.main()


def _with_newer() -> None:
    for minor in range(_NEWEST, OLDEST[1] - 1, -1):
        newer = shutil.which("python3.%d" % minor)  # noqa: UP031
        if newer:
            os.execv(newer, [newer] + sys.argv)  # noqa: RUF005, S606
    sys.exit(
        "kubectl elastic-local needs Python %d.%d or later, and python3 is %d.%d here: install one, for example Python "  # noqa: UP031
        "3.13, so that python3 or python3.13 on your PATH is it" % (OLDEST + sys.version_info[:2])
    )


if __name__ == "__main__":
    main()
