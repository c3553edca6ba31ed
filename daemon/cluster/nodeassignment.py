"""What ties a PersistentVolume to this node: taken at the first mount if nobody chose a node, let go of at the end.

Label, pool, finalizer and affinity are set in one patch, so there is no half of it, and the patch names the version
that it was decided for: of two nodes that mount at the same time the API server lets one win, because an affinity can
be set once only. The finalizer is what keeps the object until this node has given the space back. Other people's
finalizers are kept in both directions.
"""

import contextlib

from contract import names
from contract import volume as contract_volume
from contract.volume import PersistentVolume, Pin
from daemon.errors import Refused
from kube.client import VOLUMES, Cluster, Conflict, Invalid, Json, NotFound
from kube.records import Node

_TRIES = 5
"""Others write to a young PersistentVolume too (the binder, above all); each try reads it again."""


def is_assigned(volume: PersistentVolume, node: Node) -> bool:
    """To this node, in every way: label, affinity and finalizer came together, so less than all of them is the work of
    somebody else."""
    return (
        volume.node_label == names.node_label_value(node.name)
        and volume.hostnames == (node.hostname,)
        and names.FINALIZER in volume.finalizers
    )


def other_node(volume: PersistentVolume, node: Node) -> str:
    """The node that a volume lives on when it isn't this one, else empty."""
    if volume.hostnames and volume.hostnames != (node.hostname,):
        return ", ".join(volume.hostnames)
    return volume.node_label if volume.node_label not in ("", names.node_label_value(node.name)) else ""


def pinning_patch(volume: PersistentVolume, pin: Pin) -> Json:
    body = contract_volume.pinning(pin)
    body["metadata"] |= {
        "uid": volume.uid,
        "resourceVersion": volume.resource_version,
        "finalizers": list(dict.fromkeys((*volume.finalizers, names.FINALIZER))),
    }
    return body


async def pin(cluster: Cluster, volume: PersistentVolume, node: Node, pool: str) -> PersistentVolume:
    """The PersistentVolume, tied to this node. Raises Refused when it lives, or just came to live, elsewhere."""
    current: PersistentVolume | None = volume
    for _ in range(_TRIES):
        if current is None or current.uid != volume.uid or (current.deleting and not is_assigned(current, node)):
            raise Refused(f"volume {volume.name} is being deleted")
        if other := other_node(current, node):
            raise Refused(f"volume {volume.name} lives on node {other} and can't be mounted on {node.name}")
        if is_assigned(current, node):
            return current
        try:
            patch = pinning_patch(current, Pin(node.name, node.hostname, pool))
            current = contract_volume.read(await cluster.patch(VOLUMES, volume.name, patch))
        except Conflict:
            current = await _read(cluster, volume.name)
        except Invalid as error:
            raise Refused(
                f"volume {volume.name} can't be tied to node {node.name}, its node affinity is set already: {error}"
            ) from error
        except NotFound:
            current = None
    raise Refused(f"volume {volume.name} keeps changing while it is being tied to node {node.name}: it is tried again")


def is_remembered(volume: PersistentVolume, size: int) -> bool:
    """Whether the PersistentVolume says that its volume was made and has that many bytes. One that never grew was made
    with what it was given, whether or not it says so."""
    return volume.made and size <= (volume.actual or volume.given or volume.size)


async def remember_made(cluster: Cluster, volume: PersistentVolume, size: int) -> None:
    """Says on the PersistentVolume that its volume is ready, and how many bytes it has. To be done before anybody can
    write to it, and again when it grew."""
    if not is_remembered(volume, size):
        with contextlib.suppress(NotFound):
            await cluster.patch(VOLUMES, volume.name, contract_volume.making(volume, size))


async def release(cluster: Cluster, volume: PersistentVolume) -> None:
    """Takes our finalizer off. An object that is gone already is no error. Raises Conflict when it changed since it was
    read: what is to be done may have changed too (its policy, for one), so the caller decides anew."""
    with contextlib.suppress(NotFound):
        await cluster.patch(VOLUMES, volume.name, contract_volume.releasing(volume))


async def _read(cluster: Cluster, name: str) -> PersistentVolume | None:
    try:
        return contract_volume.read(await cluster.get(VOLUMES, name))
    except NotFound:
        return None
