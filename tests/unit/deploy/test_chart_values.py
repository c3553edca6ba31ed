"""The values of the Helm chart: what each does to the objects, what is refused, and that all are documented."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import daemon.settings
import provisioner.settings
from contract import names, parameters
from contract.filesystems import FILESYSTEMS
from daemon.static import configuration
from daemon.storage import deviceclasses
from service.yamldecoder import DecodeError
from tests.unit.deploy.rendered import (
    CHART,
    IMAGE,
    charted,
    container,
    environment,
    helm_template,
    of_kind,
    one,
    run_helm,
)
from tests.unit.heard import Heard

Json = dict[str, Any]


def test_each_distribution_has_its_folders() -> None:
    """As their documentation has them: the kubelet's root, where volumes are staged, and its plugin folders."""

    def folders(distribution: str) -> tuple[str, str, list[str]]:
        objects = charted(CHART / f"values-{distribution}.yaml")
        mounts = container(objects, "DaemonSet", "daemon")["volumeMounts"]
        at = {each["name"]: each["mountPath"] for each in mounts}
        return at["kubelet"], at["staging"], [path for name, path in at.items() if name.startswith("plugins")]

    root, staging = "/var/lib/kubelet", "/mnt/storage"
    assert folders("openshift") == (root, staging, ["/etc/kubernetes/kubelet-plugins/volume/exec"])
    assert folders("flatcar") == (root, staging, [])
    assert folders("talos") == (root, "/var/mnt/elastic-local", [])
    assert folders("rke") == (root, staging, ["/var/lib/kubelet/volumeplugins"])
    assert folders("k0s") == ("/var/lib/k0s/kubelet", staging, ["/usr/libexec/k0s/kubelet-plugins/volume/exec"])
    assert folders("microk8s") == (
        "/var/snap/microk8s/common/var/lib/kubelet",
        staging,
        ["/usr/libexec/kubernetes/kubelet-plugins/volume/exec"],
    )


def test_what_the_docs_say_to_install_by_is_accepted() -> None:
    """The schema takes no number for a tag, which `--set image.tag=1` is."""
    text = (CHART.parents[2] / "docs/install.md").read_text().replace("\\\n", " ")
    (told,) = re.findall(r"^    (helm install elastic-local .*)$", text, re.MULTILINE)
    rendered = run_helm("template", *shlex.split(told)[2:3], CHART, *shlex.split(told)[4:])
    assert rendered.returncode == 0, rendered.stderr
    assert "image: registry.example.com/elastic-local:1.2.0" in rendered.stdout


def test_a_cluster_may_have_several_plugin_folders() -> None:
    """Those of its different nodes."""
    objects = charted(flexVolume={"pluginDirs": ["/plugins", "/more/plugins"]})
    program = container(objects, "DaemonSet", "daemon")
    told = {"NODE_NAME": "n", "PLUGIN_DIR": environment(program)["PLUGIN_DIR"]["value"]}
    assert daemon.settings.read(told).plugin_dirs == (Path("/plugins"), Path("/more/plugins"))
    of_host = {
        each["name"]: each["hostPath"]["path"]
        for each in one(objects, "DaemonSet", "daemon")["spec"]["template"]["spec"]["volumes"]
        if "hostPath" in each
    }
    mounted = {each["mountPath"]: of_host.get(each["name"]) for each in program["volumeMounts"]}
    assert (mounted["/plugins"], mounted["/more/plugins"]) == ("/plugins", "/more/plugins")


def test_openshift_admits_the_pods() -> None:
    objects = charted(CHART / "values-openshift.yaml")
    bound = {
        (each["roleRef"]["name"], each["subjects"][0]["name"], each["subjects"][0]["namespace"])
        for each in of_kind(objects, "RoleBinding")
        if each["roleRef"]["kind"] == "ClusterRole"
    }
    assert bound == {
        ("system:openshift:scc:privileged", "daemon", "elastic-local"),
        ("system:openshift:scc:nonroot-v2", "provisioner", "elastic-local"),
    }


def test_a_change_of_settings_restarts_the_pods() -> None:
    def template(kind: str, name: str, **values: Any) -> Json:
        found = one(charted(**values), kind, name)["spec"]["template"]
        assert isinstance(found, dict)
        return found

    before = template("DaemonSet", "daemon")
    assert template("DaemonSet", "daemon") == before
    assert template("DaemonSet", "daemon", storage={"reserve": "1Gi"}) != before
    one_class = {"classes": {"a": {"kind": "LVM", "group": "a"}}}
    other = {"classes": {"a": {"kind": "LVM", "group": "b"}}}
    assert template("DaemonSet", "daemon", deviceClasses=one_class) != template(
        "DaemonSet", "daemon", deviceClasses=other
    )
    calm = template("Deployment", "provisioner")
    assert template("Deployment", "provisioner", storage={"reserve": "1Gi"}) == calm
    assert template("Deployment", "provisioner", log={"level": "DEBUG"}) != calm


def test_values_reach_the_programs() -> None:
    objects = charted(
        storage={"kind": "LVM", "volumeGroup": "data", "thin": True, "thinPool": "pool", "reserve": "1Gi"},
        daemon={"settings": {"ORPHAN_GRACE": "never", "ERASE_RATE": "1Mi"}, "extraEnv": [{"name": "A", "value": "1"}]},
        provisioner={"settings": {"NODE_LOSS_DELAY": "5m"}},
        log={"format": "text", "level": "DEBUG"},
        kubeletRoot="/k",
        stagingDir="/s",
        dataDir="/d",
    )
    told = {"NODE_NAME": "n", **one(objects, "ConfigMap", "daemon")["data"]}
    read = daemon.settings.read(told)
    assert read == daemon.settings.Settings(
        "n",
        lvm_volume_group="data",
        lvm_use_thin_volumes=True,
        lvm_thin_pool="pool",
        reserve=1 << 30,
        orphan_grace=None,
        erase_rate=1 << 20,
        kubelet_root=Path("/k"),
        staging_dir=Path("/s"),
        data_dir=Path("/d"),
        log_level="DEBUG",
    )
    assert environment(container(objects, "DaemonSet", "daemon"))["A"]["value"] == "1"
    assert provisioner.settings.read(one(objects, "ConfigMap", "provisioner")["data"]).node_loss_delay == 300


def test_pods_have_what_was_asked_for_them() -> None:
    digest = "sha256:" + "0" * 64
    pod = {
        "priorityClassName": "other",
        "nodeSelector": {"disks": "yes"},
        "tolerations": [{"key": "disks", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    }
    volume = {"name": "scratch", "hostPath": {"path": "/mnt/scratch"}}
    mount = {"name": "scratch", "mountPath": "/mnt/scratch", "mountPropagation": "HostToContainer"}
    objects = charted(
        image={"repository": IMAGE, "tag": "1", "digest": digest, "pullSecrets": [{"name": "registry"}]},
        provisioner=pod,
        daemon={
            **pod,
            "resources": {"limits": {"memory": "1Gi"}},
            "extraVolumes": [volume],
            "extraVolumeMounts": [mount],
        },
    )
    for kind, name in (("Deployment", "provisioner"), ("DaemonSet", "daemon")):
        spec = one(objects, kind, name)["spec"]["template"]["spec"]
        assert spec["imagePullSecrets"] == [{"name": "registry"}]
        assert spec["containers"][0]["image"] == f"{IMAGE}@{digest}"
        assert {key: spec[key] for key in pod} == {**pod, "nodeSelector": {"kubernetes.io/os": "linux", "disks": "yes"}}
    spec = one(objects, "DaemonSet", "daemon")["spec"]["template"]["spec"]
    assert volume in spec["volumes"]
    assert mount in spec["containers"][0]["volumeMounts"]
    assert spec["containers"][0]["resources"]["limits"] == {"memory": "1Gi"}


def test_storage_classes() -> None:
    objects = charted(
        storageClasses={
            "elastic-local": {
                "default": True,
                "annotations": {"a": "b"},
                "parameters": {"overprovisionRatio": 1.5, "stripes": 20, "thin": True},
            },
            "elastic-local-thin": None,
            "none": None,
            "old": {
                "parameters": {"volumeSource": "flexVolume"},
                "reclaimPolicy": "Retain",
                "allowVolumeExpansion": False,
            },
        }
    )
    classes = {each["metadata"]["name"]: each for each in of_kind(objects, "StorageClass")}
    assert classes.keys() == {"elastic-local", "elastic-local-xfs", "old"}
    ours = classes["elastic-local"]
    assert ours["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true", "a": "b"}
    assert ours["parameters"] == {"overprovisionRatio": "1.5", "stripes": "20", "thin": "true", "volumeSource": "csi"}
    assert classes["old"]["parameters"] == {"volumeSource": "flexVolume"}
    assert (classes["old"]["reclaimPolicy"], classes["old"]["allowVolumeExpansion"]) == ("Retain", False)
    for each in classes.values():
        assert each["provisioner"] == names.PROVISIONER
        parameters.volume_source(each["parameters"])


def test_the_configuration_of_static_volumes_is_read() -> None:
    """Every key that values.schema.json allows is known."""
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["static"]["properties"]
    keys = {
        "nodeLabelsForPV": ["zone"],
        "labelsForPV": {"made-by": "us"},
        "jobTolerations": [{"key": "disks", "operator": "Exists"}],
        "minResyncPeriod": "5m",
        "useNodeNameOnly": True,
        "setPVOwnerRef": True,
        "useAlphaAPI": False,
        "provisionerNotReadyNodeTaintKey": "not-ready",
        "maxParallelCleanings": 2,
        "cleaningTimeout": "1h",
    }
    of_class = {
        "hostDir": "/mnt/nvme",
        "mountDir": "/mnt/nvme",
        "blockCleanerCommand": ["/scripts/shred.sh", "2"],
        "filesystemCleanerCommand": ["/scripts/fsclean.sh"],
        "volumeMode": "Block",
        "accessMode": "ReadWriteOnce",
        "fsType": "ext4",
        "namePattern": "nvme*",
        "selector": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}],
        "labelsForPV": {"a": "b"},
    }
    assert keys.keys() == schema["configuration"]["properties"].keys()
    assert of_class.keys() == schema["classes"]["additionalProperties"]["properties"].keys()
    static = {"enabled": True, "jobs": True, "taint": True, "configuration": keys, "classes": {"fast.disks": of_class}}
    objects = charted(static=static)
    told = one(objects, "ConfigMap", "static-volumes")["data"]
    read = configuration.parse({key: yaml.safe_load(text) for key, text in told.items()})
    assert not read.unknown_keys
    assert (read.use_job_for_cleaning, read.remove_taint, read.parallel_cleanings) == (True, True, 2)
    assert read.classes.keys() == {"fast.disks", "local-disks"}
    assert read.classes["fast.disks"].labels == {"a": "b"}
    assert {each["metadata"]["name"] for each in of_kind(objects, "StorageClass")} >= {"fast.disks", "local-disks"}


def test_device_classes_have_the_keys_that_the_daemon_reads() -> None:
    properties = json.loads((CHART / "values.schema.json").read_text())["properties"]["deviceClasses"]["properties"]
    schema = properties["classes"]["additionalProperties"]["properties"]
    selector = {
        "paths": ["/dev/nvme*"],
        "models": ["A*"],
        "minimumSize": "1Gi",
        "maximumSize": "1Ti",
        "rotational": False,
    }
    assert selector.keys() == schema["devices"]["properties"].keys()
    thin = {"kind": "LVM", "group": "g", "thin": True, "thinPool": "p", "reserve": "1Gi", "devices": selector}
    files = {"kind": "LOOP", "folder": "/mnt/scratch/volumes", "capacity": "100Gi", "reserve": "1Gi"}
    assert {*thin, *files} == set(schema)
    objects = charted(deviceClasses={"default": "thin", "classes": {"thin": thin, "scratch": files}})
    text = one(objects, "ConfigMap", "device-classes")["data"]["classes.yaml"]
    classes = deviceclasses.read(text, daemon.settings.Settings("n").own_class)
    assert classes.keys() == {"default", "thin", "scratch"}
    assert classes["default"] == classes["thin"]
    known: set[str] = set()
    for kind in deviceclasses.DRIVER_KINDS:
        with pytest.raises(DecodeError) as refused:
            deviceclasses.read(
                f"classes: {{a: {{kind: {kind}, group: g, folder: /f, nothing: 1}}}}", classes["default"]
            )
        known |= set(re.findall(r"\w+", str(refused.value).rpartition("there are ")[2]))
    assert {"kind", *known} == set(schema)


def test_classes_have_the_parameters_that_are_read() -> None:
    """And what is refused as a value there is refused by the programs, too."""
    classes = json.loads((CHART / "values.schema.json").read_text())["properties"]["storageClasses"]
    schema = classes["additionalProperties"]["properties"]["parameters"]["properties"]
    with pytest.raises(parameters.ParameterError) as refused:
        parameters.parse({"nothing": "1"})
    assert set(schema) == set(str(refused.value).rpartition("there are ")[2].split())
    definitions = json.loads((CHART / "values.schema.json").read_text())["$defs"]
    for name, of in schema.items():
        allowed = definitions[of["$ref"].rpartition("/")[2]] if "$ref" in of else of
        for value in allowed.get("enum", ()):
            parameters.parse({name: str(value).lower() if isinstance(value, bool) else value})
    assert definitions["filesystem"]["enum"] == list(FILESYSTEMS)
    assert schema["erase"]["enum"] == list(parameters.ERASE)


def test_labels_of_ours_and_of_others() -> None:
    """On every object and pod; those of a component win, and the chart's own stay."""
    objects = charted(
        commonLabels={"team": "storage", "stage": "test"},
        provisioner={"podLabels": {"stage": "live"}},
        networkPolicy={"from": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]},
        monitoring={
            each: {"enabled": True, "labels": {"team": "us"}} for each in ("podMonitor", "alerts", "dashboard")
        },
    )
    own = {"PodMonitor": "us", "PrometheusRule": "us"}
    for each in objects:
        labels = each["metadata"]["labels"]
        expected = "us" if each["metadata"]["name"] == "elastic-local-dashboard" else own.get(each["kind"], "storage")
        assert (labels["team"], labels["app.kubernetes.io/name"]) == (expected, "elastic-local"), each["kind"]
    for kind, name, stage in (("DaemonSet", "daemon", "test"), ("Deployment", "provisioner", "live")):
        workload = one(objects, kind, name)["spec"]
        labels = workload["template"]["metadata"]["labels"]
        assert (labels["team"], labels["stage"]) == ("storage", stage)
        assert labels.items() >= workload["selector"]["matchLabels"].items()
        assert "team" not in workload["selector"]["matchLabels"]
    (rule,) = one(objects, "NetworkPolicy", "elastic-local")["spec"]["ingress"]
    assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}]


def test_static_volumes_and_nothing_else() -> None:
    """A daemon that has no volume group to wait for, and no driver that the kubelet would have to know."""
    objects = charted(CHART / "values-static-only.yaml")
    read = daemon.settings.read({"NODE_NAME": "n", **one(objects, "ConfigMap", "daemon")["data"]})
    assert (read.driver_kind, read.csi, read.flex_volume) == (deviceclasses.BINDMOUNT, False, False)
    provisioners = {each["provisioner"] for each in of_kind(objects, "StorageClass")}
    assert provisioners == {"kubernetes.io/no-provisioner"}


_REFUSED: dict[str, tuple[Json, str]] = {
    "a key that is not known": ({"storag": {}}, "storag"),
    "a setting that is not known": ({"daemon": {"settings": {"ORPHAN_GRACEE": "1h"}}}, "ORPHAN_GRACEE"),
    "a setting's wrong value": ({"daemon": {"settings": {"ORPHAN_GRACE": "soon"}}}, "ORPHAN_GRACE"),
    "a setting as an extra variable": ({"daemon": {"extraEnv": [{"name": "CSI", "value": "no"}]}}, "extraEnv"),
    "a relative folder": ({"kubeletRoot": "var/lib/kubelet"}, "kubeletRoot"),
    "a folder with ..": ({"stagingDir": "/mnt/../storage"}, "stagingDir"),
    "no plugin folder": ({"flexVolume": {"pluginDirs": []}}, "pluginDirs"),
    "two plugin folders in one": ({"flexVolume": {"pluginDirs": ["/a:/b"]}}, "pluginDirs"),
    "another driver": ({"volumeSource": "nfs"}, "volumeSource"),
    "a class of another driver": ({"storageClasses": {"a": {"parameters": {"volumeSource": "nfs"}}}}, "volumeSource"),
    "classes that no node could mount": ({"csi": {"enabled": False}}, "set volumeSource to the other one"),
    "a device class without a kind": ({"deviceClasses": {"classes": {"a": {"group": "b"}}}}, "kind"),
    "a class of a driver that is off": (
        {"flexVolume": {"enabled": False}, "storageClasses": {"old": {"parameters": {"volumeSource": "flexVolume"}}}},
        "volumeSource of StorageClass old is flexVolume, and flexVolume.enabled is false",
    ),
    "a parameter that is not known": ({"storageClasses": {"a": {"parameters": {"thinn": True}}}}, "thinn"),
    "a parameter's wrong value": ({"storageClasses": {"a": {"parameters": {"erase": "zeros"}}}}, "erase"),
    "a device class without a group": ({"deviceClasses": {"classes": {"a": {"kind": "LVM"}}}}, "group is required"),
    "a device class without a folder": ({"deviceClasses": {"classes": {"a": {"kind": "LOOP"}}}}, "folder is required"),
    "a key of another kind of device class": (
        {"deviceClasses": {"classes": {"a": {"kind": "LOOP", "folder": "/a", "group": "b"}}}},
        "deviceClasses.classes.a",
    ),
    "a default that is no device class": (
        {"deviceClasses": {"default": "b", "classes": {"a": {"kind": "LVM", "group": "a"}}}},
        "deviceClasses.default is b, and deviceClasses.classes has no such class",
    ),
    "a startup taint without policies": (
        {"startupTaint": {"enabled": True}, "policies": {"enabled": False}},
        "startupTaint.enabled needs policies.enabled",
    ),
    "a tag in the name of the image": ({"image": {"repository": "example.com:5000/a:1"}}, "image.repository"),
    "a size of memory that is none": ({"daemon": {"resources": {"limits": {"memory": "1Gigi"}}}}, "limits.memory"),
    "a label of the chart's own": ({"commonLabels": {"app.kubernetes.io/name": "a"}}, "app.kubernetes.io/name"),
    "a taint's wrong key": ({"startupTaint": {"key": "a taint"}}, "startupTaint"),
    "a digest that is none": ({"image": {"digest": "latest"}}, "digest"),
}


@pytest.mark.parametrize(("values", "told"), _REFUSED.values(), ids=_REFUSED)
def test_wrong_values_are_refused(values: Json, told: str) -> None:
    _refused(helm_template(**values), told)


def test_policies_are_refused_before_they_are_known() -> None:
    _refused(helm_template(kubernetes="1.29"), "set policies.enabled=false")


def _refused(rendered: subprocess.CompletedProcess[str], told: str) -> None:
    assert rendered.returncode != 0
    assert told in rendered.stderr


def test_values_know_every_setting() -> None:
    """A setting that a program gains is one of the values too: in `settings` of values.schema.json, or by a value of
    its own, and in neither case an extra variable."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    daemons = Heard({"NODE_NAME": "n", "STATIC_CONFIG_DIR": "/c"})
    daemon.settings.read(daemons)
    provisioners = Heard({})
    provisioner.settings.read(provisioners)
    assert set(schema["$defs"]["ownVariable"]["enum"]) == daemons.asked | provisioners.asked
    values_of_their_own = {
        "CAPACITY", "CSI", "DATA_DIR", "DEVICE_CLASSES_FILE", "DRIVER_KIND", "FLEX_VOLUME", "JOB_CONTAINER_IMAGE",
        "KUBELET_ROOT", "LOG_FORMAT", "LOG_LEVEL", "LVM_THIN_POOL", "LVM_USE_THIN_VOLUMES", "LVM_VOLUME_GROUP",
        "NODE_CLEANUP_CLASSES", "PLUGIN_DIR", "RESERVE", "STAGING_DIR", "STARTUP_TAINT", "STATIC_CONFIG_DIR",
    }  # fmt: skip
    of_the_pod = {"ELASTIC_LOCAL_SOCKET", "KUBECONFIG", "LISTEN_ADDRESS", "NAMESPACE", "NODE_NAME", "POD_NAME"}
    for name, asked in (("daemon", daemons.asked), ("provisioner", provisioners.asked)):
        settings = schema["properties"][name]["properties"]["settings"]["properties"].keys()
        assert settings == asked - values_of_their_own - of_the_pod
        told = (CHART / "values.yaml").read_text().partition(f"\n{name}:\n")[2].partition("  settings:")[0]
        assert settings == set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", told))


def test_every_value_is_documented_and_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values.keys() == schema["properties"].keys() - {"global"}
    for key, value in values.items():
        inner = schema["properties"][key].get("properties")
        if inner:
            assert value.keys() == inner.keys(), key
    lines = (CHART / "values.yaml").read_text().splitlines()
    top = [number for number, line in enumerate(lines) if re.match(r"[a-zA-Z]+:", line)]
    for number in top:
        nested = lines[number].endswith(":") and lines[number + 1].startswith("  #")
        assert lines[number - 1].startswith("#") or nested, lines[number]
