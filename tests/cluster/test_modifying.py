"""The I/O limits of a volume that exists are changed, by the VolumeAttributesClass that its claim names."""

import secrets
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from contract import names
from contract.volume import CSI
from host import mounting
from kube.errors import Invalid
from kube.resources import ATTRIBUTES_CLASSES, CLAIMS, CLASSES, PODS
from tests.sandbox.workloads import Json, Namespace, claim, pod, storage_class
from tests.waiting import until


@pytest.fixture
def cgroups(tmp_path: Path) -> Iterator[Path]:
    """In place of the control groups of this machine, which has the kubelet of no cluster: what the daemon writes there
    the kernel takes in tests/node/test_io_limits.py."""
    (tmp_path / "cgroup.controllers").write_text("cpu io memory")
    subprocess.run(["mount", "--bind", tmp_path, "/sys/fs/cgroup"], check=True)
    yield tmp_path
    mounting.unmount(Path("/sys/fs/cgroup"))


@pytest_asyncio.fixture(loop_scope="session")
async def attributes_classes(shaken: Namespace) -> AsyncIterator[dict[str, str]]:
    """Names of classes, by what they are called here. `late` is made later."""
    api, unique = shaken.sandbox.api, secrets.token_hex(4)
    classes = {each: f"{each}-{unique}" for each in ("gold", "silver", "wrong", "late")}
    await api.create(ATTRIBUTES_CLASSES, attributes_class(classes["gold"], readIOPS="2k"))
    await api.create(ATTRIBUTES_CLASSES, attributes_class(classes["silver"], readBandwidth="1Mi", readIOPS="max"))
    await api.create(ATTRIBUTES_CLASSES, attributes_class(classes["wrong"], fsType="xfs"))
    yield classes
    for body in await api.list(ATTRIBUTES_CLASSES):
        await api.delete(ATTRIBUTES_CLASSES, body["metadata"]["name"])


def attributes_class(name: str, **parameters: str) -> Json:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "VolumeAttributesClass",
        "metadata": {"name": name},
        "driverName": names.CSI_DRIVER,
        "parameters": parameters,
    }


async def test_limits_of_a_volume_are_changed_while_its_pod_runs(
    shaken: Namespace, cgroups: Path, attributes_classes: dict[str, str]
) -> None:
    """Also while the daemon is away; a class that it can't have is told, and one that is not there waited for."""
    api = shaken.sandbox.api
    made = await api.create(
        CLASSES, storage_class(f"limited-{secrets.token_hex(4)}", volume_source=CSI, parameters={"writeIOPS": "600"})
    )
    gold, late = attributes_classes["gold"], attributes_classes["late"]
    body = claim("data", "16Mi", made["metadata"]["name"], volumeAttributesClassName=gold)
    await shaken.create(CLAIMS, body)
    on = {names.HOSTNAME_LABEL: "node-a"}
    uid = (await shaken.create(PODS, pod("user", {"/data": "data"}, nodeSelector=on)))["metadata"]["uid"]
    limits = cgroups / "kubepods" / "burstable" / f"pod{uid}" / "io.max"
    limits.parent.mkdir(parents=True)
    limits.touch()
    await shaken.until_running("user")
    assert limits.read_text().endswith(" rbps=max wbps=max riops=2000 wiops=600\n")
    volume = await shaken.until_bound("data")
    assert volume["spec"]["volumeAttributesClassName"] == gold
    assert (await shaken.get(CLAIMS, "data"))["status"]["currentVolumeAttributesClassName"] == gold

    await name_class(shaken, attributes_classes["silver"])
    # As a file of the kernel it would be replaced whole.
    await until(lambda: " rbps=1048576 wbps=max riops=max wiops=600\n" in limits.read_text(), what="it is limited anew")
    await shaken.until_event("data", "VolumeModifySuccessful", attributes_classes["silver"])
    assert (await shaken.until_bound("data"))["spec"]["volumeAttributesClassName"] == attributes_classes["silver"]
    with pytest.raises(Invalid, match="update to nil is forbidden"):
        await api.patch(CLAIMS, "data", {"spec": {"volumeAttributesClassName": None}}, shaken.name)

    await name_class(shaken, attributes_classes["wrong"])
    told = await shaken.until_event("data", "VolumeModifyFailed", "'fsType' is 'xfs'")
    assert "readBandwidth writeBandwidth readIOPS writeIOPS" in told
    await shaken.until(CLAIMS, "data", lambda body: step_of(body) == "Infeasible", what="says so")
    await name_class(shaken, late)
    await shaken.until(CLAIMS, "data", lambda body: step_of(body) == "Pending", what="waits for its class")

    daemon = shaken.sandbox.nodes["node-a"].daemon
    await daemon.stop()
    limits.write_text("")
    await api.create(ATTRIBUTES_CLASSES, attributes_class(late, readBandwidth="2Mi"))
    await shaken.until(CLAIMS, "data", lambda body: step_of(body) == "", what="has its class")
    await daemon.start()
    await until(
        lambda: " rbps=2097152 wbps=max riops=max wiops=600\n" in limits.read_text(), what="it is limited still"
    )
    after = await shaken.until_running("user")
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    await shaken.delete(PODS, "user")
    await shaken.until_gone(PODS, "user")
    await api.delete(CLASSES, made["metadata"]["name"])


async def name_class(namespace: Namespace, name: str) -> None:
    await namespace.api.patch(CLAIMS, "data", {"spec": {"volumeAttributesClassName": name}}, namespace.name)


def step_of(body: Json) -> str:
    """How far the claim's change is."""
    return str((body["status"].get("modifyVolumeStatus") or {}).get("status", ""))
