"""The acceptance tests on a cluster that was handed to them, as `make acceptance` runs them: they use that one, leave
nothing in it, and say what to do when it can't be tested."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import capacity, names
from contract.capacity import Capacity
from contract.volume import CSI
from kube.client import Cluster
from kube.resources import CAPACITIES, CLAIMS, CLASSES, DRIVERS, SNAPSHOT_CLASSES, VOLUMES, Resource
from tests.cluster.acceptance.preflight import CLASSES_SHIPPED, Unfit, check
from tests.cluster.acceptance.trial import Trial
from tests.cluster.conftest import MakeClass
from tests.forkserver import REPOSITORY
from tests.sandbox import snapshots
from tests.sandbox.apiserver.process import ServerProcess
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import NAMESPACES, Json, claim, storage_class
from tests.waiting import NeverHappened

_FOLDER = "tests/cluster/acceptance"
_QUICK = f"{_FOLDER}/test_access.py::test_two_pods_share_one_claim[csi]"


async def run_pytest(*arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments),
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def refusal(kubeconfig: Path) -> str:
    """What is said instead of running any test."""
    code, output = await run_pytest(_FOLDER, "--kubeconfig", str(kubeconfig))
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert "Traceback" not in output
    return output


async def volumes_made(api: Cluster, since: str) -> list[Json]:
    """The PersistentVolumes that were made after a version of their list."""
    watched = api.watch(VOLUMES, resource_version=since, timeout_seconds=1)
    return [body async for kind, body in watched if kind == "ADDED"]


async def version(api: Cluster) -> str:
    """Of the list of PersistentVolumes, as it is now."""
    [page] = [page async for page in api.pages(VOLUMES)]
    return page.resource_version


async def all_names(api: Cluster, resource: Resource) -> list[str]:
    return [body["metadata"]["name"] for body in await api.list(resource)]


async def test_they_use_the_cluster_that_they_are_given_and_leave_nothing(sandbox: Sandbox) -> None:
    before = await version(sandbox.api)
    code, output = await run_pytest(_QUICK, "--kubeconfig", str(sandbox.kubeconfig), "--volume-source", CSI)
    assert code == 0, output
    assert "1 passed" in output
    made = await volumes_made(sandbox.api, before)
    assert [body["spec"]["claimRef"]["name"] for body in made] == ["data"]
    namespace = made[0]["spec"]["claimRef"]["namespace"]
    assert namespace.startswith("acceptance-")
    assert namespace not in await all_names(sandbox.api, NAMESPACES)
    assert made[0]["metadata"]["name"] not in await all_names(sandbox.api, VOLUMES)


async def test_the_environments_cluster_is_not_touched_unasked(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `make test` runs them on the machine of somebody whose KUBECONFIG is that of a cluster with users."""
    monkeypatch.setenv("KUBECONFIG", str(sandbox.kubeconfig))
    before = await version(sandbox.api)
    code, output = await run_pytest(_QUICK, "--volume-source", CSI)
    assert code == 0, output
    assert "1 passed" in output
    assert await volumes_made(sandbox.api, before) == []


async def test_a_test_that_fails_leaves_nothing_either(sandbox: Sandbox, make_class: MakeClass) -> None:
    keeping = await make_class(reclaimPolicy="Retain")
    before = await version(sandbox.api)
    async with Trial(sandbox.api, "busybox") as trial:
        await trial.create(CLAIMS, claim("data", "16Mi", keeping))
        with pytest.raises(AssertionError, match=r"the script of pod user failed: .*'exitCode': 3"):
            await trial.run("user", "exit 3")
    [volume] = await volumes_made(sandbox.api, before)
    for resource, name in ((VOLUMES, volume["metadata"]["name"]), (NAMESPACES, trial.name)):
        assert name not in await all_names(sandbox.api, resource)


async def test_what_never_comes_ends_a_test_with_what_was_seen_last(sandbox: Sandbox) -> None:
    clock = asyncio.get_running_loop().time
    async with Trial(sandbox.api, "busybox", 3) as trial:
        began = clock()
        await trial.create(CLAIMS, claim("data", "16Mi", "no-such-class"))
        await trial.until_event("data", "ProvisioningFailed")
        with pytest.raises(NeverHappened) as failure:
            await trial.until_bound("data")
        assert clock() - began < 10
        trial_is_over = "and with that the 3 s of all waiting are over; seen last: {"
        assert re.search(r"data is bound: still not so after [0-2](\.\d+)? s, " + trial_is_over, str(failure.value))
        assert '"phase":"Pending"' in str(failure.value)
        assert "ProvisioningFailed: " in str(failure.value)
        with pytest.raises(NeverHappened, match=r"Nothing on data with '': still not so after 0 s, and with that"):
            await trial.until_event("data", "Nothing")
    assert trial.name not in await all_names(sandbox.api, NAMESPACES), "cleaning has time of its own"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """An API server of a cluster in which nothing is installed."""
    process = ServerProcess(tmp_path_factory.mktemp("empty"))
    process.start()
    yield process
    assert process.stop() == 0


async def test_a_missing_cluster_is_reported_as_such(tmp_path: Path, empty: ServerProcess) -> None:
    absent = tmp_path / "absent"
    assert f"kubeconfig {absent} can't be used" in await refusal(absent)
    silent = tmp_path / "silent"
    silent.write_text(empty.kubeconfig.read_text().replace(f":{empty.port}", ":1"))
    assert f"try `kubectl --kubeconfig {silent} get nodes`" in await refusal(silent)


async def test_what_is_not_installed_is_named_with_the_remedy(empty: ServerProcess) -> None:
    """Step by step, as a person would follow what is said."""
    path = str(empty.kubeconfig)
    message = f"there is no CSIDriver {names.PROVISIONER} in this cluster: install elastic-local first"
    assert message in await refusal(empty.kubeconfig)
    async with await Cluster.connect(path) as api:
        driver = {"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": names.PROVISIONER}}
        await api.create(DRIVERS, {**driver, "spec": {"storageCapacity": True}})
        for name in CLASSES_SHIPPED:
            with pytest.raises(Unfit, match=f"there is no StorageClass {name}, which .*: `kubectl apply -f"):
                await check(path)
            await api.create(CLASSES, storage_class(name))
        with pytest.raises(
            Unfit, match="no daemon publishes capacity for class elastic-local: `kubectl -n elastic-local"
        ):
            await check(path)
        await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": names.NAMESPACE}})
        room = Capacity("node-a", "node-a", "elastic-local", "loop", 1 << 30, 100 << 20, 1)
        published = await api.create(CAPACITIES, capacity.manifest(room, names.NAMESPACE, None))
        with pytest.raises(Unfit, match="the tests need 512Mi on one node, and the most that any has left is 100Mi"):
            await check(path)
        name = published["metadata"]["name"]
        await api.patch(CAPACITIES, name, {"capacity": "1Gi"}, names.NAMESPACE)
        await check(path)
        with pytest.raises(Unfit, match=r"has no volumesnapshotcontents.*: install the kinds of snapshots first"):
            await check(path, snapshots=True)
        await snapshots.install(api)
        await api.create(SNAPSHOT_CLASSES, snapshots.snapshot_class("elastic-local", driver="example.com"))
        with pytest.raises(Unfit, match="there is no VolumeSnapshotClass elastic-local: deploy components/snapshots"):
            await check(path, snapshots=True)
        await api.patch(SNAPSHOT_CLASSES, "elastic-local", {"driver": names.CSI_DRIVER})
        await check(path, snapshots=True)
