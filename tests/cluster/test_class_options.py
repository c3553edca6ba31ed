"""What a class says of filesystem, mkfs and mount is found again in the real filesystem and the real mount."""

import re

import pytest

from contract.volume import CSI
from kube.resources import CLAIMS, PODS
from tests.cluster import onnode
from tests.cluster.conftest import MakeClass
from tests.sandbox.sandbox import Sandbox
from tests.sandbox.workloads import Namespace, claim, pod, source_of


@pytest.mark.parametrize(
    ("kind", "size", "mkfs_options", "mount_options", "tool", "findings"),
    [
        (
            "ext4",
            "16Mi",
            "-m 0 -I 512",
            ["noatime", "commit=17"],
            ("dumpe2fs", "-h"),
            [r"Reserved block count:\s+0\n", r"Inode size:\s+512\n"],
        ),
        (
            "xfs",
            "300Mi",
            "-i size=1024 -m reflink=0",
            ["noatime", "largeio"],
            ("xfs_db", "-r", "-c", "info"),
            [r"isize=1024 ", r"reflink=0 "],
        ),
        (
            "btrfs",
            "256Mi",
            "-n 8192",
            ["noatime", "compress=zstd"],
            ("btrfs", "inspect-internal", "dump-super"),
            [r"nodesize\s+8192\n"],
        ),
    ],
    ids=["ext4", "xfs", "btrfs"],
)
async def test_the_filesystem_is_made_and_mounted_as_the_class_says(
    sandbox: Sandbox,
    namespace: Namespace,
    make_class: MakeClass,
    kind: str,
    size: str,
    mkfs_options: str,
    mount_options: list[str],
    tool: tuple[str, ...],
    findings: list[str],
) -> None:
    parameters = {"fsType": kind, "mkfsOptions": mkfs_options}
    storage_class = await make_class(parameters=parameters, mountOptions=mount_options)
    await namespace.create(CLAIMS, claim("data", size, storage_class))
    await namespace.create(PODS, pod("user", {"/data": "data"}))
    node = sandbox.node_of(await namespace.until_running("user"))
    volume = await namespace.until_bound("data")
    name = volume["metadata"]["name"]
    assert source_of(volume)["fsType"] == kind
    if CSI in volume["spec"]:
        assert volume["spec"]["mountOptions"] == mount_options
    else:
        assert "mountOptions" not in volume["spec"], "the kubelet would refuse to mount it"

    mount = onnode.staged(node, name)
    assert mount is not None
    assert mount.filesystem == kind
    shown = mount.options | mount.filesystem_options
    for option in mount_options:
        assert any(word == option or word.startswith(f"{option}:") for word in shown), shown
    output = onnode.output(*tool, onnode.image(node, name))
    for finding in findings:
        assert re.search(finding, output), output
