"""What a StorageClass may ask for, and how it travels to the node in a PersistentVolume's flexVolume options.

The provisioner parses the parameters of the class, so that a wrong key becomes an event on the claim; the daemon
parses the options of the PersistentVolume again, because it runs as root and believes nobody.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contract import filesystems

EXT4, XFS, BTRFS = filesystems.EXT4, filesystems.XFS, filesystems.BTRFS
RAID_LEVELS = ("none", "raid1")


class ParameterError(ValueError):
    """A StorageClass parameter that can't be served: says which key, what it holds and what is allowed."""

    def __init__(self, key: str, value: str, allowed: str) -> None:
        super().__init__(f"parameter {key} is {value!r}: allowed is {allowed}")
        self.key = key


@dataclass(frozen=True)
class VolumeParameters:
    """How a volume is to be made. None and empty mean: as the node is configured."""

    filesystem: str = EXT4
    mkfs_options: tuple[str, ...] = ()
    mount_options: tuple[str, ...] = ()
    volume_group: str = ""
    thin: bool | None = None
    thin_pool: str = ""
    overprovision_ratio: float = 1.0
    stripes: int = 1
    raid: str = "none"

    @property
    def needs_thick(self) -> bool:
        """Stripes and mirrors are laid out in the volume group itself; a thin pool brings its own layout."""
        return self.stripes > 1 or self.raid != "none"


@dataclass(frozen=True)
class _Key:
    name: str
    allowed: str
    attribute: str = field(default="")


def parse(parameters: Mapping[str, str], mount_options: Sequence[str] = ()) -> VolumeParameters:
    """The parameters of a StorageClass with its mountOptions. Raises ParameterError for the first wrong key."""
    raise NotImplementedError


def to_options(parameters: VolumeParameters, size: int) -> dict[str, str]:
    """The flexVolume options of a volume of `size` bytes: strings only, and only what differs from the default."""
    raise NotImplementedError


def from_options(options: Mapping[str, str], filesystem: str) -> VolumeParameters:
    """The inverse of to_options. Raises ParameterError."""
    raise NotImplementedError
