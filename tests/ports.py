"""Ports of the loopback address for servers that can't be asked which one the kernel gave them."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port that is the caller's as long as the context lasts, whether somebody listens on it or not.

    A socket stays bound to it. So the kernel gives it to nobody who asks for any port, neither to listen nor to connect
    from, while whoever asks for this one may listen: with SO_REUSEADDR, which asyncio sets, several sockets may be
    bound to a port of which at most one listens (socket(7))."""
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
