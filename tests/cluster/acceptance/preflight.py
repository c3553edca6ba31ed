"""Whether a cluster can be tested at all, asked once and answered with what to do, instead of by every test in turn."""

from command.snapshotcheckup import listed
from contract import capacity, names, quantity
from kube.client import Cluster
from kube.errors import ApiError, NotFound
from kube.kubeconfig import ConfigurationError
from kube.resources import CAPACITIES, CLASSES, DRIVERS, SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS, SNAPSHOTS

CLASSES_SHIPPED = ("elastic-local", "elastic-local-xfs", "elastic-local-thin")
SNAPSHOT_CLASS = "elastic-local"
_NEEDED = "512Mi"
"""Free on one node: more than what any test takes at a time."""


class Unfit(Exception):
    """The tests would fail for a reason that is not theirs to find; the text says what to do."""


async def check(kubeconfig: str, *, snapshots: bool = False) -> None:
    """Changes nothing. `snapshots`: they are to be tested, too. Raises Unfit."""
    try:
        async with await Cluster.connect(kubeconfig, program="acceptance") as cluster:
            await _is_installed(cluster)
            await _has_room(cluster)
            if snapshots:
                await _has_snapshots(cluster)
    except ConfigurationError as error:
        raise Unfit(f"{error}: give the path of a kubeconfig file that kubectl can use") from error
    except ApiError as error:
        remedy = f"try `kubectl --kubeconfig {kubeconfig} get nodes`, as an administrator of the cluster"
        raise Unfit(f"the cluster of {kubeconfig} does not answer as it should: {error}: {remedy}") from error


async def _is_installed(cluster: Cluster) -> None:
    try:
        await cluster.get(DRIVERS, names.PROVISIONER)
    except NotFound:
        remedy = "install elastic-local first (`make deploy`, docs/install.md)"
        raise Unfit(f"there is no CSIDriver {names.PROVISIONER} in this cluster: {remedy}") from None
    for name in CLASSES_SHIPPED:
        try:
            await cluster.get(CLASSES, name)
        except NotFound:
            remedy = "`kubectl apply -f deploy/base/storageclasses.yaml`"
            raise Unfit(f"there is no StorageClass {name}, which the tests use: {remedy}") from None


async def _has_room(cluster: Cluster) -> None:
    """No daemon, no published room: the scheduler places nothing."""
    published = [room for room in map(capacity.read, await cluster.list(CAPACITIES)) if room]
    rooms = [room.available for room in published if room.storage_class == CLASSES_SHIPPED[0]]
    if not rooms:
        remedy = "`kubectl -n elastic-local get pods` and `elastic-local doctor --cluster` say why"
        raise Unfit(f"no daemon publishes capacity for class {CLASSES_SHIPPED[0]}: {remedy}")
    if max(rooms) < quantity.parse(_NEEDED):
        largest = quantity.render(max(max(rooms), 0))
        raise Unfit(f"the tests need {_NEEDED} on one node, and the most that any has left is {largest}: make room")


async def _has_snapshots(cluster: Cluster) -> None:
    """Whether a snapshot-controller runs can't be seen everywhere: without one, the test says that it never came."""
    remedy = "docs/operations.md, Snapshots, or run without --snapshots"
    for kind in (SNAPSHOT_CONTENTS, SNAPSHOTS, SNAPSHOT_CLASSES):
        found = await listed(cluster, kind)
        if found is None:
            raise Unfit(f"the cluster has no {kind}: install the kinds of snapshots first ({remedy})")
    ours = {each["metadata"]["name"] for each in found or () if each["driver"] == names.CSI_DRIVER}
    if SNAPSHOT_CLASS not in ours:
        raise Unfit(f"there is no VolumeSnapshotClass {SNAPSHOT_CLASS}: deploy components/snapshots first ({remedy})")
