"""A FlexVolume driver that writes down how it was called and answers as the test says: what the kubelet's callouts look
like from the other side."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

_SCRIPT = """#!{python} -IS
import json, os, subprocess, sys, time
folder = {folder!r}
verb = sys.argv[1]
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "at": time.monotonic()}}) + "\\n")
while os.path.exists(folder + "/hold-" + verb):
    time.sleep(0.01)
try:
    output, code = json.load(open(folder + "/answer-" + verb))
except FileNotFoundError:
    output, code = {answers!r}.get(verb, '{{"status": "Not supported"}}'), 0
with open(folder + "/answered", "a") as answered:
    answered.write(verb + "\\n")
if '"Success"' in output and verb == "mount" and not os.path.ismount(sys.argv[2]):
    subprocess.run(["mount", "-t", "tmpfs", "recorder", sys.argv[2]], check=True)
if '"Success"' in output and verb == "unmount" and os.path.ismount(sys.argv[2]):
    subprocess.run(["umount", sys.argv[2]], check=True)
os.write(2 if code == 2 else 1, output.encode())
sys.exit(code)
"""
_SUCCESS = '{"status": "Success"}'
_INIT = '{"status": "Success", "capabilities": {"attach": false}}'
_ANSWERS = {"init": _INIT, "mount": _SUCCESS, "unmount": _SUCCESS, "expandfs": _SUCCESS}


@dataclass(frozen=True)
class Recorder:
    """Installed as `name` in a plugin directory; `folder` is where it and the test talk."""

    name: str
    plugins: Path
    folder: Path

    @property
    def executable(self) -> Path:
        return self.plugins / self.name.replace("/", "~") / self.name.rpartition("/")[2]

    def install(self) -> None:
        self.executable.parent.mkdir(parents=True, exist_ok=True)
        draft = self.executable.with_name("." + self.executable.name)
        draft.write_text(_SCRIPT.format(python=sys.executable, folder=str(self.folder), answers=_ANSWERS))
        draft.chmod(0o755)
        draft.rename(self.executable)

    def answer(self, verb: str, output: str, exit_code: int = 0) -> None:
        """From now on. Exit code 2 has it written to stderr."""
        path = self.folder / f"answer-{verb}"
        draft = path.with_name("draft")
        draft.write_text(json.dumps([output, exit_code]))
        draft.rename(path)

    def answer_as_usual(self, verb: str) -> None:
        (self.folder / f"answer-{verb}").unlink()

    def hold(self, verb: str) -> None:
        (self.folder / f"hold-{verb}").touch()

    def let_go(self, verb: str) -> None:
        (self.folder / f"hold-{verb}").unlink()

    @property
    def calls(self) -> list[list[str]]:
        """Arguments of each call, without the executable."""
        return [call["argv"] for call in self._records]

    @property
    def working_folders(self) -> set[str]:
        return {call["cwd"] for call in self._records}

    def of(self, verb: str) -> list[list[str]]:
        return [call for call in self.calls if call[0] == verb]

    def answered(self, verb: str) -> int:
        """How often it was, whatever the test says from now on."""
        path = self.folder / "answered"
        return path.read_text().splitlines().count(verb) if path.exists() else 0

    def times(self, verb: str) -> list[float]:
        """When it was called, seconds on the monotonic clock."""
        return [call["at"] for call in self._records if call["argv"][0] == verb]

    @property
    def _records(self) -> list[Json]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
