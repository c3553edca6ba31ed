"""Errors as the CSI specification wants them: which gRPC code each has (spec.md, "Error Scheme" and the tables of each
RPC).

The kubelet acts on the code (pkg/volume/csi/csi_client.go, isFinalError). After RESOURCE_EXHAUSTED, UNAVAILABLE,
ABORTED, CANCELLED and DEADLINE_EXCEEDED it takes a mount for possibly done, and unmounts it when the pod goes; after
any other it takes it for not done. An expansion that fails with OUT_OF_RANGE, INVALID_ARGUMENT or NOT_FOUND it calls
infeasible (pkg/volume/csi/expander.go).
"""

from grpclib import GRPCError, Status

from daemon import errors
from daemon.errors import VolumeError, WrongMode

_CODES: dict[type[VolumeError], Status] = {
    errors.NotAPodFolder: Status.INVALID_ARGUMENT,
    errors.WrongMode: Status.FAILED_PRECONDITION,
    errors.NoSuchVolume: Status.NOT_FOUND,
    errors.VolumeNotFound: Status.NOT_FOUND,
    errors.FolderMissing: Status.NOT_FOUND,
    errors.Refused: Status.PERMISSION_DENIED,
    errors.Undecided: Status.UNAVAILABLE,
    errors.ApiUnavailable: Status.UNAVAILABLE,
    errors.ClusterUnknown: Status.UNAVAILABLE,
    errors.BeingCleared: Status.ABORTED,
    errors.NoSpace: Status.RESOURCE_EXHAUSTED,
    errors.PoolFull: Status.RESOURCE_EXHAUSTED,
    errors.NotGranted: Status.OUT_OF_RANGE,
    errors.Occupied: Status.ALREADY_EXISTS,
    errors.InUse: Status.FAILED_PRECONDITION,
    errors.PoolMissing: Status.FAILED_PRECONDITION,
    errors.PoolBlocked: Status.FAILED_PRECONDITION,
    errors.BeingErased: Status.FAILED_PRECONDITION,
    errors.Foreign: Status.FAILED_PRECONDITION,
    errors.MountRefused: Status.FAILED_PRECONDITION,
    errors.Damaged: Status.FAILED_PRECONDITION,
    errors.NoEncryption: Status.FAILED_PRECONDITION,
    errors.NotUnlocked: Status.FAILED_PRECONDITION,
    errors.WrongKey: Status.FAILED_PRECONDITION,
    errors.Lost: Status.DATA_LOSS,
}
"""All others are INTERNAL."""


def grpc_error(error: VolumeError) -> GRPCError:
    """The answer to an RPC that failed so. Its message is what `kubectl describe pod` shows."""
    return GRPCError(_code(error), str(error))


def expansion_error(error: VolumeError) -> GRPCError:
    """The same of NodeExpandVolume. There FAILED_PRECONDITION would say that a volume is expanded only while no pod has
    it, and the kubelet would not ask again before the next pod mounts it (MarkForInUseExpansionError): what passes is
    UNAVAILABLE, and it asks again."""
    if isinstance(error, WrongMode):
        return invalid(str(error))
    code = _code(error)
    return GRPCError(Status.UNAVAILABLE if code is Status.FAILED_PRECONDITION else code, str(error))


def _code(error: VolumeError) -> Status:
    return next((_CODES[kind] for kind in type(error).__mro__ if kind in _CODES), Status.INTERNAL)


def invalid(message: str) -> GRPCError:
    """The answer to a request that no kubelet makes."""
    return GRPCError(Status.INVALID_ARGUMENT, message)
