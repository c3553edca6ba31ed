"""Errors as the CSI specification wants them: which gRPC code each has (spec.md, "Error Scheme" and the tables of each
RPC).

The kubelet acts on the code (pkg/volume/csi/csi_attacher.go, isFinalError). After RESOURCE_EXHAUSTED, UNAVAILABLE,
ABORTED and DEADLINE_EXCEEDED it takes a mount for possibly done, and unmounts it when the pod goes; after any other it
takes it for not done. An expansion that fails with OUT_OF_RANGE or INVALID_ARGUMENT it calls infeasible.
"""

from grpclib import GRPCError, Status

from daemon import errors
from daemon.errors import VolumeError

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
    errors.Lost: Status.DATA_LOSS,
}
"""All others are INTERNAL."""


def grpc_error(error: VolumeError) -> GRPCError:
    """The answer to an RPC that failed so. Its message is what `kubectl describe pod` shows."""
    kinds = (_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    return GRPCError(next(kinds, Status.INTERNAL), str(error))


def invalid(message: str) -> GRPCError:
    """The answer to a request that no kubelet makes."""
    return GRPCError(Status.INVALID_ARGUMENT, message)
