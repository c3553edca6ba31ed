from pathlib import Path

import pytest

from daemon.settings import Settings, read
from daemon.storage.deviceclasses import LOOP
from service.environment import SettingsError


def test_a_node_name_is_enough() -> None:
    assert read({"NODE_NAME": "n", "DRIVER_KIND": "", "KUBECONFIG": ""}) == Settings(node_name="n")


def test_everything_can_be_set() -> None:
    assert read(
        {
            "NODE_NAME": "n",
            "DRIVER_KIND": "loop",
            "LVM_VOLUME_GROUP": "vg",
            "LVM_USE_THIN_VOLUMES": "True",
            "LVM_THIN_POOL": "pool",
            "ELASTIC_LOCAL_SOCKET": "/run/s",
            "STAGING_DIR": "/mnt//x/",
            "KUBELET_ROOT": "/k",
            "PLUGIN_DIR": "/p:/etc//q:/p/",
            "DATA_DIR": "/d",
            "CAPACITY": "10Gi",
            "RESERVE": "1G",
            "LISTEN_ADDRESS": "[::1]:9",
            "NAMESPACE": "ns",
            "KUBECONFIG": "/kc",
            "LOG_FORMAT": "json",
            "LOG_LEVEL": "debug",
        }
    ) == Settings(
        node_name="n",
        driver_kind=LOOP,
        lvm_volume_group="vg",
        lvm_use_thin_volumes=True,
        lvm_thin_pool="pool",
        socket=Path("/run/s"),
        staging_dir=Path("/mnt/x"),
        kubelet_root=Path("/k"),
        plugin_dirs=(Path("/p"), Path("/etc/q")),
        data_dir=Path("/d"),
        capacity=10 << 30,
        reserve=10**9,
        listen_host="::1",
        listen_port=9,
        namespace="ns",
        kubeconfig="/kc",
        log_format="json",
        log_level="DEBUG",
    )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DRIVER_KIND", "ZFS", "LVM, LOOP, BINDMOUNT"),
        ("LVM_USE_THIN_VOLUMES", "yes please", "true, false"),
        ("STAGING_DIR", "mnt/storage", "absolute path"),
        ("KUBELET_ROOT", "/var/lib/../kubelet", "absolute path"),
        ("ELASTIC_LOCAL_SOCKET", "/run/" + "s" * 103, "107 bytes"),
        ("CAPACITY", "ten", "10Gi"),
        ("RESERVE", "-1Gi", "negative"),
        ("REFRESH_PERIOD", "0s", "such as 10s"),
        ("LISTEN_ADDRESS", "8080", ":8080"),
        ("LISTEN_ADDRESS", ":99999", ":8080"),
        ("LOG_LEVEL", "LOUD", "WARNING"),
        ("LVM_VOLUME_GROUP", "../vg", "a name as LVM has them"),
        ("LVM_THIN_POOL", "-pool", "a name as LVM has them"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as refused:
        read({"NODE_NAME": "n", name: value})
    assert str(refused.value).startswith(f"{name} is {value!r}: ")
    assert allowed in str(refused.value)


def test_a_daemon_without_a_node_name_says_where_to_get_it() -> None:
    with pytest.raises(SettingsError, match=r"NODE_NAME.*spec\.nodeName"):
        read({"NODE_NAME": " "})


@pytest.mark.parametrize(("text", "seconds"), [("", 3600), ("30m", 1800), ("0", None), ("0s", None), ("never", None)])
def test_how_long_an_orphan_is_kept(text: str, seconds: float | None) -> None:
    assert read({"NODE_NAME": "n", "ORPHAN_GRACE": text}).orphan_grace == seconds
