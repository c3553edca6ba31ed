"""Runs the command where what only Linux has is missing, as on a person's macOS: python withoutlinux.py WORD...

Libraries of others are imported before that: they know where they are."""

import asyncio  # noqa: F401
import ctypes
import os
import select
import signal
import socket
import sys
import urllib.request  # noqa: F401

import aiohttp  # noqa: F401
import rich.console  # noqa: F401
import typer  # noqa: F401
import yaml  # noqa: F401

_LINUX = {
    os: "memfd_create pipe2 setns unshare sched_getaffinity O_TMPFILE O_PATH O_DIRECT O_NOATIME eventfd pidfd_open "
    "getrandom posix_fallocate posix_fadvise fdatasync getxattr setxattr listxattr copy_file_range splice",
    socket: "AF_NETLINK AF_PACKET AF_VSOCK SO_PEERCRED",
    select: "epoll",
    signal: "sigwaitinfo sigtimedwait",
}


class _NoLibrary:
    def __init__(self, *names: object, **options: object) -> None:
        raise OSError(f"{sys.platform} has no such library")


for module, names in _LINUX.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
ctypes.CDLL = _NoLibrary  # type: ignore[assignment,misc]
sys.platform = "darwin"

from command import entrypoints  # noqa: E402

entrypoints.main()
