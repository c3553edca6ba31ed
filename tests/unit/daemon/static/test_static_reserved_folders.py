"""Classes that would offer the daemon's own folders: which they are, and that nothing of them is touched."""

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.settings import Settings
from daemon.static.configuration import ClassConfiguration, Configuration, refuse_reserved_folders
from daemon.storage.deviceclasses import LOOP, LVM, DeviceClass
from tests.unit.daemon.static.deleterharness import CLASS, configured, deleter_harness

OWN = (("STAGING_DIR", Path("/mnt/storage")), ("KUBELET_ROOT", Path("/var/lib/kubelet")))
GOOD = ClassConfiguration("good", "/mnt/disks", Path("/mnt/disks"))


@pytest.mark.parametrize(
    ("host_dir", "mount_dir", "expected"),
    [
        (
            "/mnt/storage",
            "/disks",
            "hostDir /mnt/storage is the folder that the daemon uses itself (STAGING_DIR is /mn",
        ),
        (
            "/disks",
            "/mnt/storage",
            "mountDir /mnt/storage is the folder that the daemon uses itself (STAGING_DIR is /m",
        ),
        ("/mnt", "/mnt", "hostDir /mnt is above the folder that the daemon uses itself (STAGING_DIR is /mnt/st"),
        (
            "/mnt/storage/a",
            "/a",
            "hostDir /mnt/storage/a is inside the folder that the daemon uses itself (STAGING_DIR ",
        ),
        (
            "/a",
            "/var",
            "mountDir /var is above the folder that the daemon uses itself (KUBELET_ROOT is /var/lib/kubelet)",
        ),
    ],
)
def test_a_class_that_would_offer_a_reserved_folder_is_refused_alone(
    host_dir: str, mount_dir: str, expected: str
) -> None:
    bad = ClassConfiguration("bad", host_dir, Path(mount_dir))
    checked = refuse_reserved_folders(Configuration({"good": GOOD, "bad": bad}, labels={"a": "b"}), OWN)
    reason = checked.classes["bad"].refusal
    assert reason.startswith(expected)
    assert "give the class its own folder, such as /mnt/disks" in reason
    assert checked == Configuration({"good": GOOD, "bad": replace(bad, refusal=reason)}, labels={"a": "b"})


@pytest.mark.parametrize("folder", ["/mnt/storage2", "/mnt/disks", "/var/lib/kubelet-disks", "/dev", "/var/lib/other"])
def test_a_folder_beside_a_reserved_one_is_served(folder: str) -> None:
    class_config = ClassConfiguration("good", folder, Path(folder))
    assert refuse_reserved_folders(Configuration({"good": class_config}), OWN) == Configuration({"good": class_config})


def test_reserved_folders_of_the_daemon() -> None:
    scratch = DeviceClass("scratch", LOOP, folder=Path("/mnt/scratch/volumes"))
    nvme = DeviceClass("nvme", LVM, group="vg")
    class_config = Settings(
        "node",
        plugin_dirs=(Path("/plugins"), Path("/more/plugins")),
        device_classes={"default": nvme, "nvme": nvme, "scratch": scratch},
    )
    assert list(class_config.reserved_folders) == [
        ("STAGING_DIR", class_config.staging_dir),
        ("KUBELET_ROOT", class_config.kubelet_root),
        ("PLUGIN_DIR", Path("/plugins")),
        ("PLUGIN_DIR", Path("/more/plugins")),
        ("DATA_DIR", class_config.data_dir),
        ("ELASTIC_LOCAL_SOCKET", class_config.socket),
        ("device class scratch", scratch.folder),
    ]


async def test_a_released_volume_of_a_refused_class_is_not_cleaned(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    data = tmp_path / "ours" / "data"
    data.write_text("of a pod")
    command = ("rm", "-rf", str(data))
    async with deleter_harness(tmp_path) as node:
        await node.create("pv", "/mnt/disks/ours")
        configuration = configured(tmp_path, cleaner=command, folder_cleaner=command)
        refused = refuse_reserved_folders(configuration, [("STAGING_DIR", tmp_path / "ours")])
        await node.clean_all(refused)
        assert await node.phase("pv") == "Released"
        ((_, reason, message),) = await node.recorded_events()
        assert reason == "VolumeFailedDelete"
        assert message == f'Error cleaning PV "pv": class {CLASS}: {refused.classes[CLASS].refusal}'
    assert data.read_text() == "of a pod"
