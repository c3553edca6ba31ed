"""The services of CSI that this driver does not have: whoever calls one, such as a sidecar that somebody put beside the
daemon, gets the code UNIMPLEMENTED.

grpclib answers a method that it does not know without a content-type, and clients in Go take that for a broken server
(code Unknown). Source of the names: csi.proto of CSI 1.12.
"""

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Stream

_METHODS = {
    "Controller": (
        *("CreateVolume", "DeleteVolume", "ControllerPublishVolume", "ControllerUnpublishVolume"),
        *("ValidateVolumeCapabilities", "ListVolumes", "GetCapacity", "ControllerGetCapabilities", "CreateSnapshot"),
        *("DeleteSnapshot", "ListSnapshots", "GetSnapshot", "ControllerExpandVolume", "ControllerGetVolume"),
        "ControllerModifyVolume",
    ),
    "GroupController": (
        *("GroupControllerGetCapabilities", "CreateVolumeGroupSnapshot", "DeleteVolumeGroupSnapshot"),
        "GetVolumeGroupSnapshot",
    ),
    "SnapshotMetadata": ("GetMetadataAllocated", "GetMetadataDelta"),
}
METHODS = tuple(f"/csi.v1.{service}/{method}" for service, methods in _METHODS.items() for method in methods)


class UnservedServices:
    """To be served beside the services that there are."""

    def __mapping__(self) -> dict[str, Handler]:
        return {method: Handler(_refuse, Cardinality.UNARY_UNARY, Empty, Empty) for method in METHODS}


async def _refuse(stream: Stream[Empty, Empty]) -> None:
    raise GRPCError(
        Status.UNIMPLEMENTED,
        "elastic-local has the services Identity and Node of CSI only: its provisioner does the rest through the API "
        "server, without sidecars",
    )
