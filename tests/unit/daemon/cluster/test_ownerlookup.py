from pathlib import Path

import pytest

from daemon.cluster import ownerlookup
from daemon.cluster.ownerlookup import ApiOwnerLookup
from daemon.errors import ApiUnavailable
from tests.unit.kube.apiserver import ApiServer, connected, hang


async def test_an_api_server_that_does_not_answer_is_named_as_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownerlookup, "_PATIENCE", 0.2)
    server = ApiServer([])
    server.next("GET /api/v1/persistentvolumes/pv", hang)
    async with connected(server, tmp_path) as cluster:
        with pytest.raises(ApiUnavailable, match=r"until it can: it does not answer$"):
            await ApiOwnerLookup(cluster).owner("pv")
