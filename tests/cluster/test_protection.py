"""The order of goodbyes: whatever is deleted first, data goes last."""

from contract import names
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.sandbox.workloads import Namespace, claim, pod
from tests.waiting import until


async def test_a_volume_deleted_under_a_pod_keeps_its_data_until_the_claim_goes(namespace: Namespace) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi"))
    script = "echo kept > /data/file; exec sleep infinity"
    created = await namespace.create(PODS, pod("user", {"/data": "data"}, script=script))
    running = await namespace.until_running("user")
    node = namespace.sandbox.node_of(running)
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    file = node.volume_folder(created["metadata"]["uid"], volume) / "file"
    await until(file.exists, what="the pod has written")
    api = namespace.sandbox.api

    await api.delete(VOLUMES, volume)
    await namespace.delete(CLAIMS, "data")
    for resource, name in ((VOLUMES, volume), (CLAIMS, "data")):
        body = await namespace.get(resource, name) if resource is CLAIMS else await api.get(resource, name)
        assert "deletionTimestamp" in body["metadata"]
    # The daemon has seen it when it has seen what came after it.
    await namespace.create(CLAIMS, claim("later", "16Mi"))
    await namespace.create(PODS, pod("later", {"/data": "later"}, nodeSelector={names.HOSTNAME_LABEL: node.hostname}))
    await namespace.until_running("later")
    assert file.read_text() == "kept\n"
    assert (node.data / "loop" / f"{volume}.img").exists()
    assert names.FINALIZER in (await api.get(VOLUMES, volume))["metadata"]["finalizers"]

    await namespace.delete(PODS, "user")
    await namespace.until_gone(PODS, "user")
    await namespace.until_gone(VOLUMES, volume)
    assert not (node.data / "loop" / f"{volume}.img").exists()
