"""`make torture`: kills, power cuts and faults at random, against a model of what must be there (docs/reliability.md).

    python -m tests.torture kills --backend loop --seed 7 --rounds 1000
    python -m tests.torture powercuts --minutes 60
    python -m tests.torture faults --seed 7 --rounds 100
    python -m tests.torture apifaults --minutes 60
    python -m tests.torture clusterkills --rounds 200

The seed is printed first, the figures at the end. Ends with 1 on any loss or leak.
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.sandbox import mountspace
from tests.torture import faults, kills
from tests.torture.cluster import apifaults
from tests.torture.cluster import kills as clusterkills
from tests.torture.figures import Figures
from tests.torture.growth import Growths
from tests.torture.lvmnode import has_device_mapper
from tests.torture.powercuts import PowerCuts

_LVM = "lvm"
_ON_CLUSTERS = {"apifaults": apifaults.run, "clusterkills": clusterkills.run}
_ROUNDS = 100


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=["kills", "growth", "powercuts", "faults", *_ON_CLUSTERS])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--rounds", type=int, default=0, help="how many; 0: as many as there is time for")
    parser.add_argument("--minutes", type=float, default=0, help=f"how long; without both: {_ROUNDS} rounds")
    parser.add_argument("--backend", choices=[*kills.BACKENDS, _LVM], default="loop", help="of kills")
    parser.add_argument("--verbose", action="store_true", help="with what the daemons log")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        on_lvm = chosen.campaign == "faults" or (chosen.campaign == "kills" and chosen.backend == _LVM)
        if on_lvm and not has_device_mapper():
            print(f"{chosen.campaign} on {_LVM} --seed {chosen.seed}, in User-mode Linux", flush=True)
            return kills.in_guest([*sys.argv[1:], "--seed", str(chosen.seed)], Path(folder))
        return _run(chosen, Path(folder))


def _run(chosen: argparse.Namespace, folder: Path) -> int:
    print(f"{chosen.campaign} --seed {chosen.seed}", flush=True)
    mountspace.enter_private()
    # That daemons complain is what they are here for.
    logging.getLogger().addHandler(logging.StreamHandler() if chosen.verbose else logging.NullHandler())
    figures = Figures()
    begin = time.monotonic()
    rounds = chosen.rounds or (0 if chosen.minutes else _ROUNDS)
    enough = _limit(figures, rounds, begin + chosen.minutes * 60 if chosen.minutes else 0)
    if on_cluster := _ON_CLUSTERS.get(chosen.campaign):
        on_cluster(folder, chosen.seed, figures, enough)
    elif chosen.campaign == "powercuts":
        PowerCuts(folder, chosen.seed, figures).run(enough)
    elif chosen.campaign == "growth":
        Growths(folder, chosen.seed, figures).run(enough)
    elif chosen.campaign == "faults":
        faults.run(folder, chosen.seed, figures, enough)
    elif chosen.backend == _LVM:
        kills.on_lvm(folder, chosen.seed, figures, enough)
    else:
        kills.on_files(chosen.backend, folder, chosen.seed, figures, enough)
    figures.counts["seconds"] = round(time.monotonic() - begin)
    print(figures, flush=True)
    return 1 if figures.complaints else 0


def _limit(figures: Figures, rounds: int, deadline: float) -> Callable[[], bool]:
    def enough() -> bool:
        return bool(rounds and figures.counts["rounds"] >= rounds) or bool(deadline and time.monotonic() > deadline)

    return enough


sys.exit(main())
