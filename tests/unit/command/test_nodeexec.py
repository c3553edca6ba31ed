"""The cluster's volumes, asked of each daemon by kubectl."""

import asyncio
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from command import nodeexec
from command.options import ApiAccess
from command.running import Stop
from kube.client import Cluster
from tests import waiting

_KUBECTL = f"""#!{sys.executable} -IS
import sys
words = " ".join(sys.argv[1:])
if "daemon-dead" in words:
    sys.exit("error: container is not running")
if "daemon-odd" in words:
    print("surprise")
    sys.exit()
pod, _, command = words.partition(" -- ")
assert pod == "--context far --namespace elastic-local exec daemon-well --container daemon", words
assert command == "elastic-local volumes --local --output json", words
print('[{{"volume": "pvc-1", "uid": "u", "node": "well", "state": "ready", "size": 5, "pods": ["p"]}}]')
"""


class Daemons:
    async def list(self, *_: Any, **selectors: str) -> list[dict[str, Any]]:
        assert selectors == {"label_selector": nodeexec.DAEMONS}
        return [pod("well"), pod("dead"), pod("odd"), pod("starting", "Pending")]


def pod(node: str, phase: str = "Running") -> dict[str, Any]:
    metadata = {"namespace": "elastic-local", "name": f"daemon-{node}", "uid": node}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": phase}}


async def test_nodes_that_do_not_answer_are_reported_and_nothing_is_guessed_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubectl").write_text(_KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    answers = nodeexec.Answers()
    await nodeexec.ask(cast(Cluster, Daemons()), "elastic-local", ApiAccess(context="far"), answers)
    assert [(row.volume, row.node, row.pods) for row in answers.rows] == [("pvc-1", "well", ("p",))]
    assert answers.nodes == {"well"}
    assert answers.failures.keys() == {"dead", "odd"}
    assert "container is not running" in answers.failures["dead"]


_HANGS = f"""#!{sys.executable} -IS
import sys, time
if "daemon-dead" in sys.argv:
    time.sleep(600)
print("[]")
"""


async def test_nodes_that_hang_are_named_meanwhile_and_do_not_hold_up_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubectl").write_text(_HANGS)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(nodeexec, "_WHOLE", 5 * waiting.patience())
    answers = nodeexec.Answers()
    asking = asyncio.create_task(nodeexec.ask(cast(Cluster, Daemons()), "elastic-local", ApiAccess(), answers))
    assert str(answers) == "asking the cluster for its volumes and nodes"
    await waiting.until(lambda: answers.waiting == {"dead"}, what="the others have answered")
    assert str(answers) == "asking the nodes: 1 of 3 have not answered yet, dead"
    await asking
    assert (answers.nodes, set(answers.failures), answers.waiting) == ({"well", "odd"}, {"dead"}, set())
    assert "no answer in the " in answers.failures["dead"]


_ADOPT = f"""#!{sys.executable} -IS
import sys
words = " ".join(sys.argv[1:])
assert words.startswith("--namespace elastic-local exec daemon-well --container daemon -- elastic-local "), words
if "adopt" in words:
    assert words.endswith(" adopt pvc-1 --yes --output json"), words
    print("[]")
else:
    print('[{{"volume": "pvc-1", "uid": "u", "node": "well", "state": "ready", "size": 5, "pods": []}}]')
"""


async def test_one_node_is_asked_and_told_in_the_pod_of_its_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kubectl").write_text(_ADOPT)
    (tmp_path / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    pods = nodeexec.DaemonPods(cast(Cluster, Daemons()), "elastic-local", ApiAccess())
    assert [row.volume for row in await pods.rows("well")] == ["pvc-1"]
    await pods.adopt("well", "pvc-1")
    with pytest.raises(Stop, match="no daemon runs on node starting"):
        await pods.rows("starting")


async def test_without_kubectl_no_node_can_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Stop, match="no kubectl on your PATH"):
        await nodeexec.ask(cast(Cluster, Daemons()), "elastic-local", ApiAccess(), nodeexec.Answers())


class Elsewhere:
    """Pods of daemons, by namespace."""

    def __init__(self, *namespaces: str) -> None:
        self.namespaces = namespaces

    async def list(self, *_: Any, **__: str) -> list[dict[str, Any]]:
        return [{**pod(each), "metadata": {"namespace": each, "name": "d", "uid": each}} for each in self.namespaces]


@pytest.mark.parametrize(
    ("given", "daemons", "expected"),
    [
        ("elastic-local", ("storage-system", "storage-system"), "storage-system"),
        ("elastic-local", ("elastic-local",), "elastic-local"),
        ("elastic-local", ("one", "two"), "elastic-local"),
        ("elastic-local", (), "elastic-local"),
        ("named", ("storage-system",), "named"),
    ],
)
async def test_where_the_daemons_are_is_where_commands_look(
    given: str, daemons: tuple[str, ...], expected: str
) -> None:
    assert await nodeexec.namespace_of(cast(Cluster, Elsewhere(*daemons)), given) == expected
