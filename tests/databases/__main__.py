"""`make databases`: databases of Debian on volumes of the sandbox, each with a client that writes all the time.

    python -m tests.databases                        # all
    python -m tests.databases PostgreSQL/csi etcd    # these: by the beginning of DATABASE/DRIVER/FILESYSTEM

Ends with 1 if one of them lost anything, or got an error that it must not get. What is done is in trial.py.
"""

import argparse
import asyncio
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from contract.parameters import VOLUME_SOURCE
from contract.volume import CSI, FLEX_VOLUME
from kube.resources import CLASSES, SNAPSHOT_CLASSES
from tests.databases.engine import Engine, Refused
from tests.databases.keyvalue import Etcd, JetStream, ZooKeeper
from tests.databases.lucene import Lucene
from tests.databases.sql import Mariadb, Postgresql
from tests.databases.trial import SNAPSHOT_CLASS, Outcome, Trial
from tests.ports import reserved_port
from tests.sandbox import mountspace
from tests.sandbox.nodes import VOLUME_SOURCE_VARIABLE, NodeSpec
from tests.sandbox.sandbox import COMPONENTS, Sandbox
from tests.sandbox.snapshots import snapshot_class
from tests.sandbox.workloads import Namespace, storage_class

POSTGRESQL = Postgresql("PostgreSQL", "postgresql", user="postgres")

TRIALS: tuple[tuple[Engine, str, str], ...] = (
    (POSTGRESQL, CSI, "ext4"),
    (POSTGRESQL, CSI, "xfs"),
    (POSTGRESQL, FLEX_VOLUME, "ext4"),
    (POSTGRESQL, FLEX_VOLUME, "xfs"),
    (Mariadb("MariaDB", "postgresql"), CSI, "xfs"),
    (Etcd("etcd", "postgresql"), CSI, "xfs"),
    (Lucene("Lucene", "elasticsearch", needs_of="Elasticsearch"), CSI, "ext4"),
    (JetStream("NATS", "kafka", needs_of="Kafka", hangs_when_full=True, silent_when_full=True), CSI, "xfs"),
    (ZooKeeper("ZooKeeper", "kafka", needs_of="Kafka", hangs_when_full=True), CSI, "xfs"),
)
"""Database, driver, filesystem."""
_ERROR_CHARACTERS = 60


async def main(chosen: Sequence[str]) -> list[Outcome]:
    os.environ[VOLUME_SOURCE_VARIABLE] = CSI
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    folder = Path(tempfile.mkdtemp(prefix="databases-"))
    outcomes = []
    try:
        node = NodeSpec("one", hostname="ip-10-0-0-1.internal", capacity="4Gi")
        async with Sandbox(folder, [node], components=[COMPONENTS / "snapshots"], snapshots=True) as sandbox:
            await sandbox.api.create(SNAPSHOT_CLASSES, snapshot_class(SNAPSHOT_CLASS))
            for engine, source, filesystem in TRIALS:
                if f"{engine.name}/{source}/{filesystem}".startswith(tuple(chosen) or ""):
                    outcomes.append(await attempt(sandbox, engine, source, filesystem))
    finally:
        shutil.rmtree(folder)
    return outcomes


async def attempt(sandbox: Sandbox, engine: Engine, source: str, filesystem: str) -> Outcome:
    print(f"\n{engine.name} {engine.version()}, {source}, {filesystem}", flush=True)
    outcome = Outcome(engine, source, filesystem)
    begin = time.monotonic()
    name = f"{engine.name}-{source}-{filesystem}".lower()
    shipped = await sandbox.api.get(CLASSES, "elastic-local-xfs" if filesystem == "xfs" else "elastic-local")
    kept = {key: shipped[key] for key in ("allowVolumeExpansion", "mountOptions") if key in shipped}
    parameters = {key: value for key, value in (shipped.get("parameters") or {}).items() if key != VOLUME_SOURCE}
    await sandbox.api.create(CLASSES, storage_class(name, volume_source=source, parameters=parameters, **kept))
    async with Namespace(sandbox, name) as namespace:
        with reserved_port() as port:
            try:
                await Trial(namespace, engine, source, name, port, outcome).run()
            except (AssertionError, Refused) as error:
                outcome.failure = str(error)
                print(f"    FAILED: {error}", flush=True)
                traceback.print_exc()
    print(f"    {outcome.records} records, {time.monotonic() - begin:.0f} s", flush=True)
    return outcome


def table(outcomes: Sequence[Outcome]) -> str:
    rows = [("database", "version", "for", "volume", "records", "steps", "error when full", "result")]
    for each in outcomes:
        rows.append(
            (
                each.engine.name,
                each.engine.version(),
                each.engine.needs_of or "-",
                f"{each.source}, {each.filesystem}",
                str(each.records),
                str(len(each.done)),
                _end_of(each.error_when_full),
                each.failure.splitlines()[0] if each.failure else "all that was acknowledged is there",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _end_of(error: str) -> str:
    """An error says at its end what the matter is."""
    return error if len(error) <= _ERROR_CHARACTERS else f"...{error[-_ERROR_CHARACTERS:]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.databases", description=__doc__)
    parser.add_argument("databases", nargs="*")
    parser.add_argument("--verbose", action="store_true", help="with the errors that the clients get")
    given = parser.parse_args()
    if given.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        mountspace.enter_private()
        outcomes = asyncio.run(main(given.databases))
    except mountspace.NotRoot as error:
        sys.exit(str(error))
    except asyncio.CancelledError:
        sys.exit("\nStopped: no mounts, loop devices, processes or files are left.")
    print(f"\n{table(outcomes)}")
    sys.exit(any(outcome.failure for outcome in outcomes))
