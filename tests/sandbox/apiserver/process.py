"""The server as a process of its own, for tests: started, killed, started again on the same data and port."""

import json
import os
import select
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests import forkserver

_START_SECONDS = 20.0
_END_SECONDS = 10.0


@dataclass
class ServerProcess:
    """`python -m tests.sandbox.apiserver` on the data in `folder`."""

    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    """Chosen by the first start, kept by the next ones."""
    _process: forkserver.Process | None = field(default=None, repr=False)

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when the server answers. Raises RuntimeError with what it said when it does not."""
        command = [sys.executable, "-m", "tests.sandbox.apiserver", "--port", str(self.port)]
        command += ["--data", str(self.folder / "data"), "--kubeconfig", str(self.kubeconfig), *self.arguments]
        output, written = os.pipe()
        try:
            process = forkserver.start(command, stdout=written, stderr=2, environment=os.environ)
        finally:
            os.close(written)
        with os.fdopen(output) as said:
            ready, _, _ = select.select([said], [], [], _START_SECONDS)
            line = said.readline() if ready else ""
        if not line:
            process.send_signal(signal.SIGKILL)
            raise RuntimeError(f"the API server did not start (exit {process.wait(_END_SECONDS)}): its words are above")
        self._process = process
        self.port = json.loads(line)["port"]

    def stop(self) -> int:
        """As an operator stops it. The answer is its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As a crash would."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int:
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(number)
        return process.wait(_END_SECONDS)
