"""`doctor`: what is wrong with this node, or with the cluster, and the command that mends it.

What is found is told at once: whoever calls a doctor may do so because something does not answer.
"""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import typer

from command import clustercheckup, uninstallcheck
from command.checkup import Finding, Verdict, healthy, summary, unknown, wrong
from command.options import ApiAccess, Form
from command.running import cluster, patience, run
from command.table import show_data
from command.terminal import in_colour, visible
from kube.errors import ApiError
from kube.kubeconfig import ConfigurationError

_LONGEST = 60.0
"""Seconds for all checks of this node, and for all that the API server is asked."""
_IMPATIENT = 10.0
"""Seconds for a request to the API server: one that needs more is what there is to find."""

_MARKS: Mapping[Verdict, tuple[str, Mapping[str, Any]]] = {
    Verdict.OK: ("ok     ", {"fg": typer.colors.GREEN}),
    Verdict.WRONG: ("WRONG  ", {"fg": typer.colors.RED, "bold": True}),
    Verdict.UNKNOWN: ("?      ", {"fg": typer.colors.YELLOW}),
}

Findings = AsyncGenerator[Finding, None]


def doctor(whole_cluster: bool, uninstall: bool, namespace: str, access: ApiAccess, form: Form) -> None:
    def tell(finding: Finding) -> None:
        if not form.structured:
            _print(finding)

    if uninstall:
        results = run(_before_uninstall(access, tell))
    elif whole_cluster:
        results = run(_asked(namespace, access, tell))
    else:
        results = run(_of_node(namespace, access, tell))
    if form.structured:
        show_data([dataclasses.asdict(finding) for finding in results], form)
    else:
        typer.echo(summary(results))
    if not healthy(results):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.verdict]
    typer.echo(f"{in_colour(mark, **style)}{visible(f'{finding.check}: {finding.message}')}")
    if finding.remedy:
        typer.echo(f"         -> {visible(finding.remedy)}")


async def told(found: Findings, doing: str, tell: Callable[[Finding], None]) -> list[Finding]:
    """All that is found in the time that there is, each told when it is."""
    results: list[Finding] = []
    end = asyncio.get_running_loop().time() + _LONGEST
    async with aclosing(found):
        while True:
            try:
                async with asyncio.timeout_at(end), patience(doing):
                    finding = await anext(found, None)
            except TimeoutError:
                rest = f"what comes after {results[-1].check}" if results else "all"
                message = f"{doing} took more than {_LONGEST:g} s: {rest} was not found out"
                finding = wrong("time", message, "see what keeps this machine or the API server busy, then try again")
                tell(finding)
                return [*results, finding]
            if finding is None:
                return results
            tell(finding)
            results.append(finding)


async def _of_node(namespace: str, access: ApiAccess, tell: Callable[[Finding], None]) -> list[Finding]:
    from command import nodecheckup, thisnode

    here = thisnode.chosen()
    results = await told(nodecheckup.findings(here), "checking this node", tell)
    try:
        return results + await _asked(namespace, access, tell, here.node_name)
    except ConfigurationError as error:
        finding = unknown("API server", str(error), "run doctor in the daemon's pod, or set KUBECONFIG")
        tell(finding)
        return [*results, finding]


async def _before_uninstall(access: ApiAccess, tell: Callable[[Finding], None]) -> list[Finding]:
    async with patience("looking for volumes"), cluster(access) as connected:
        results = await uninstallcheck.findings(connected)
    for finding in results:
        tell(finding)
    return results


async def _asked(
    namespace: str, access: ApiAccess, tell: Callable[[Finding], None], only_node: str = ""
) -> list[Finding]:
    """Of the cluster, or of one node in it. Raises ConfigurationError."""

    async def findings() -> Findings:
        try:
            async for finding in clustercheckup.findings(connected, namespace, only_node):
                yield finding
        except ApiError as error:
            yield wrong("API server", str(error), "kubectl cluster-info")

    async with cluster(access, _IMPATIENT) as connected:
        return await told(findings(), "asking the API server", tell)
