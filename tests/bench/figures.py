"""Draws what was measured, for docs/performance.md: from build/bench/*.json, whichever are there, to docs/images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench import plot

MEASURED = Path("build/bench")
_IMAGES = Path("docs/images")


def main() -> None:
    drawers: dict[str, Callable[[Any], None]] = {"bench": _bench, "provisioner": _provisioner, "node": _node}
    for name, draw in drawers.items():
        file = MEASURED / f"{name}.json"
        if file.exists():
            draw(json.loads(file.read_text()))
            print(f"{file}: drawn to {_IMAGES}")


def _bench(measured: dict[str, float]) -> None:
    plot.bars(_IMAGES / "bench.svg", "make bench: medians, on a logarithmic scale", "ms", measured)


def _provisioner(measured: list[dict[str, Any]]) -> None:
    across = "PersistentVolumes of the cluster"

    def points(of: str, storage_class: str) -> plot.Points:
        return [(each["volumes"], 1000 * each[of][storage_class]) for each in measured if storage_class in each[of]]

    for verb in ("create", "delete"):
        plot.lines(
            _IMAGES / f"scale-{verb}.svg",
            f"Processor time of the provisioner to {verb} a volume",
            across,
            "ms",
            {
                "WaitForFirstConsumer": points(f"{verb}_processor", "late"),
                "Immediate": points(f"{verb}_processor", "any"),
            },
        )
    plot.lines(
        _IMAGES / "scale-memory.svg",
        "Memory of the provisioner that leads",
        across,
        "MiB",
        {"resident": [(each["volumes"], each["memory"] / 2**20) for each in measured if each["memory"]]},
        bound=250,
    )


def _node(measured: list[dict[str, Any]]) -> None:
    def points(of: str) -> plot.Points:
        return [(each["volumes"], 1000 * each[of]) for each in measured]

    across = "volumes of one node"
    plot.lines(
        _IMAGES / "scale-look.svg",
        "One look at all volumes of LVM",
        across,
        "ms",
        {"daemon": points("look"), "bare lvm report": points("bare_look")},
    )
    plot.lines(
        _IMAGES / "scale-mount.svg",
        "Mount of a volume that is there",
        across,
        "ms",
        {
            "daemon": points("mount"),
            "losetup, mount(2)": points("bare_mount"),
            "with look and bind": points("bare_whole"),
            "daemon, one more pod": points("bind"),
        },
    )


if __name__ == "__main__":
    main()
