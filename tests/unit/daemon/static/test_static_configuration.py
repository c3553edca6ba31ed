"""Each key, each default, each message."""

from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from daemon.static import configuration
from daemon.static.configuration import BLOCK, ClassConfiguration, Configuration, ConfigurationError
from service import yamldecoder

Write = Callable[..., Path]
SCHEMA = jsonschema.Draft7Validator(configuration.schema())


def of_schema(folder: Path) -> bool:
    """Whether the schema takes the folder's keys."""
    files = [file for file in folder.iterdir() if not file.name.startswith("..")]
    valid: bool = SCHEMA.is_valid({file.name: yamldecoder.load(file.read_text()) for file in files})
    return valid


FOLDERS = "hostDir: /mnt/disks\n  mountDir: /mnt/disks\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """The folder with these files, as a mounted ConfigMap: links to files in a folder beside them."""
    data = tmp_path / "..2026_11_21"
    data.mkdir()
    (tmp_path / "..data").symlink_to(data.name)

    def write(**files: str) -> Path:
        for name, content in files.items():
            (data / name).write_text(content)
            (tmp_path / name).unlink(missing_ok=True)
            (tmp_path / name).symlink_to(f"..data/{name}")
        return tmp_path

    return write


def refused(folder: Path) -> str:
    with pytest.raises(ConfigurationError) as error:
        configuration.read(folder)
    return str(error.value).removeprefix(f"{folder}/")


def test_an_empty_folder_has_no_classes_and_all_defaults(write: Write) -> None:
    parsed = configuration.read(write())
    assert parsed == Configuration(
        classes={},
        node_labels=(),
        labels={},
        use_alpha_api=False,
        use_job_for_cleaning=False,
        job_tolerations=(),
        min_resync_period=300,
        use_node_name_only=False,
        set_owner=False,
        remove_taint=False,
        taint_key="",
        parallel_cleanings=4,
        cleaning_timeout=86400,
    )


def test_defaults_of_a_class(write: Write) -> None:
    parsed = configuration.read(write(storageClassMap=f"fast:\n  {FOLDERS}"))
    assert parsed.classes == {
        "fast": ClassConfiguration(
            name="fast",
            host_dir="/mnt/disks",
            mount_dir=Path("/mnt/disks"),
            block_cleaner=("/scripts/quick_reset.sh",),
            filesystem_cleaner=(),
            volume_mode="Filesystem",
            access_mode="ReadWriteOnce",
            fs_type="",
            name_pattern="*",
            selector=(),
            labels={},
        )
    }


def test_every_key(write: Write) -> None:
    folder = write(
        storageClassMap="""
fast:
  hostDir: /mnt/fast/
  mountDir: /container//fast
  blockCleanerCommand: [/scripts/shred.sh, 2]
  filesystemCleanerCommand: ["/bin/clean"]
  volumeMode: Block
  accessMode: ReadWriteOncePod
  fsType: xfs
  namePattern: nvme*,sd?
  selector:
  - matchExpressions:
    - {key: disk, operator: In, values: [ssd, 1]}
  labelsForPV: {tier: gold}
slow: {hostDir: /mnt/slow, mountDir: /mnt/slow}
""",
        nodeLabelsForPV="- zone\n- rack\n",
        labelsForPV="team: storage\nyear: 2026\nspare: yes\n",
        useAlphaAPI="true",
        useJobForCleaning="on",
        jobTolerations="- {key: dedicated, operator: Equal, value: db, effect: NoSchedule, tolerationSeconds: 5}\n",
        minResyncPeriod="1h30m",
        useNodeNameOnly="y",
        setPVOwnerRef="yes",
        removeNodeNotReadyTaint="True",
        provisionerNotReadyNodeTaintKey="storage/not-ready",
        maxParallelCleanings="2",
        cleaningTimeout="36h",
    )
    assert of_schema(folder)
    parsed = configuration.read(folder)
    assert parsed == Configuration(
        classes={
            "fast": ClassConfiguration(
                name="fast",
                host_dir="/mnt/fast",
                mount_dir=Path("/container/fast"),
                block_cleaner=("/scripts/shred.sh", "2"),
                filesystem_cleaner=("/bin/clean",),
                volume_mode=BLOCK,
                access_mode="ReadWriteOncePod",
                fs_type="xfs",
                name_pattern="nvme*,sd?",
                selector=({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd", "1"]}]},),
                labels={"tier": "gold"},
            ),
            "slow": ClassConfiguration(name="slow", host_dir="/mnt/slow", mount_dir=Path("/mnt/slow")),
        },
        node_labels=("zone", "rack"),
        labels={"team": "storage", "year": "2026", "spare": "true"},
        use_alpha_api=True,
        use_job_for_cleaning=True,
        job_tolerations=(
            {
                "key": "dedicated",
                "operator": "Equal",
                "value": "db",
                "effect": "NoSchedule",
                "tolerationSeconds": 5,
            },
        ),
        min_resync_period=5400,
        use_node_name_only=True,
        set_owner=True,
        remove_taint=True,
        taint_key="storage/not-ready",
        parallel_cleanings=2,
        cleaning_timeout=36 * 3600,
    )


@pytest.mark.parametrize("word", ["yes", "Yes", "on", "y", "Y", "true", "TRUE"])
def test_booleans_of_yaml_1_1(write: Write, word: str) -> None:
    assert configuration.read(write(setPVOwnerRef=word)).set_owner is True


@pytest.mark.parametrize("word", ["no", "off", "n", "N", "false", "False"])
def test_their_opposites(write: Write, word: str) -> None:
    assert configuration.read(write(setPVOwnerRef=word)).set_owner is False


def test_scalars_where_text_belongs_become_text(write: Write) -> None:
    parsed = configuration.read(write(labelsForPV="a: 1\nb: 1.5\nc: true\nd: 2026-11-21\ne: 12:30:00\nf: 1_0\n"))
    assert parsed.labels == {"a": "1", "b": "1.5", "c": "true", "d": "2026-11-21", "e": "12:30:00", "f": "10"}


def test_names_of_fields_in_any_case(write: Write) -> None:
    folder = write(storageclassmap="fast: {HostDir: /a, MOUNTDIR: /b, volumemode: Block}", UseNodeNameOnly="true")
    parsed = configuration.read(folder)
    assert parsed.classes["fast"].host_dir == "/a"
    assert parsed.classes["fast"].volume_mode == BLOCK
    assert parsed.use_node_name_only


def test_of_duplicate_keys_the_last_one_wins(write: Write) -> None:
    parsed = configuration.read(write(storageClassMap=f"fast:\n  {FOLDERS}  fsType: xfs\n  fsType: ext4\n"))
    assert parsed.classes["fast"].fs_type == "ext4"


def test_a_key_in_two_spellings_is_refused(write: Write) -> None:
    folder = write(storageClassMap="fast: {hostDir: /a, HostDir: /b, mountDir: /c}")
    assert refused(folder) == "storageClassMap.fast: hostDir and HostDir are the same key: keep one of them"


def test_unknown_keys_are_reported_and_ignored(write: Write) -> None:
    parsed = configuration.read(write(storageClassMap=f"fast:\n  {FOLDERS}  fstype_: xfs\n", mountPropagation="x"))
    assert parsed.unknown_keys == ("mountPropagation", "storageClassMap.fast.fstype_")


MISCONFIGURED = (
    "storageClassMap.fast: Storage Class fast is misconfigured, missing HostDir or MountDir parameter: give both, the "
    "folder on the node and the same folder in this container"
)
EMPTY_CLEANER = (
    "storageClassMap.fast.blockCleanerCommand: Invalid empty block cleaner command for class fast: give a program and "
    "its arguments, or leave the key out for the quick reset"
)
PATHS = "allowed is an absolute path without `..`, and not /"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("fast: {hostDir: /a}", MISCONFIGURED),
        ("fast: {mountDir: /a}", MISCONFIGURED),
        ("fast:", MISCONFIGURED),
        ("fast: {hostDir: '', mountDir: /a}", MISCONFIGURED),
        ("fast: {blockCleanerCommand: []}", EMPTY_CLEANER),
        ("fast: {hostDir: /a, mountDir: /a, blockCleanerCommand: [], volumeMode: x}", EMPTY_CLEANER),
        ("fast: {hostDir: /a, volumeMode: x}", MISCONFIGURED),
        (
            "fast: {hostDir: /a, mountDir: /a, volumeMode: blok}",
            "storageClassMap.fast.volumeMode: unsupported volume mode blok: allowed is Filesystem or Block",
        ),
        (
            "fast: {hostDir: /a, mountDir: /a, accessMode: RWO}",
            "storageClassMap.fast.accessMode is 'RWO': allowed is ReadWriteOnce, ReadOnlyMany, ReadWriteMany, "
            "ReadWriteOncePod",
        ),
        ("fast: {hostDir: a, mountDir: /a}", f"storageClassMap.fast.hostDir is 'a': {PATHS}"),
        ("fast: {hostDir: /a, mountDir: /a/../b}", f"storageClassMap.fast.mountDir is '/a/../b': {PATHS}"),
        ("fast: {hostDir: //, mountDir: /a}", f"storageClassMap.fast.hostDir is '//': {PATHS}"),
        ("fast: /mnt/disks", "storageClassMap.fast is '/mnt/disks': allowed is a map"),
        ("[fast]", "storageClassMap is ['fast']: allowed is a map"),
        ("fast: {hostDir: [/a], mountDir: /a}", "storageClassMap.fast.hostDir is ['/a']: allowed is text"),
        (
            "fast: {hostDir: /a, mountDir: /a, blockCleanerCommand: shred}",
            "storageClassMap.fast.blockCleanerCommand is 'shred': allowed is a list",
        ),
        (
            "fast: {hostDir: /a, mountDir: /a, selector: [{matchExpressions: [{key: a, operator: Is}]}]}",
            "storageClassMap.fast.selector[0].matchExpressions[0].operator is 'Is': "
            "allowed is In, NotIn, Exists, DoesNotExist, Gt, Lt",
        ),
        (
            "fast: {hostDir: /a, mountDir: /a, selector: [{matchLabels: {a: b}}]}",
            "storageClassMap.fast.selector[0].matchLabels is not known: allowed is matchExpressions, matchFields",
        ),
    ],
)
def test_a_class_that_can_not_be_used(write: Write, value: str, message: str) -> None:
    assert refused(write(storageClassMap=value)) == message
    assert not of_schema(write(storageClassMap=value))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("useAlphaAPI", "maybe", "useAlphaAPI is 'maybe': allowed is true or false"),
        ("useAlphaAPI", "1", "useAlphaAPI is 1: allowed is true or false"),
        ("minResyncPeriod", "5", "minResyncPeriod: '5' is not a duration such as 10s, 5m0s or 1h30m"),
        ("cleaningTimeout", "0", "cleaningTimeout is 0: allowed is a duration above zero, such as 24h"),
        ("maxParallelCleanings", "0", "maxParallelCleanings is 0: allowed is a whole number of at least 1"),
        ("maxParallelCleanings", "many", "maxParallelCleanings is 'many': allowed is a whole number"),
        ("nodeLabelsForPV", "zone", "nodeLabelsForPV is 'zone': allowed is a list"),
        ("labelsForPV", "a: [b]", "labelsForPV.a is ['b']: allowed is text"),
        (
            "jobTolerations",
            "[{operator: Is}]",
            "jobTolerations[0].operator is 'Is': allowed is Exists, Equal",
        ),
        (
            "removeNodeNotReadyTaint",
            "true",
            "provisionerNotReadyNodeTaintKey is empty: allowed with removeNodeNotReadyTaint is the key of the taint",
        ),
    ],
)
def test_a_key_that_can_not_be_used(write: Write, key: str, value: str, message: str) -> None:
    assert refused(write(**{key: value})) == message
    assert not of_schema(write(**{key: value}))


def test_what_is_no_yaml_names_the_file(write: Write) -> None:
    assert refused(write(storageClassMap="fast: {")).startswith("storageClassMap: not a YAML value: ")


def test_what_is_no_text_names_the_file(write: Write) -> None:
    folder = write()
    (folder / "labelsForPV").write_bytes(b"\xff")
    assert refused(folder).startswith("labelsForPV: not UTF-8 text: ")


def test_a_file_that_can_not_be_read_is_an_error(write: Write) -> None:
    folder = write()
    (folder / "labelsForPV").symlink_to("..data/gone")
    assert refused(folder) == (
        "labelsForPV: No such file or directory: make it the mounted ConfigMap with a file for each key"
    )


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="missing: No such file or directory: make it the mounted ConfigMap"):
        configuration.read(tmp_path / "missing")


def test_folders_in_it_are_ignored(write: Write) -> None:
    folder = write(useAlphaAPI="true")
    (folder / "storageClassMap").mkdir()
    assert configuration.read(folder).use_alpha_api
