"""python -m tests.sandbox.apiserver --port 0 --data DIR [--kubeconfig FILE]

Prints one line of JSON with its address when it serves, and runs until it is told to stop.
"""

import argparse
import asyncio
import contextlib
import json
import signal
from pathlib import Path

from aiohttp import web

from tests.sandbox.apiserver import builtin, kubeconfig
from tests.sandbox.apiserver.collector import Collector
from tests.sandbox.apiserver.guard import Guard
from tests.sandbox.apiserver.journal import DataInUse, Journal
from tests.sandbox.apiserver.registry import Registry
from tests.sandbox.apiserver.server import application
from tests.sandbox.apiserver.store import Store

_HOST = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox.apiserver", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0: a free one")
    parser.add_argument("--data", type=Path, required=True, help="folder that keeps the objects")
    parser.add_argument("--kubeconfig", type=Path, help="file to write for clients")
    parser.add_argument("--history", type=int, default=5000, help="changes a resource remembers for watches")
    parser.add_argument("--bookmark-seconds", type=float, default=30.0, help="time between bookmarks of a watch")
    parser.add_argument("--audit-log", type=Path, help="file for what service accounts ask for, a line of JSON each")
    options = parser.parse_args()
    try:
        asyncio.run(_serve(options))
    except DataInUse as error:
        parser.exit(1, f"{error}\n")
    except OSError as error:
        parser.exit(1, f"can't listen on {_HOST}:{options.port}: {error.strerror}: choose another --port\n")


async def _serve(options: argparse.Namespace) -> None:
    store = Store(Journal(options.data), options.history)
    registry = Registry(store)
    builtin.provide(registry)
    guard = Guard(store, options.audit_log)
    runner = web.AppRunner(
        application(registry, options.bookmark_seconds, guard),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.1,
    )
    await runner.setup()
    collector = asyncio.create_task(Collector(registry).run())
    site = web.TCPSite(runner, _HOST, options.port, reuse_address=True, backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    address = f"http://{_HOST}:{port}"
    if options.kubeconfig:
        kubeconfig.write(options.kubeconfig, address)
    print(json.dumps({"address": address, "port": port}), flush=True)
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    await stop.wait()
    await runner.cleanup()
    collector.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await collector
    guard.close()
    store.close()


if __name__ == "__main__":
    main()
