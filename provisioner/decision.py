"""What is to be done for a claim: a pure function of the claim, its class and the free capacity of the nodes.

The order of the checks is that of the Kubernetes provisioning protocol: is the claim ours and unbound, has the
scheduler chosen a node, and only then whether it can be served. A claim that can't be is refused with a
message for its owner. One that could be served elsewhere is rescheduled: the scheduler looks at the nodes' capacity
again.

A claim may ask for a copy of another one, or of a snapshot. The copy is made by the node that has the source, from
disk to disk, so it lives there too. All that could make the copy fail for ever is refused here, before there is a
PersistentVolume, which can't be given another shape any more.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from contract import capacity, names, parameters, quantity
from contract.capacity import Capacity
from contract.filesystems import CLONABLE, RAW, is_clonable
from contract.parameters import ENCRYPTION, NodeSecrets, ParameterError, SecretReference, VolumeParameters
from contract.volume import BLOCK, CSI, FILESYSTEM, FLEX_VOLUME, Original
from kube.records import WAIT_FOR_FIRST_CONSUMER, Claim, Pod, StorageClass, VolumeAttributesClass
from provisioner.clonesource import NO_SOURCE, CloneSource

READ_WRITE_ONCE, READ_ONLY_MANY, READ_WRITE_MANY = "ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"
READ_WRITE_ONCE_POD = "ReadWriteOncePod"

_SETTLING_TIMEOUT = 5.0
"""Seconds that the snapshot controller gets to say of a snapshot what its content says already."""
_SETTLING_PERIOD = 0.5
PUBLISH_TIMEOUT = 5.0
"""Seconds that a chosen node gets to publish its capacity: its daemon may be about to, for a class made just now. The
scheduler looks once a second, and a pod that waits here could start elsewhere."""


@dataclass(frozen=True)
class ClassMissing:
    """The VolumeAttributesClass that a claim names is not there, and why."""

    why: str
    unread: bool = False
    """They are being read still: in a moment it is known."""


def volume_parameters(
    storage_class: StorageClass,
    claim: Claim,
    source: CloneSource,
    attributes: VolumeAttributesClass | ClassMissing | None = None,
) -> VolumeParameters:
    """What the class says of the claim's volume, and over it its VolumeAttributesClass. A copy takes from its source
    what its class does not say. Raises ParameterError."""
    asked = storage_class.parameters
    if source.filesystem not in ("", RAW) and not {parameters.FS_TYPE, parameters.CSI_FS_TYPE} & asked.keys():
        asked = {**asked, parameters.FS_TYPE: source.filesystem}
    parsed = parameters.parse(asked, storage_class.mount_options, block=claim.volume_mode == BLOCK)
    return limited(parsed, attributes) if isinstance(attributes, VolumeAttributesClass) else parsed


def limited(layout: VolumeParameters, attributes: VolumeAttributesClass) -> VolumeParameters:
    """What a volume becomes by a VolumeAttributesClass. Raises ParameterError."""
    if attributes.driver != names.CSI_DRIVER:
        raise ParameterError("driverName", attributes.driver, f"the driver of this volume is {names.CSI_DRIVER}")
    return parameters.limited(layout, attributes.parameters)


def clone_obstacle(
    claim: Claim, layout: VolumeParameters, source: CloneSource, secret: SecretReference | None = None
) -> str:
    """Why the copy can't be made as things are, empty when it can. `secret` is that of the claim's class."""
    if source.obstacle:
        return source.obstacle
    mode = BLOCK if source.filesystem == RAW else FILESYSTEM
    if mode != claim.volume_mode:
        return f"{source.text} has volumeMode {mode}: ask for the same"
    if not is_clonable(source.filesystem):
        return (
            f"{source.text} has {source.filesystem}, of which the kernel can't have two copies on one node: use "
            f"{' or '.join(CLONABLE)}"
        )
    if layout.filesystem != source.filesystem:
        return (
            f"{source.text} has {source.filesystem}, and a copy can't have {layout.filesystem}: use a class with the "
            "same fsType"
        )
    if layout.encryption and not source.encryption:
        return f"{source.text} is not encrypted, and a copy of it can't be: use a class without {ENCRYPTION}"
    if source.encryption != layout.encryption:
        opened = f" and Secret {source.secret}" if source.secret else ""
        return (
            f"{source.text} is encrypted, and its copy has the same key: use a class with {ENCRYPTION} "
            f"{source.encryption}{opened}"
        )
    if source.secret and secret and source.secret != secret:
        return (
            f"{source.text} is opened by Secret {source.secret}, and so is its copy, but the class names {secret}: use "
            "one that names the same"
        )
    if claim.requested < source.size:
        return (
            f"the claim asks for {quantity.humane(claim.requested)}, and {claim.data_source_name}, which it is to be a "
            f"copy of, has {quantity.humane(source.size)}: ask for at least that"
        )
    return ""


@dataclass(frozen=True)
class NodeCapacity:
    """What a node publishes for the class, and how many bytes of it are not reserved."""

    published: Capacity
    free: int
    others: int = 0
    """Bytes that those nodes have left, all of them, for which this one stands, because it has most (see
    provisioner.capacityindex)."""


@dataclass(frozen=True)
class AvailableCapacity:
    """All that nodes have for one class. `unplaced`: bytes reserved for its volumes that have no node yet."""

    nodes: Sequence[NodeCapacity] = ()
    unplaced: int = 0

    def of(self, node: str) -> NodeCapacity | None:
        label = names.node_label_value(node)
        return next((on_node for on_node in self.nodes if on_node.published.node == label), None)


@dataclass(frozen=True)
class Ignore:
    """Nothing to do until the claim changes: not ours, bound, or the scheduler's turn."""


@dataclass(frozen=True)
class Wait:
    """Nothing to say yet: look again in so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Refuse:
    """It can't be served as things are: an event says why."""

    why: str
    lacks_capacity: bool = False
    """It can be as soon as enough is freed."""


@dataclass(frozen=True)
class Reschedule:
    """Not on this node: ask the scheduler for another one; an event says why."""

    why: str


@dataclass(frozen=True)
class Create:
    """A volume of `size` bytes. Without a place it goes where its first pod goes, without an original it is empty."""

    size: int
    parameters: VolumeParameters
    target: Capacity | None
    original: Original | None = None
    source: str = FLEX_VOLUME
    """The volume source that its PersistentVolume is to have: FLEX_VOLUME or CSI."""
    secrets: NodeSecrets | None = None
    """Those that the kubelet is to read for it."""
    attributes_class: str = ""
    """The VolumeAttributesClass that `parameters` are of, too. Empty: none."""


Decision = Ignore | Wait | Refuse | Reschedule | Create


def waits_for_first_consumer(storage_class: StorageClass) -> bool:
    """Whether the claims of a class are for volumes of ours on the node that the scheduler chooses for their pod."""
    return storage_class.provisioner in names.PROVISIONERS and storage_class.binding_mode == WAIT_FOR_FIRST_CONSUMER


def is_ours(claim: Claim) -> bool:
    """Whether a claim waits for a volume of ours."""
    return not claim.volume_name and claim.provisioner in names.PROVISIONERS and not claim.deleting


def decide(
    claim: Claim,
    storage_class: StorageClass | None,
    available: AvailableCapacity,
    *,
    waited: float,
    source: CloneSource = NO_SOURCE,
    attributes: VolumeAttributesClass | ClassMissing | None = None,
) -> Decision:
    """`waited`: seconds since the chosen node was first found to publish no capacity for the class. `source`: what was
    found of what this one is to be a copy of. `attributes`: of the VolumeAttributesClass that it names."""
    if not is_ours(claim):
        return Ignore()
    if storage_class is None:
        return Refuse(_no_class(claim))
    if storage_class.provisioner not in names.PROVISIONERS:
        return Ignore()
    if waits_for_first_consumer(storage_class) and not claim.selected_node:
        return Ignore()
    try:
        volume_source = parameters.volume_source(storage_class.parameters)
        layout = volume_parameters(storage_class, claim, source)
        secrets = parameters.node_secrets(storage_class.parameters)
    except ParameterError as error:
        return _of_wrong_class(error)
    reason = _unsupported(claim, storage_class.provisioner, volume_source) or _too_small(claim, layout)
    if reason:
        return Refuse(reason)
    if isinstance(attributes, ClassMissing):
        return Wait(_SETTLING_PERIOD) if attributes.unread else Refuse(attributes.why)
    try:
        layout = limited(layout, attributes) if attributes else layout
    except ParameterError as error:
        return Refuse(
            f"VolumeAttributesClass {claim.attributes_class}: {error}. It can't be changed: make another one, and the "
            "claim anew"
        )
    decision = _placed(claim, storage_class, layout, available, waited, source, secrets.stage if secrets else None)
    if isinstance(decision, Create):
        return replace(decision, source=volume_source, secrets=secrets, attributes_class=claim.attributes_class)
    return decision


def _placed(
    claim: Claim,
    storage_class: StorageClass,
    layout: VolumeParameters,
    available: AvailableCapacity,
    waited: float,
    source: CloneSource,
    secret: SecretReference | None,
) -> Decision:
    """Where a claim that can be served goes."""
    if claim.clones:
        if reason := clone_obstacle(claim, layout, source, secret):
            return Wait(_SETTLING_PERIOD) if source.settling and waited < _SETTLING_TIMEOUT else Refuse(reason)
        return _beside_source(claim, layout, available, source)
    if waits_for_first_consumer(storage_class):
        return _on_selected_node(claim, claim.selected_node, layout, available, waited)
    if storage_class.allowed_topologies:
        return Refuse(
            "allowedTopologies with volumeBindingMode Immediate can't be honoured, because the first pod chooses the "
            f"node: use {WAIT_FOR_FIRST_CONSUMER}"
        )
    return on_any_node(claim, layout, available)


def _of_wrong_class(error: ParameterError) -> Refuse:
    return Refuse(f"{error}. Parameters can't be changed: make the class anew")


def unscheduled(claim: Claim, storage_class: StorageClass, users: Collection[Pod]) -> Ignore | Refuse:
    """A claim that waits until the scheduler has chosen a node for its pod. It never does for a class with parameters
    that can't be served, of which no node has capacity, nor for a pod that names its node itself, and nothing else
    reports that."""
    if claim.volume_name or claim.deleting:
        return Ignore()
    try:
        parameters.parse(storage_class.parameters, storage_class.mount_options)
    except ParameterError as error:
        return _of_wrong_class(error)
    by_hand = next((pod for pod in users if pod.node_name and not pod.deleting), None)
    if by_hand is None:
        return Ignore()
    return Refuse(
        f"pod {by_hand.name} names its node itself (spec.nodeName: {by_hand.node_name}), so the scheduler never "
        "chooses one for this claim: make the pod anew without nodeName, and with a nodeSelector for "
        f"{names.HOSTNAME_LABEL} if it is to run there"
    )


def _no_class(claim: Claim) -> str:
    if not claim.storage_class:
        return "the claim names no StorageClass: set storageClassName"
    return f"there is no StorageClass {claim.storage_class!r}: create it, the claim is tried again then"


def _unsupported(claim: Claim, provisioner: str, volume_source: str) -> str:
    """Why no class of that volume source could serve such a claim, empty when one could."""
    if volume_source == CSI and provisioner != names.PROVISIONER:
        return (
            f"a class with {parameters.VOLUME_SOURCE} {CSI} has the provisioner {names.PROVISIONER}, because the "
            f"scheduler can't see the capacity of {provisioner}: make the class anew with that"
        )
    if READ_WRITE_MANY in claim.access_modes:
        return (
            f"access mode {READ_WRITE_MANY} can't be served: the volume lives on one node, and pods of others can't "
            f"reach it. Use {READ_WRITE_ONCE}, with which all pods on its node can share it"
        )
    if READ_WRITE_ONCE_POD in claim.access_modes and volume_source != CSI:
        return (
            f"access mode {READ_WRITE_ONCE_POD} is not kept for FlexVolumes: use a class with "
            f"{parameters.VOLUME_SOURCE} {CSI}, or {READ_WRITE_ONCE}"
        )
    if claim.volume_mode == BLOCK and volume_source != CSI:
        return (
            f"volumeMode {BLOCK} is not served by a FlexVolume driver: use a class with {parameters.VOLUME_SOURCE} "
            f"{CSI}, or volumeMode {FILESYSTEM}"
        )
    if claim.data_source and not claim.clones:
        return (
            f"a new volume can't be filled from a {claim.data_source}, only from another PersistentVolumeClaim or a "
            "VolumeSnapshot: change or remove dataSource and dataSourceRef"
        )
    if claim.has_selector:
        return "a selector picks among volumes that exist, and this class makes new ones: remove the selector"
    if claim.attributes_class and volume_source != CSI:
        return (
            f"volumeAttributesClassName is served for CSI volumes only: use a class with {parameters.VOLUME_SOURCE} "
            f"{CSI}, or make the claim without it"
        )
    return ""


_NO_ENCRYPTION = (
    "can't have encrypted volumes (BINDMOUNT keeps them in folders, or its elastic-local daemon has no cryptsetup "
    "or is of an older version)"
)
_NO_DEVICE = (
    f"can't have volumes of this class with volumeMode {BLOCK} or with I/O limits (BINDMOUNT keeps them in folders, or "
    "its elastic-local daemon is of an older version)"
)


def _unable(layout: VolumeParameters, published: Capacity) -> str:
    """What a node can't do for the class, empty when it can."""
    if published.serves(layout):
        return ""
    return _NO_DEVICE if layout.needs_device and not published.block else _NO_ENCRYPTION


def _too_small(claim: Claim, layout: VolumeParameters) -> str:
    if claim.requested >= layout.minimum_size:
        return ""
    kind = "a device" if layout.block else layout.filesystem
    return (
        f"the claim asks for {quantity.humane(claim.requested)}, and {kind} needs at least "
        f"{quantity.humane(layout.minimum_size)}: ask for more"
    )


def _on_selected_node(
    claim: Claim, node: str, layout: VolumeParameters, available: AvailableCapacity, waited: float
) -> Decision:
    on_node = available.of(node)
    if on_node is None:
        if waited < PUBLISH_TIMEOUT:
            return Wait(PUBLISH_TIMEOUT - waited)
        return Reschedule(
            f"node {node} publishes no capacity for this class (is its elastic-local daemon ready?): another node is "
            "asked for"
        )
    if why := _unable(layout, on_node.published):
        return Reschedule(f"node {node} {why}: another node is asked for")
    if required_bytes(claim, layout, on_node) > on_node.free:
        return Reschedule(
            f"{request_text(claim, layout, on_node)}, node {node} has {free_text(on_node)}: another node is asked for"
        )
    return Create(claim.requested, layout, on_node.published)


def _beside_source(
    claim: Claim, layout: VolumeParameters, available: AvailableCapacity, source: CloneSource
) -> Decision:
    """A copy can live on its source's node only, and says so from the start: whichever node the scheduler chose, it
    reads the affinity before it binds the pod, and chooses anew."""
    node = source.node
    on_node = available.of(node)
    beside = f"node {node}, where {claim.data_source_name} lives,"
    if on_node is None:
        return Refuse(f"{beside} publishes no capacity for this class: is its elastic-local daemon ready?")
    if why := _unable(layout, on_node.published):
        return Refuse(f"{beside} {why}: use a class of another kind")
    if required_bytes(claim, layout, on_node) > on_node.free:
        return Refuse(
            f"{request_text(claim, layout, on_node)}, {beside} has {free_text(on_node)}: free up space there",
            lacks_capacity=True,
        )
    return Create(claim.requested, layout, on_node.published, source.original)


def on_any_node(claim: Claim, layout: VolumeParameters, available: AvailableCapacity) -> Create | Refuse:
    """The first pod chooses the node, so all that can be asked is that there is one to choose."""
    if not available.nodes:
        return Refuse("no node publishes capacity for this class: is the elastic-local daemon ready on any?")
    nodes = [on_node for on_node in available.nodes if on_node.published.serves(layout)]
    if not nodes:
        folders_first = min(available.nodes, key=lambda on_node: on_node.published.block)
        return Refuse(f"each node {_unable(layout, folders_first.published)}: use a class of another kind")
    best = max(
        nodes, key=lambda on_node: (on_node.free - required_bytes(claim, layout, on_node), on_node.published.node)
    )
    if required_bytes(claim, layout, best) > best.free:
        return Refuse(
            f"{request_text(claim, layout, best)}, and the most that a node has is {free_text(best)}, on "
            f"{best.published.node}: ask for less, or free up space",
            lacks_capacity=True,
        )
    together = sum(max(on_node.free, 0) + on_node.others for on_node in nodes)
    if required_bytes(claim, layout, best) + available.unplaced > together:
        return Refuse(
            f"{request_text(claim, layout, best)}, and of the {quantity.humane(together)} that all nodes have left, "
            f"{quantity.humane(available.unplaced)} are reserved for volumes that wait for their first pod: "
            "free up space",
            lacks_capacity=True,
        )
    return Create(claim.requested, layout, None)


def required_bytes(claim: Claim, layout: VolumeParameters, on_node: NodeCapacity) -> int:
    """Bytes of the pool for what the claim asks for."""
    return capacity.footprint(claim.requested, layout, on_node.published.granularity)


def request_text(claim: Claim, layout: VolumeParameters, on_node: NodeCapacity) -> str:
    """The same as text for a message."""
    needed = required_bytes(claim, layout, on_node)
    asked = f"the claim asks for {quantity.humane(claim.requested)}"
    # A mirror takes twice its size: say so, or the figures seem to contradict each other.
    return (
        asked if needed < claim.requested * 1.5 else f"{asked}, which takes {quantity.humane(needed)} ({layout.raid})"
    )


def free_text(on_node: NodeCapacity) -> str:
    return f"{quantity.humane(max(on_node.free, 0))} left in pool {on_node.published.pool}"
