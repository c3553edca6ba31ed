"""Classes that would offer the daemon's own folders: which they are, and that nothing of them is touched."""

from dataclasses import replace
from pathlib import Path

import pytest

from daemon.settings import Settings
from daemon.static.configuration import ClassConfiguration, Configuration, keep_apart
from daemon.storage.deviceclasses import LOOP, LVM, DeviceClass
from tests.unit.daemon.static.deletionstage import CLASS, configured, stage

OWN = (("STAGING_DIR", Path("/mnt/storage")), ("KUBELET_ROOT", Path("/var/lib/kubelet")))
GOOD = ClassConfiguration("good", "/mnt/disks", Path("/mnt/disks"))


@pytest.mark.parametrize(
    ("host_dir", "mount_dir", "words"),
    [
        ("/mnt/storage", "/disks", "hostDir /mnt/storage is the folder where the daemon works (STAGING_DIR is /mnt/st"),
        ("/disks", "/mnt/storage", "mountDir /mnt/storage is the folder where the daemon works (STAGING_DIR is /mnt/s"),
        ("/mnt", "/mnt", "hostDir /mnt is above the folder where the daemon works (STAGING_DIR is /mnt/storage)"),
        ("/mnt/storage/a", "/a", "hostDir /mnt/storage/a is inside the folder where the daemon works (STAGING_DIR is "),
        ("/a", "/var", "mountDir /var is above the folder where the daemon works (KUBELET_ROOT is /var/lib/kubelet)"),
    ],
)
def test_a_class_that_would_offer_our_folders_is_refused_alone(host_dir: str, mount_dir: str, words: str) -> None:
    bad = ClassConfiguration("bad", host_dir, Path(mount_dir))
    found = keep_apart(Configuration({"good": GOOD, "bad": bad}, labels={"a": "b"}), OWN)
    why = found.classes["bad"].refused
    assert why.startswith(words)
    assert "give the class a folder of its own, such as /mnt/disks" in why
    assert found == Configuration({"good": GOOD, "bad": replace(bad, refused=why)}, labels={"a": "b"})


@pytest.mark.parametrize("folder", ["/mnt/storage2", "/mnt/disks", "/var/lib/kubelet-disks", "/dev", "/var/lib/other"])
def test_folders_beside_ours_are_nobody_elses(folder: str) -> None:
    settings = ClassConfiguration("good", folder, Path(folder))
    assert keep_apart(Configuration({"good": settings}), OWN) == Configuration({"good": settings})


def test_what_the_daemon_calls_its_own() -> None:
    scratch = DeviceClass("scratch", LOOP, folder=Path("/mnt/scratch/volumes"))
    nvme = DeviceClass("nvme", LVM, group="vg")
    settings = Settings("node", device_classes={"default": nvme, "nvme": nvme, "scratch": scratch})
    assert dict(settings.own_folders) == {
        "STAGING_DIR": settings.staging_dir,
        "KUBELET_ROOT": settings.kubelet_root,
        "PLUGIN_DIR": settings.plugin_dir,
        "DATA_DIR": settings.data_dir,
        "ELASTIC_LOCAL_SOCKET": settings.socket,
        "device class scratch": scratch.folder,
    }


async def test_a_released_volume_of_a_refused_class_is_not_cleaned(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    data = tmp_path / "ours" / "data"
    data.write_text("of a pod")
    command = ("rm", "-rf", str(data))
    async with stage(tmp_path) as node:
        await node.create("pv", "/mnt/disks/ours")
        configuration = configured(tmp_path, cleaner=command, folder_cleaner=command)
        refused = keep_apart(configuration, [("STAGING_DIR", tmp_path / "ours")])
        await node.clean_all(refused)
        assert await node.phase("pv") == "Released"
        ((_, reason, message),) = await node.told()
        assert reason == "VolumeFailedDelete"
        assert message == f'Error cleaning PV "pv": class {CLASS}: {refused.classes[CLASS].refused}'
    assert data.read_text() == "of a pod"
