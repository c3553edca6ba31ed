"""A Unix socket for root alone: what the kubelet's side of the daemon is asked through."""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

LONGEST_PATH = 107
"""Bytes that the path of a socket may have: sun_path of unix(7), without the zero at its end."""

_CREDENTIALS = struct.Struct("3i")  # struct ucred of unix(7): pid, uid, gid


class SocketPathTooLong(OSError):
    """The path has more bytes than a socket address can hold (sockaddr_un)."""

    def __init__(self, path: Path) -> None:
        size = len(os.fsencode(path))
        super().__init__(
            errno.ENAMETOOLONG, f"the path has {size} bytes, a socket's may have {LONGEST_PATH}", str(path)
        )


@contextlib.contextmanager
def root_socket(path: Path) -> Iterator[socket.socket]:
    """A listening Unix socket at `path` for root alone: its mode, 0600, keeps others out, and who is at the other end
    is asked of the kernel, which holds even where somebody changed the mode.

    Bound under another name and moved into place: so it takes the place of one that a killed daemon left behind, and is
    never there with other rights. At the end it is removed, unless a newer daemon has put its own there.

    Raises SocketPathTooLong, and OSError when it can't be had.
    """
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise SocketPathTooLong(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = path.with_name(f".{os.getpid()}")
    hidden.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(hidden))
        hidden.chmod(0o600)
        listener.listen(128)
        listener.setblocking(False)
        mine = hidden.stat()
        hidden.rename(path)
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), mine):
                    path.unlink()


def peer_uid(connection: socket.socket) -> int:
    """The uid of the process at the other end, as it was when it connected."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid)


def is_admitted(uid: int) -> bool:
    """Root, for the kubelet, and whoever runs the daemon."""
    return uid in (0, os.geteuid())
