"""The cluster's volumes, asked of each daemon by kubectl."""

import sys
from pathlib import Path
from typing import Any, cast

import pytest

from command import nodesbyexec
from kube.client import Cluster

_KUBECTL = f"""#!{sys.executable} -IS
import sys
words = " ".join(sys.argv[1:])
if "daemon-dead" in words:
    sys.exit("error: container is not running")
if "daemon-odd" in words:
    print("surprise")
    sys.exit()
pod, _, command = words.partition(" -- ")
assert pod == "--namespace elastic-local exec daemon-well --container daemon", words
assert command == "elastic-local volumes --local --output json", words
print('[{{"volume": "pvc-1", "uid": "u", "node": "well", "state": "ready", "size": 5, "pods": ["p"]}}]')
"""


class Daemons:
    async def list(self, *_: Any, **selectors: str) -> list[dict[str, Any]]:
        assert selectors == {"label_selector": nodesbyexec.DAEMONS}
        return [pod("well"), pod("dead"), pod("odd"), pod("starting", "Pending")]


def pod(node: str, phase: str = "Running") -> dict[str, Any]:
    metadata = {"namespace": "elastic-local", "name": f"daemon-{node}", "uid": node}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase}}


async def test_nodes_that_do_not_answer_are_told_and_nothing_is_guessed_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubectl").write_text(_KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    answers = await nodesbyexec.ask(cast(Cluster, Daemons()), "elastic-local", None)
    assert [(row.volume, row.node, row.pods) for row in answers.rows] == [("pvc-1", "well", ("p",))]
    assert answers.nodes == {"well"}
    assert answers.failures.keys() == {"dead", "odd"}
    assert "container is not running" in answers.failures["dead"]
