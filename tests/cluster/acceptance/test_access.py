"""How pods may use a volume: together, read-only, and by group."""

from typing import Any

from kube.resources import CLAIMS, PODS
from tests.cluster.acceptance.trial import Trial
from tests.cluster.conftest import ClassLike
from tests.sandbox.workloads import claim, pod

_ANSWER = """
echo {me} > /data/{me}
until grep -q {other} /data/{other} 2>/dev/null; do sleep 0.1; done
echo read > /data/{other}-was-read
until test -e /data/{me}-was-read; do sleep 0.1; done
"""
"""Ends only when each pod has seen what the other wrote while both ran."""


def read_only(body: dict[str, Any]) -> dict[str, Any]:
    """A pod whose claims are read-only, not only its containers' mounts."""
    for volume in body["spec"]["volumes"]:
        volume["persistentVolumeClaim"]["readOnly"] = True
    return body


async def test_two_pods_share_one_claim(namespace: Trial, class_like: ClassLike) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    for me, other in (("ping", "pong"), ("pong", "ping")):
        await namespace.create(PODS, pod(me, {"/data": "data"}, script=_ANSWER.format(me=me, other=other)))
    nodes = {(await namespace.until_succeeded(name))["spec"]["nodeName"] for name in ("ping", "pong")}
    assert len(nodes) == 1


async def test_a_read_only_pod_reads_and_does_not_write(namespace: Trial, class_like: ClassLike) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    await namespace.run("writer", "echo kept > /data/file")
    script = "grep -q kept /data/file; if touch /data/mine; then exit 1; fi"
    await namespace.create(PODS, read_only(pod("reader", {"/data": "data"}, script=script)))
    await namespace.until_succeeded("reader")


async def test_a_claim_that_is_only_read_is_served(namespace: Trial, class_like: ClassLike) -> None:
    """That nobody writes is for its pods to say: the access mode alone does not reach the container."""
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like(), accessModes=["ReadOnlyMany"]))
    script = "ls /data; if touch /data/mine; then exit 1; fi"
    await namespace.create(PODS, read_only(pod("reader", {"/data": "data"}, script=script)))
    await namespace.until_succeeded("reader")


async def test_a_group_may_write(namespace: Trial, class_like: ClassLike) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", class_like()))
    security = {"fsGroup": 4242, "runAsUser": 1000, "runAsGroup": 1000}
    script = "touch /data/mine; ls -ln /data/mine | awk '{ exit !($3 == 1000 && $4 == 4242) }'"
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=script, securityContext=security))
    await namespace.until_succeeded("user")
