"""What can go wrong in the life of a volume, as the owner of the pod reads it.

The message of each error is all that `kubectl describe pod` shows of a failed mount, so it says what is wrong and what
to do next, with no word of our insides. Whoever wants to act on an error looks at its class; metrics and events use the
name of the class. Backends raise these too, so that nothing above them knows LVM.
"""

from contract import quantity


class VolumeError(Exception):
    """Base of the family. The message is for the pod's owner."""


_TEXT = 400
"""Characters of an error that nobody foresaw. The whole of it is in the log."""


def message_of(error: BaseException) -> str:
    """An error of any kind, as a sentence for people."""
    if isinstance(error, VolumeError):
        return str(error)
    text = " ".join(str(error).split()) or "it says no more"
    short = text if len(text) <= _TEXT else f"{text[:_TEXT]}..."
    return (
        f"something failed that nobody foresaw, {type(error).__name__}: {short}; it is tried again, and the daemon's "
        "log on the node has more"
    )


class Refused(VolumeError):
    """The pod may not mount this. The message says why, and names nothing of another tenant."""


class NoSuchVolume(Refused):
    """There is no PersistentVolume of that name, or it is not ours."""


class Undecided(VolumeError):
    """The API server did not say whether the pod may mount this. The kubelet asks again."""


class NotAPodFolder(VolumeError):
    """The path is not one that the kubelet makes for a volume of ours, or a link stands on the way to it."""


class WrongMode(VolumeError):
    """A block volume is to be mounted as a filesystem, or the other way round."""


class FolderMissing(VolumeError):
    """The kubelet's folder for the volume does not exist (any more)."""


class NoSpace(VolumeError):
    """The pool has no room. Figures in bytes; `available` is what this very volume could have."""

    def __init__(self, pv: str, pool: str, needed: int, available: int) -> None:
        super().__init__(
            f"volume {pv} needs {quantity.humane(needed)} of {pool} on this node, which has "
            f"{quantity.humane(max(available, 0))} left for it: delete volumes on this node, or ask its administrator "
            "for more space"
        )
        self.pv = pv
        self.pool = pool
        self.needed = needed
        self.available = available


class NotGranted(VolumeError):
    """A claim asks for more than its volume was granted."""


class PoolFull(VolumeError):
    """A thin pool is so full that nothing new is made in it, whatever is reserved of it."""


class PoolBlocked(VolumeError):
    """The pool is there, and nothing new can be made in it as things are."""


class PoolMissing(VolumeError):
    """The node has no such volume group, thin pool or folder (yet), or can't use it."""


class Damaged(VolumeError):
    """A volume that held data does not show a sound filesystem. It is never formatted again by us."""


class MountRefused(VolumeError):
    """The kernel does not mount a sound filesystem as its class wants it. The data, if there is any, is not touched."""


class Lost(VolumeError):
    """A volume that held data is not there. An empty one in its place would look like all data deleted."""


class Foreign(VolumeError):
    """A volume of that name exists and belongs to somebody else: it is neither mounted nor changed."""


class NotCloned(VolumeError):
    """A copy of another volume can't be made as things are."""


class NoSnapshot(VolumeError):
    """There can be no snapshot of a volume now. The message says why, and continues a sentence."""


class InUse(VolumeError):
    """Somebody uses the volume, so it can't be unmounted or removed."""


class NoEncryption(VolumeError):
    """The storage has folders only, and the volume is to be encrypted."""


class NotUnlocked(VolumeError):
    """An encrypted volume is needed open, and is not, and nobody has given its passphrase."""


class WrongKey(VolumeError):
    """What was given as the passphrase of an encrypted volume is none, or does not open it. The data is not touched."""


class NotABlockDevice(VolumeError):
    """The storage has folders only, and the volume is to be a block device."""


class BeingCleared(VolumeError):
    """The volume is being overwritten before its first use. It goes on when asked again."""


class BeingErased(VolumeError):
    """The volume is being erased and removed: it can't be used any more."""


class VolumeNotFound(VolumeError):
    """There is no such volume on this node."""


class Occupied(VolumeError):
    """The folder shows something that is not the wanted volume, or not in the wanted way."""


class BackendFailed(VolumeError):
    """A command or system call failed in a way that nobody foresaw: the message has what it said."""


class NotAuthorized(VolumeError):
    """What was asked for must not be done to the volume's data, as things are now."""


class ApiUnavailable(VolumeError):
    """The API server can't be asked what has to be known before data is destroyed."""


class ClusterUnknown(VolumeError):
    """A volume that is made has to say of which cluster it is, and that is not known yet."""
