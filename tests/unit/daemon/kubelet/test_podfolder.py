"""The kubelet's folder: what is believed of a path, and how it is opened."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import names
from daemon.errors import FolderMissing, NotAPodFolder
from daemon.kubelet.podfolder import PodFolder

ROOT = Path("/nowhere/kubelet")
UID = "0f2c1f5e-7f0a-4d8e-9a61-0c9a8ab3c3d1"
PV = f"pvc-{UID}"


def written(root: Path | str = ROOT, uid: str = UID, driver: str = names.DRIVER_FOLDER, name: str = PV) -> str:
    return f"{root}/pods/{uid}/volumes/{driver}/{name}"


def made(root: Path) -> PodFolder:
    folder = PodFolder.parse(written(root), root)
    folder.path.mkdir(parents=True)
    return folder


LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@given(uid=st.uuids(), name=st.lists(LABEL, min_size=1, max_size=4).map(".".join))
def test_what_the_kubelet_makes_is_read(uid: object, name: str) -> None:
    folder = PodFolder.parse(written(uid=str(uid), name=name), ROOT)
    assert (folder.pod_uid, folder.name) == (str(uid), name)
    assert str(folder.path) == written(uid=str(uid), name=name)


@given(st.text(max_size=60) | st.text("ab./-\0\n~", max_size=40))
def test_no_other_text_in_any_place_is_taken(text: str) -> None:
    """Whatever is accepted is, letter by letter, one folder directly below the pod's folder of our driver."""
    for path in (
        text,
        written() + text,
        written(name=text),
        written(uid=text),
        written(driver=text),
        written(root=text),
        written(root=f"{ROOT}/{text}"),
    ):
        try:
            folder = PodFolder.parse(path, ROOT)
        except NotAPodFolder:
            continue
        assert str(folder.path) == path == os.path.normpath(path)
        assert folder.path.parent == ROOT / "pods" / folder.pod_uid / "volumes" / names.DRIVER_FOLDER
        assert len(folder.path.relative_to(ROOT).parts) == 5
        assert len(folder.name) <= 253
        assert set(folder.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


@pytest.mark.parametrize(
    "path",
    [
        written(name=".."),
        written(name="."),
        written(name=".hidden"),
        written(name="a..b"),
        written(name="-rf"),
        written(name=f"{PV}/"),
        written(name=f"{PV}/sub"),
        written(name=f"{PV}\n"),
        written(name=f"{PV}\0"),
        written(name=PV.upper()),
        written(name="a" * 254),
        written(uid=".."),
        written(uid=UID.upper()),
        written(uid=UID + "0"),
        written(driver="volumes.k8s.elastic.co~other"),
        written(driver="volumes-k8s.elastic.co~elastic-local"),
        written(root=f"{ROOT}/"),
        written(root=f"{ROOT}2"),
        written(root=f"/x{ROOT}"),
        written().replace("/pods/", "//pods/"),
        written().replace("/volumes/", "/volumes/../volumes/"),
        written().removeprefix("/"),
        str(ROOT),
        "",
    ],
)
def test_refused(path: str) -> None:
    with pytest.raises(NotAPodFolder, match="KUBELET_ROOT"):
        PodFolder.parse(path, ROOT)


def test_a_static_pod_has_a_hash_for_a_uid() -> None:
    assert PodFolder.parse(written(uid="0123456789abcdef" * 2), ROOT).pod_uid == "0123456789abcdef" * 2


def test_the_kubelets_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "kubelet"
    link.symlink_to("data")
    folder = PodFolder.parse(written(link), link)
    assert folder == PodFolder.parse(written(tmp_path / "data"), link)
    assert folder.path.is_relative_to(tmp_path / "data")
    folder.path.mkdir(parents=True)
    with folder.open() as descriptor:
        assert os.path.samestat(os.fstat(descriptor), folder.path.stat())
    with folder.open_parent() as descriptor:
        assert os.path.samestat(os.fstat(descriptor), folder.path.parent.stat())


@pytest.mark.parametrize("steps_up", range(5))
def test_a_link_on_the_way_is_not_followed(tmp_path: Path, steps_up: int) -> None:
    folder = made(tmp_path)
    component = [folder.path, *folder.path.parents][steps_up]
    component.rename(tmp_path / "moved")
    component.symlink_to(tmp_path / "moved")
    assert folder.path.is_dir()
    with pytest.raises(NotAPodFolder, match="links are not followed"), folder.open():
        pass


def test_it_is_opened_by_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path)
    monkeypatch.setattr(PodFolder, "_descend", pytest.fail)
    with folder.open() as descriptor:
        assert os.path.samestat(os.fstat(descriptor), folder.path.stat())
    with folder.open_parent() as descriptor:
        assert os.path.samestat(os.fstat(descriptor), folder.path.parent.stat())


def test_a_link_above_the_root_is_the_administrators(tmp_path: Path) -> None:
    """What is below the root of the kubelet may be a pod's work. One above it may be made while the daemon runs."""
    root = tmp_path / "lib" / "kubelet"
    root.mkdir(parents=True)
    folder = made(root)
    (tmp_path / "lib").rename(tmp_path / "moved")
    (tmp_path / "lib").symlink_to("moved")
    with folder.open() as descriptor:
        assert os.path.samestat(os.fstat(descriptor), folder.path.stat())


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    folder = made(tmp_path)
    folder.path.rmdir()
    folder.path.touch()
    with pytest.raises(NotAPodFolder, match="not a plain folder"), folder.open():
        pass


def test_a_folder_swapped_after_it_was_opened(tmp_path: Path) -> None:
    folder = made(tmp_path)
    victim = tmp_path / "victim"
    victim.mkdir()
    with folder.open() as descriptor:
        before = folder.path.stat()
        folder.path.rename(tmp_path / "moved")
        folder.path.symlink_to(victim)
        assert os.path.samestat(Path(f"/proc/self/fd/{descriptor}").stat(), before)


def test_missing(tmp_path: Path) -> None:
    folder = PodFolder.parse(written(tmp_path), tmp_path)
    with pytest.raises(FolderMissing, match="does not exist"), folder.open():
        pass
    nowhere = PodFolder.parse(written(tmp_path / "absent"), tmp_path / "absent")
    with pytest.raises(NotAPodFolder, match="set KUBELET_ROOT"), nowhere.open():
        pass


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    folder = made(tmp_path)

    def opened() -> list[str]:
        links = [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]  # but for that of this list
        return [path for path in map(os.readlink, links) if path.startswith(str(tmp_path))]

    with folder.open(), folder.open_parent():
        assert len(opened()) == 2
    folder.path.rmdir()
    with pytest.raises(FolderMissing), folder.open():
        pass
    assert opened() == []
