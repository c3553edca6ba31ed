"""How long the kubelet waits for the callout to start and answer.

The yardstick of the native one is what any program in Python would take before it does anything: the start of a bare
interpreter. A program that somebody compiled in Go takes about half of that. The one in Python is held against an
interpreter with the two modules that nobody could do without.
"""

import platform
import subprocess
import tempfile
import time
from pathlib import Path

from flexdriver import bundle, installation
from flexdriver.installation import Driver
from tests.bench import report

_RUNS = 40
_BARE = (bundle.INTERPRETER, "-I", "-S", "-c", "pass")
_WITH_MODULES = (bundle.INTERPRETER, "-I", "-S", "-c", "import json, socket")


def _seconds(*argv: str | Path) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    native = installation.native(platform.machine())
    assert native is not None, "`make callout` builds it"
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        ours = installation.install(native, Path(first))
        python = installation.install(Driver("in Python", bundle.build()), Path(second))
        programs = (_BARE, _WITH_MODULES, (ours, "init"), (python, "init"))
        rounds = [[_seconds(*program) for program in programs] for _ in range(_RUNS)]
    bare, modules, natives, pythons = zip(*rounds, strict=True)
    report.line("python3 -I -S -c pass", bare)
    report.line("callout: init, native (bound: ratio 0.5)", natives, bare)
    report.line("python3 -I -S -c import json, socket", modules)
    report.line("callout: init, in Python (bound: ratio 2)", pythons, modules)
    report.line("callout: init, native beside the one in Python", natives, pythons)
