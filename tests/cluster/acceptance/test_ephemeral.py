"""Volumes that a pod brings along and takes with it: generic ephemeral volumes, on any kind of driver."""

from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster.acceptance.trial import Trial
from tests.sandbox.workloads import Json, claim, pod


def with_scratch(name: str, script: str) -> Json:
    """A pod with 16 MiB of its own, at /data."""
    body = pod(name, {"/data": "scratch"}, script=script)
    body["spec"]["volumes"] = [
        {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": claim("", "16Mi")["spec"]}}}
    ]
    return body


async def test_a_volume_comes_and_goes_with_its_pod(namespace: Trial) -> None:
    script = "grep -q ' /data ext4 rw' /proc/mounts; echo kept > /data/file; grep -q kept /data/file"
    await namespace.create(PODS, with_scratch("user", script))
    await namespace.until_succeeded("user")
    volume = await namespace.until_bound("user-scratch")
    assert volume["spec"]["capacity"]["storage"] == "16Mi"

    await namespace.delete(PODS, "user")
    await namespace.until_gone(CLAIMS, "user-scratch")
    await namespace.until_gone(VOLUMES, volume["metadata"]["name"])


async def test_another_ones_claim_of_that_name_is_not_the_pods(namespace: Trial) -> None:
    await namespace.create(CLAIMS, claim("user-scratch", "16Mi"))
    await namespace.create(PODS, with_scratch("user", "exec sleep infinity"))
    whose = f"PVC {namespace.name}/user-scratch was not created for pod {namespace.name}/user (pod is not owner)"
    assert await namespace.until_event("user", "FailedBinding") == f"ephemeral volume scratch: {whose}"
    await namespace.until_event("user", "FailedScheduling", whose)
    assert (await namespace.get(PODS, "user"))["status"].get("phase") == "Pending"
