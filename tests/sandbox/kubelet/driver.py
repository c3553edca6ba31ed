"""One FlexVolume driver executable: how it is called and how its answer is judged.

Mirrors pkg/volume/flexvolume/driver-call.go: stdout and stderr are one stream, parsed as one JSON object; there is no
time limit; "Not supported" to a verb is remembered until the executable changes.
"""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract import callout

# What the kubelet assumes of an init answer that leaves a capability out.
DEFAULT_CAPABILITIES = {
    "attach": True,
    "selinuxRelabel": True,
    "supportsMetrics": False,
    "fsGroup": True,
    "requiresFSResize": True,
}


class CallFailed(Exception):
    """A call that did not succeed; the text is what the kubelet puts into its event."""

    finished: bool = True
    """Whether it is over and nothing came of it (IsOperationFinishedError)."""
    uncertain: bool = False
    """Whether it may have happened all the same, and has to be taken back (IsUncertainProgressError)."""
    infeasible: bool = False
    """Whether an expansion can't come to anything, however often it is tried."""
    in_use: bool = False
    """Whether an expansion waits until no pod has the volume."""


class Transient(CallFailed):
    """A CSI driver that is not registered, or a Secret that can't be read: it may come any moment, so what was known of
    the volume stays true (TransientOperationFailure)."""

    finished = False


class NotSupported(CallFailed):
    """The driver doesn't implement the verb: the kubelet does what it does without a driver."""

    def __init__(self) -> None:
        super().__init__(callout.NOT_SUPPORTED)


def judge(verb: str, output: bytes, exit_code: int) -> dict[str, Any]:
    """The driver's answer. Raises CallFailed or NotSupported for anything but a success."""
    try:
        answer = json.loads(output)
        if not isinstance(answer, dict):
            raise ValueError("json: cannot unmarshal value into Go value of type flexvolume.DriverStatus")
    except ValueError as error:
        raise CallFailed(_words_for_garbage(output, error)) from None
    status = answer.get("status")
    if status == callout.NOT_SUPPORTED:
        raise NotSupported
    if status != callout.SUCCESS:
        raise CallFailed(f"{verb} command failed, status: {status or ''}, reason: {answer.get('message') or ''}")
    if exit_code != 0:
        raise CallFailed(f"exit status {exit_code}")
    return answer


def _words_for_garbage(output: bytes, error: ValueError) -> str:
    """Go's words for what is not JSON, so that messages look as on a real node."""
    text = output.decode(errors="replace").strip()
    if not text:
        return "unexpected end of JSON input"
    if text[0] not in '{["0123456789-tfn':
        return f"invalid character {text[0]!r} looking for beginning of value"
    return f"invalid JSON: {error}"


class Driver:
    """A driver that answered init, until its executable changes."""

    def __init__(self, executable: Path, environment: Mapping[str, str]) -> None:
        self._executable = executable
        self._environment = environment
        self._not_supported: set[str] = set()
        self.capabilities: dict[str, bool] = dict(DEFAULT_CAPABILITIES)

    async def init(self) -> None:
        answer = await self._call(callout.INIT)
        self.capabilities = DEFAULT_CAPABILITIES | (answer.get("capabilities") or {})

    async def volume_name(self, options: str) -> None:
        """The kubelet asks and then uses its own name whatever the answer is; a failure counts all the same."""
        try:
            await self._call("getvolumename", options)
        except NotSupported:
            return

    async def mount(self, folder: Path, options: str) -> None:
        await self._call(callout.MOUNT, str(folder), options)

    async def unmount(self, folder: Path) -> None:
        await self._call(callout.UNMOUNT, str(folder))

    async def expandfs(self, options: str, folder: Path, new_size: int, old_size: int) -> None:
        """Sizes in bytes. The second argument is the device path: empty, because nothing was attached."""
        await self._call(callout.EXPANDFS, options, "", str(folder), str(new_size), str(old_size))

    async def _call(self, verb: str, *arguments: str) -> dict[str, Any]:
        if verb in self._not_supported:
            raise NotSupported
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._executable),
                verb,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd="/",
                umask=0o022,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise CallFailed(f"fork/exec {self._executable}: {(error.strerror or str(error)).lower()}") from error
        output, _ = await process.communicate()
        assert process.returncode is not None
        try:
            return judge(verb, output, process.returncode)
        except NotSupported:
            self._not_supported.add(verb)
            raise
