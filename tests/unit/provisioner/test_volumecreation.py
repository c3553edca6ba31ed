import pytest

from contract import names, parameters, volume
from contract.parameters import VolumeParameters
from provisioner.decision import Create
from provisioner.volumecreation import persistent_volume
from tests.unit.provisioner.objects import GIB, claim, published, storage_class

XFS = VolumeParameters(filesystem="xfs", mount_options=("noatime", "discard"), stripes=2)


def test_a_placed_volume_has_the_whole_shape_of_the_protocol() -> None:
    asked = claim("data", accessModes=["ReadWriteOnce", "ReadOnlyMany"])
    of_elastic = storage_class(provisioner=names.PROVISIONER_OF_ELASTIC, reclaimPolicy="Retain")
    assert persistent_volume(asked, of_elastic, Create(3 * GIB // 2, XFS, published("n1"))) == {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": "pvc-uid-of-data",
            "labels": {"volumes.k8s.elastic.co/node-affinity": "n1"},
            "annotations": {
                "pv.kubernetes.io/provisioned-by": "volumes.k8s.elastic.co/elastic-local",
                names.GRANTED_ANNOTATION: str(3 * GIB // 2),
                names.POOL_ANNOTATION: "vg",
            },
            "finalizers": [names.FINALIZER],
        },
        "spec": {
            "capacity": {"storage": "1536Mi"},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "elastic-local",
            "claimRef": {
                "kind": "PersistentVolumeClaim",
                "apiVersion": "v1",
                "namespace": "default",
                "name": "data",
                "uid": "uid-of-data",
                "resourceVersion": "1",
            },
            "flexVolume": {
                "driver": "volumes.k8s.elastic.co/elastic-local",
                "fsType": "xfs",
                "options": parameters.to_options(XFS, 3 * GIB // 2),
            },
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["host-n1"]}
                            ]
                        }
                    ]
                }
            },
        },
    }


def test_a_csi_volume_differs_in_its_source_alone() -> None:
    size, place = 3 * GIB // 2, published("n1")
    flex = persistent_volume(claim(), storage_class(), Create(size, XFS, place))
    body = persistent_volume(claim(), storage_class(), Create(size, XFS, place, source="csi"))
    assert body["spec"].pop("csi") == {
        "driver": "elastic-local.volumes.k8s.elastic.co",
        "volumeHandle": "pvc-uid-of-data",
        "fsType": "xfs",
        "volumeAttributes": {"size": str(size), "stripes": "2"},
    }
    assert body["spec"].pop("mountOptions") == ["noatime", "discard"]
    del flex["spec"]["flexVolume"]
    assert body == flex


def test_a_block_volume_has_no_filesystem_and_is_read_so() -> None:
    raw = VolumeParameters(filesystem="raw", stripes=2)
    body = persistent_volume(
        claim(volumeMode="Block"), storage_class(), Create(GIB, raw, published("n1"), source="csi")
    )
    assert body["spec"]["volumeMode"] == "Block"
    assert "fsType" not in body["spec"]["csi"]
    assert "mountOptions" not in body["spec"]
    body["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    seen = volume.read(body)
    assert seen is not None
    assert (seen.volume_mode, seen.filesystem, seen.parameters()) == ("Block", "raw", raw)


def test_a_volume_without_a_place_is_tied_to_nothing() -> None:
    body = persistent_volume(claim(node=""), storage_class(), Create(GIB, VolumeParameters(), None))
    assert set(body["metadata"]) == {"name", "annotations"}
    assert "nodeAffinity" not in body["spec"]


@pytest.mark.parametrize("source", [volume.FLEX_VOLUME, volume.CSI])
def test_what_is_written_is_what_both_programs_read(source: str) -> None:
    original = volume.Original("pvc-1", "u-1")
    body = persistent_volume(claim(), storage_class(), Create(GIB, XFS, published("n1"), original, source))
    body["metadata"] |= {"uid": "u", "resourceVersion": "7"}
    seen = volume.read(body)
    assert seen is not None
    assert (seen.source, seen.parameters(), seen.original) == (source, XFS, original)
    assert (seen.size, seen.node_label, seen.hostnames, seen.pool) == (GIB, "n1", ("host-n1",), "vg")
    assert seen.claim is not None
    assert seen.claim.uid == "uid-of-data"
