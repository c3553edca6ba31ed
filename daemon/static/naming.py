"""Names and sizes that must come out as the original's: a cluster that moved over keeps its PersistentVolumes because
the same entry gets the same name again."""

_GIB, _MIB = 1 << 30, 1 << 20
_PRIME, _OFFSET = 16777619, 2166136261


def _fnv1a(*parts: str) -> str:
    """FNV-1a of 32 bits over the parts without separators, in hexadecimal without leading zeros."""
    digest = _OFFSET
    for byte in "".join(parts).encode(errors="surrogateescape"):
        digest = (digest ^ byte) * _PRIME & 0xFFFFFFFF
    return f"{digest:x}"


def volume_name(entry: str, node: str, storage_class: str) -> str:
    """The PersistentVolume of an entry. `node` is the Node's name, not its hostname label."""
    return f"local-pv-{_fnv1a(entry, node, storage_class)}"


def job_volume_name(host_dir: str, mount_dir: str) -> str:
    """The name inside a cleaning Job of the volume that shows a class's folder."""
    return f"mount-{_fnv1a(host_dir, mount_dir)}"


def provisioner_name(node: str, uid: str, node_name_only: bool) -> str:
    """Who a PersistentVolume says it is provisioned by."""
    name = f"local-volume-provisioner-{node}"
    return name if node_name_only else f"{name}-{uid}"


def round_down(size: int) -> int:
    """Bytes that a PersistentVolume offers of a volume of `size`: whole GiB from 10 GiB, whole MiB from 10 MiB. A disk
    is a little more than its label says, and a claim for what the label says is a round number."""
    unit = _GIB if size >= 10 * _GIB else _MIB if size >= 10 * _MIB else 1
    return size // unit * unit
