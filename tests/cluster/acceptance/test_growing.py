"""A claim that asks for more, seen from the pod. With xfs, as tests/cluster/test_growing.py says."""

import pytest

from kube.errors import Forbidden
from kube.resources import CLAIMS, PODS, VOLUMES
from tests.cluster.acceptance.trial import Trial
from tests.cluster.conftest import ClassLike, MakeClass
from tests.sandbox.workloads import claim, pod

_SEES = "test $(df -Pk /data | awk 'NR == 2 {{ print $2 }}') -gt {kib}"
"""A filesystem of more than so many KiB."""
_MORE_THAN_FITS_IN_300_MIB = _SEES.format(kib=320 * 1024)


async def until_asked_of_the_node(namespace: Trial, size: str) -> None:
    """The claim asks for so much, and the expand controller has left the work to the kubelet."""
    volume = (await namespace.until_bound("data"))["metadata"]["name"]
    await namespace.ask("data", size)
    await namespace.until(
        VOLUMES, volume, lambda body: body["spec"]["capacity"]["storage"] == size, what=f"is to have {size}"
    )


async def until_grown(namespace: Trial, size: str) -> None:
    await namespace.until(
        CLAIMS, "data", lambda body: body["status"]["capacity"]["storage"] == size, what=f"has {size}"
    )


async def test_a_pod_sees_its_volume_grow(namespace: Trial, class_like: ClassLike) -> None:
    await namespace.create(CLAIMS, claim("data", "300Mi", class_like("elastic-local-xfs")))
    script = f"echo kept > /data/file; until {_MORE_THAN_FITS_IN_300_MIB}; do sleep 0.1; done; grep -q kept /data/file"
    await namespace.create(PODS, pod("user", {"/data": "data"}, script=script))
    await namespace.until_running("user")
    await until_asked_of_the_node(namespace, "400Mi")
    await namespace.nudge("user")
    await namespace.until_succeeded("user")
    await until_grown(namespace, "400Mi")


async def test_a_volume_that_nobody_uses_has_grown_for_its_next_pod(namespace: Trial, class_like: ClassLike) -> None:
    await namespace.create(CLAIMS, claim("data", "300Mi", class_like("elastic-local-xfs")))
    await namespace.run("first", f"echo kept > /data/file; if {_MORE_THAN_FITS_IN_300_MIB}; then exit 1; fi")
    await until_asked_of_the_node(namespace, "400Mi")
    await namespace.run("second", f"grep -q kept /data/file; until {_MORE_THAN_FITS_IN_300_MIB}; do sleep 0.1; done")
    await until_grown(namespace, "400Mi")


async def test_a_refused_expansion_keeps_no_pod_from_starting_and_can_be_undone(
    namespace: Trial, class_like: ClassLike
) -> None:
    await namespace.create(CLAIMS, claim("data", "300Mi", class_like("elastic-local-xfs")))
    await namespace.run("first", "echo kept > /data/file")
    await namespace.ask("data", "900Ti")
    message = await namespace.until_event("data", "VolumeResizeFailed", "the claim asks for 900Ti")
    assert "it keeps the 300Mi that it has and grows by itself when there is space" in message
    await namespace.run("second", f"grep -q kept /data/file; if {_MORE_THAN_FITS_IN_300_MIB}; then exit 1; fi")
    await namespace.ask("data", "400Mi")
    await namespace.run("third", f"grep -q kept /data/file; until {_MORE_THAN_FITS_IN_300_MIB}; do sleep 0.1; done")
    await until_grown(namespace, "400Mi")


async def test_a_class_that_does_not_allow_it_refuses(namespace: Trial, make_class: MakeClass) -> None:
    await namespace.create(CLAIMS, claim("data", "16Mi", await make_class("Immediate")))
    await namespace.until_bound("data")
    with pytest.raises(Forbidden, match="must support resize"):
        await namespace.ask("data", "32Mi")
