"""The campaigns of `make torture`, in short: some rounds from a seed that is always the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture import faults, kills
from tests.torture.figures import Figures
from tests.torture.growth import Growths
from tests.torture.powercuts import PowerCuts


def rounds(figures: Figures, number: int) -> Callable[[], bool]:
    return lambda: figures.counts["rounds"] >= number


@pytest.fixture
def seed() -> int:
    return 7


@pytest.mark.parametrize("backend", kills.BACKENDS)
def test_kills_lose_and_leak_nothing(tmp_path: Path, backend: str, seed: int) -> None:
    figures = Figures()
    kills.on_files(backend, tmp_path, seed, figures, rounds(figures, 12))
    assert not figures.complaints, f"kills --backend {backend} --seed {seed}\n{figures}"
    assert figures.counts["kills at a step"] + figures.counts["kills at a moment"] > 0
    assert figures.counts["checks"] > 0


@pytest.mark.device_mapper
def test_kills_on_lvm_lose_and_leak_nothing(tmp_path: Path, seed: int) -> None:
    figures = Figures()
    kills.on_lvm(tmp_path, seed, figures, rounds(figures, 3))
    assert not figures.complaints, f"kills --backend lvm --seed {seed}\n{figures}"
    assert sum(figures.counts[f"kills {how}"] for how in ("at a step", "at a moment", "of a command")) > 0
    assert figures.counts["checks"] > 0


@pytest.mark.device_mapper
def test_faults_of_disks_lose_and_leak_nothing(tmp_path: Path, seed: int) -> None:
    figures = Figures()
    faults.run(tmp_path, seed, figures, rounds(figures, 1))
    assert not figures.complaints, f"faults --seed {seed}\n{figures}"
    assert sum(number for kind, number in figures.counts.items() if kind.startswith("fault: ")) == 1
    assert figures.counts["settled"] + figures.counts["settled after a restart"] == 1


def test_growing_unmounted_that_is_cut_off_loses_nothing(tmp_path: Path, seed: int) -> None:
    figures = Figures()
    Growths(tmp_path, seed, figures).run(rounds(figures, 8))
    assert not figures.complaints, f"growth --seed {seed}\n{figures}"
    assert min(figures.counts[kind] for kind in ("kills", "power cuts", "refused by e2fsck -p")) > 0, figures


@pytest.mark.xdist_group("uml-own")
def test_a_power_cut_loses_nothing(tmp_path: Path, seed: int) -> None:
    figures = Figures()
    PowerCuts(tmp_path, seed, figures).run(rounds(figures, 1))
    assert not figures.complaints, f"powercuts --seed {seed}\n{figures}"
    assert (figures.counts["cuts at work"], figures.counts["checked to the end"], figures.counts["checks"]) == (1, 1, 4)
