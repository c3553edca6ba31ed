"""An LVM command that is killed, as the kernel does that is short of memory: whoever asked is told, in an error of ours
that is asked again, whatever was asked."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from contract.parameters import DEFAULT_DEVICE_CLASS, VolumeParameters
from daemon.backends.lvm import LvmBackend
from daemon.errors import BackendFailed
from daemon.storage.deviceclasses import LVM, DeviceClass
from daemon.storage.inventory import Volume
from daemon.storage.record import VolumeSpec, VolumeState
from lvm import Lvm

SPEC = VolumeSpec("pvc-1", "uid-1", 2**30, "Delete", VolumeParameters())
VOLUME = Volume(SPEC.record(VolumeState.READY), 2**30, "group/pool")
SNAPSHOT = Volume(SPEC.record(VolumeState.COPYING), 2**20, "group")


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LvmBackend:
    program = tmp_path / "bin" / "lvm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nkill -KILL $$\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    here = DeviceClass(DEFAULT_DEVICE_CLASS, LVM, group="group", thin=True, thin_pool="pool")
    return LvmBackend(Lvm(tmp_path / "lvm"), {DEFAULT_DEVICE_CLASS: here})


Asked = Callable[[LvmBackend], Awaitable[object]]


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(lambda backend: backend.establish(), id="establish"),
        pytest.param(lambda backend: backend.inspect(), id="inspect"),
        pytest.param(lambda backend: backend.create(SPEC), id="create"),
        pytest.param(lambda backend: backend.reread(VOLUME), id="reread"),
        pytest.param(lambda backend: backend.rewrite(VOLUME, SPEC.record(VolumeState.ERASING)), id="rewrite"),
        pytest.param(lambda backend: backend.extend(VOLUME, 2**31), id="extend"),
        pytest.param(lambda backend: backend.stale_data(VOLUME), id="stale_data"),
        pytest.param(lambda backend: backend.remove(VOLUME), id="remove"),
        pytest.param(lambda backend: backend.clone_sharing_blocks(SPEC, VOLUME), id="snapshot"),
        pytest.param(
            lambda backend: backend.snapshot_storage("group").make(VOLUME, SNAPSHOT.record, 2**20), id="thick"
        ),
        pytest.param(lambda backend: backend.snapshot_storage("group").readable(SNAPSHOT), id="readable"),
        pytest.param(lambda backend: backend.snapshot_storage("group").split(SNAPSHOT), id="split"),
        pytest.param(lambda backend: backend.snapshot_storage("group").remove(SNAPSHOT), id="remove a snapshot"),
    ],
)
async def test_a_killed_command_is_an_error_of_ours(backend: LvmBackend, asked: Asked) -> None:
    with pytest.raises(BackendFailed, match="exit code -9"):
        await asked(backend)
