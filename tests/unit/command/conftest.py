import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.csi import server


@pytest.fixture
def kubelet_root() -> Iterator[Path]:
    """Below it the longer of the two sockets has the longest path that a socket may have."""
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        root = Path(base, "k" * (106 - len(str(server.registration_socket(Path(base))))))
        assert len(str(server.registration_socket(root))) == 107
        yield root
