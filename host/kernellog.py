"""What the kernel says of a device: for a mount that it refuses, it gives its reason nowhere else.

Reading needs CAP_SYSLOG, or kernel.dmesg_restrict off; who may not, hears nothing. Source: Documentation/ABI/testing/
dev-kmsg of Linux.
"""

import contextlib
import os
from pathlib import Path

_LOG = "/dev/kmsg"
_LONGEST_RECORD = 8192


class Heard:
    """All that is logged from its making on."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def about(self, device: Path) -> list[str]:
        """The messages that name the device."""
        if self._descriptor is None:
            return []
        name, messages = device.resolve().name, []
        while record := self._next():
            message = record.partition(";")[2].partition("\n")[0]
            if any(sign in message for sign in (f"({name})", f"device {name}", f"dev {name},")):
                messages.append(message)
        return messages

    def _next(self) -> str:
        assert self._descriptor is not None
        with contextlib.suppress(BrokenPipeError):  # the oldest were overwritten: the next read goes on behind them
            try:
                return os.read(self._descriptor, _LONGEST_RECORD).decode(errors="replace")
            except BlockingIOError:
                return ""
        return ";"

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def begin() -> Heard:
    """From now on. To be closed."""
    try:
        descriptor = os.open(_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        return Heard(None)
    return Heard(descriptor)
