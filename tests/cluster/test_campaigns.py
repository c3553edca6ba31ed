"""The campaigns of `make torture` on a whole cluster, in short: some rounds from a seed that is always the same."""

from collections.abc import Callable
from pathlib import Path

from tests.torture.cluster import apifaults
from tests.torture.cluster import kills as clusterkills
from tests.torture.figures import Figures

_SEED = 7


def rounds(figures: Figures, number: int) -> Callable[[], bool]:
    return lambda: figures.counts["rounds"] >= number


def test_kills_of_a_cluster_lose_and_leak_nothing(short_folders: Callable[[], Path]) -> None:
    figures = Figures()
    clusterkills.run(short_folders(), _SEED, figures, rounds(figures, 2))
    assert not figures.complaints, f"clusterkills --seed {_SEED}\n{figures}"
    assert figures.counts["kills of a daemon"] > 0
    assert figures.counts["settled"] > 0


def test_faults_of_the_api_server_lose_and_leak_nothing(short_folders: Callable[[], Path]) -> None:
    figures = Figures()
    apifaults.run(short_folders(), _SEED, figures, rounds(figures, 2))
    assert not figures.complaints, f"apifaults --seed {_SEED}\n{figures}"
    assert sum(number for kind, number in figures.counts.items() if kind.startswith("fault: ")) > 0
    assert figures.counts["settled"] > 0
