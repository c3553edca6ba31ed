"""The check-up of what claims ask of a cluster: StorageClasses and their Secrets, the CSIDriver object, and the driver
on each node. What is read is read first, the verdicts are pure functions of it."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from command.checkup import Finding, counted, first, ok, unknown, wrong
from contract import names, parameters
from contract.parameters import ParameterError, SecretReference
from contract.volume import CSI
from kube.client import Cluster
from kube.errors import ApiError, NotFound
from kube.records import Node, StorageClass
from kube.resources import CSI_NODES, DRIVERS, SECRETS

Json = dict[str, Any]


async def look_at_driver_object(cluster: Cluster) -> Finding:
    check = f"CSIDriver {names.PROVISIONER}"
    try:
        body = await cluster.get(DRIVERS, names.PROVISIONER)
    except ApiError as error:
        why = f"without it the scheduler does not know how much capacity a node has ({error})"
        return wrong(check, why, "kubectl apply -f deploy/base/csidriver.yaml")
    return driver_object(body["spec"])


_DRIVER_FIELDS: tuple[tuple[str, object, str], ...] = (
    ("storageCapacity", True, "the scheduler does not look at the capacity of nodes"),
    ("attachRequired", False, "pods wait for CSI volumes to be attached, which nobody does"),
    ("volumeLifecycleModes", ["Persistent"], "pods may ask for inline volumes, which no daemon mounts"),
)


def driver_object(spec: Json) -> Finding:
    check = f"CSIDriver {names.CSI_DRIVER}"
    for field, wanted, consequence in _DRIVER_FIELDS:
        if spec.get(field) != wanted:
            return wrong(
                check,
                f"its {field} is not {wanted}, so {consequence}",
                "kubectl replace --force -f deploy/base/csidriver.yaml",
            )
    return ok(check, "as it should be")


async def look_at_registration(
    cluster: Cluster, classes: Sequence[StorageClass], publishing: Collection[str], nodes: Sequence[Node]
) -> Finding:
    """`publishing`: the nodes that publish capacity, by the values of their labels."""
    try:
        registered = {
            body["metadata"]["name"]
            for body in await cluster.list(CSI_NODES)
            if any(each.get("name") == names.CSI_DRIVER for each in (body.get("spec") or {}).get("drivers") or ())
        }
    except ApiError as error:
        return unknown("CSI driver", f"the API server does not list the CSINodes: {error}", "ask as an administrator")
    serving = {node.name for node in nodes if names.node_label_value(node.name) in publishing}
    return registration(classes, serving, registered)


def registration(classes: Iterable[StorageClass], serving: Collection[str], registered: Collection[str]) -> Finding:
    """`serving`: the nodes with a daemon; `registered`: those whose kubelet knows the CSI driver."""
    check = "CSI driver"
    absent = sorted(set(serving) - set(registered))
    if not absent:
        return ok(check, f"registered on {counted(len(serving), 'node')}")
    message = f"the kubelet has not registered it on {first(absent)}"
    remedy = "elastic-local doctor in the daemon's pod of that node; is CSI=false set there?"
    wanted = any(each.parameters.get(parameters.VOLUME_SOURCE) == CSI for each in classes)
    if not wanted:
        return unknown(check, f"{message}, and no class asks for it", remedy)
    return wrong(check, f"{message}: pods with CSI volumes don't start there", remedy)


def storage_classes(ours: Sequence[StorageClass]) -> list[Finding]:
    check = "StorageClasses"
    if not ours:
        remedy = "kubectl apply -f deploy/base/storageclasses.yaml"
        return [wrong(check, f"none has the provisioner {names.PROVISIONER}", remedy)]
    blind = sorted(each.name for each in ours if each.provisioner == names.PROVISIONER_OF_ELASTIC)
    if blind:
        return [
            unknown(
                check,
                f"{', '.join(blind)}: served, but the scheduler can't see capacity for the old name of the provisioner",
                f"for new claims use a class with the provisioner {names.PROVISIONER}",
            )
        ]
    return [ok(check, ", ".join(sorted(each.name for each in ours)))]


async def look_at_secrets(cluster: Cluster, storage_class: StorageClass) -> list[Finding]:
    """Whether the kubelet will find what the class names for its volumes. The passphrase itself is not looked at."""
    try:
        named = parameters.node_secrets(storage_class.parameters)
    except ParameterError as error:
        remedy = "make the class anew: parameters can't be changed"
        return [wrong(_encryption(storage_class), str(error), remedy)]
    if named is None:
        return []
    findings = []
    for reference in dict.fromkeys(each for each in (named.stage, named.expand) if each):
        try:
            found: ApiError | set[str] = set((await cluster.get(SECRETS, reference.name, reference.namespace))["data"])
        except KeyError:
            found = set()
        except ApiError as error:
            found = error
        findings.append(secret(storage_class, reference, found, opens=reference == named.stage))
    return findings


def _encryption(storage_class: StorageClass) -> str:
    return f"encryption: StorageClass {storage_class.name}"


def secret(
    storage_class: StorageClass, reference: SecretReference, found: ApiError | set[str], *, opens: bool
) -> Finding:
    """`found`: the keys that a Secret has which an encrypted class names, or why nobody can say. `opens`: it is the one
    with the passphrase."""
    check = _encryption(storage_class)
    make = (
        f"kubectl create secret generic {reference.name} --namespace {reference.namespace} "
        f"--from-file={parameters.SECRET_KEY}=FILE"
    )
    if isinstance(found, NotFound):
        return wrong(check, f"there is no Secret {reference}, which its volumes need", make)
    if isinstance(found, ApiError):
        return unknown(check, f"Secret {reference} can't be read: {found}", "ask as somebody who may")
    if opens and parameters.SECRET_KEY not in found:
        return wrong(check, f"Secret {reference} has no {parameters.SECRET_KEY}", make)
    return ok(check, f"Secret {reference} is there")
