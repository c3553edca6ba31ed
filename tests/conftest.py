"""Every test process has a mount table of its own: what a test mounts goes with the process, however that ends, and
loop devices that were only mounted there go too."""

import ctypes
import os

import pytest

pytest_plugins = ["tests.uml.plugin"]

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() != 0:
        return  # the unit floor needs no root; what mounts says so itself
    if session.config.getoption("--kubeconfig", None):
        return  # all is done in another cluster
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mount namespace of its own for the tests: run them with CAP_SYS_ADMIN")
