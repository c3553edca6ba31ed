"""`make bench`: figures with a yardstick beside them, measured in turn in one run, because machines are noisy.

Times are medians of whole processes or whole operations. A ratio is taken pair by pair and then its median, so it holds
when the machine's speed drifts.
"""

import asyncio

from tests.bench import callout, erase, figures, journey, memory, plug, report, snapshots


async def main() -> None:
    callout.main()
    await memory.main()
    await journey.main()
    await erase.main()
    await plug.main()
    await snapshots.main()
    report.write(figures.MEASURED / "bench.json")
    figures.main()


asyncio.run(main())
