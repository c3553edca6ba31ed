"""LVM's errors as VolumeErrors, worded for the pod's owner."""

import contextlib
from collections.abc import Iterator

import lvm
from daemon.errors import BackendFailed, InUse, NotAuthorized, PoolMissing, VolumeNotFound
from daemon.storage.inventory import Volume
from host.command import MissingTool


@contextlib.contextmanager
def volume_errors(subject: str, pool: str) -> Iterator[None]:
    """Around commands about a subject that is, or is to be, in a pool."""
    try:
        yield
    except lvm.InUse as error:
        raise InUse(f"{subject} is still in use: stop what uses it ({error.message})") from error
    except lvm.LvmNotFound as error:
        raise PoolMissing(
            f"{subject} needs {pool}, which this node does not show ({error.message}): its administrator brings its "
            "disks back, or if there never was one, makes a volume group with `elastic-local vg create`, and a thin "
            "pool in it with `lvcreate --type thin-pool`"
        ) from error
    except (lvm.LvmError, MissingTool) as error:
        raise BackendFailed(f"{subject}: {error}; the log of this node's daemon has more") from error
    except ValueError as error:
        raise BackendFailed(f"{subject} can't be made: {error}") from error


@contextlib.contextmanager
def errors_of(volume: Volume) -> Iterator[None]:
    """The same about a volume that was there a moment ago. While its group can't be seen it is not gone."""
    with volume_errors(f"volume {volume.pv}", volume.pool):
        try:
            yield
        except lvm.GroupNotFound as error:
            raise PoolMissing(
                f"{volume.pool}, where volume {volume.pv} is, can't be seen on this node now ({error.message}): bring "
                "its disks back"
            ) from error
        except lvm.TagsDiffer as error:
            raise NotAuthorized(
                f"nothing is done to volume {volume.pv}: its record changed meanwhile, it is looked at again "
                f"({error.message})"
            ) from error
        except lvm.LvmNotFound as error:
            raise VolumeNotFound(f"volume {volume.pv} is not on this node (any more): {error.message}") from error
