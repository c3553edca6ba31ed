"""What the callout talks to in its tests: says what it is told to."""

import json
import socket
import threading
from pathlib import Path


class Daemon:
    """Answers one connection after the other on a Unix socket with the bytes it is told to."""

    def __init__(self, path: Path) -> None:
        self.reply = b""
        self.in_pieces = False
        self.requests: list[bytes] = []
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def says(self, body: str | bytes) -> None:
        self.reply = b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n" + (body.encode() if isinstance(body, str) else body)

    @property
    def words(self) -> list[str]:
        """Those of the only request that came."""
        (request,) = self.requests
        words: list[str] = json.loads(request.partition(b"\r\n\r\n")[2])["argv"]
        return words

    def close(self) -> None:
        self.may_answer.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(_request(connection))
                self.asked.set()
                self.may_answer.wait()
                try:
                    for piece in [bytes([byte]) for byte in self.reply] if self.in_pieces else [self.reply]:
                        connection.sendall(piece)
                except BrokenPipeError:
                    continue  # the callout had read enough, or was late


def _request(connection: socket.socket) -> bytes:
    request = b""
    while not _whole(request):
        piece = connection.recv(65536)
        if not piece:
            break
        request += piece
    return request


def _whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
