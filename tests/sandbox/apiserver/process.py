"""The server as a process of its own, for tests: started, killed, started again on the same data and port."""

import json
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

_START_SECONDS = 20.0


@dataclass
class ServerProcess:
    """`python -m tests.sandbox.apiserver` on the data in `folder`."""

    folder: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    """Chosen by the first start, kept by the next ones."""
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

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
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            process.kill()
            raise RuntimeError(f"the API server did not start (exit {process.wait()}): its words are above")
        self._process = process
        self.port = json.loads(line)["port"]

    def stop(self) -> int:
        """As an operator stops it. The answer is its exit status."""
        return self._end(subprocess.Popen.terminate)

    def kill(self) -> None:
        """As a crash would."""
        self._end(subprocess.Popen.kill)

    def _end(self, how: object) -> int:
        process, self._process = self._process, None
        assert process is not None
        assert callable(how)
        how(process)
        status = process.wait(timeout=10)
        if process.stdout is not None:
            process.stdout.close()
        return status
