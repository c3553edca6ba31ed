"""Opening what lies at a path of which no part is a link, in one call.

Source: openat2(2). Needs Linux 5.6.
"""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

_OPENAT2 = 437
"""On every architecture that Kubernetes runs on; C libraries have no wrapper."""
_AT_FDCWD = -100
_RESOLVE_NO_SYMLINKS = 0x04


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_at(path: str, flags: int) -> int:
    """The file descriptor. Raises OSError: ELOOP for a link anywhere on the path, as well as at its end."""
    how = _How(flags=flags, resolve=_RESOLVE_NO_SYMLINKS)
    descriptor = _libc.syscall(
        ctypes.c_long(_OPENAT2),
        _AT_FDCWD,
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return int(descriptor)
