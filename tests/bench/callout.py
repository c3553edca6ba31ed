"""How long the kubelet waits for the callout to start and answer.

The bound is twice the start of a bare interpreter with the two modules that any such program needs.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from flexdriver import bundle
from tests.bench import report

_RUNS = 40


def _seconds(*argv: str | Path) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        executable = bundle.install(bundle.build(), Path(folder))
        assert executable is not None
        bare = (bundle.INTERPRETER, "-I", "-S", "-c", "import json, socket")
        _seconds(executable, "init"), _seconds(*bare)
        pairs = [(_seconds(executable, "init"), _seconds(*bare)) for _ in range(_RUNS)]
    ours, theirs = zip(*pairs, strict=True)
    report.line("python3 -I -S -c 'import json, socket'", theirs)
    report.line("callout: init (bound: ratio 2)", ours, theirs)
