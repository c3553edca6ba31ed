"""`doctor`: what is wrong with this node, or with the cluster, and the command that mends it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import typer

from command import clustercheckup, nodeexec, uninstallcheck
from command.checkup import Finding, Verdict, healthy, summary, unknown, wrong
from command.options import ApiAccess, Form
from command.running import cluster, patience, run
from command.table import show_data
from command.terminal import in_colour, visible
from kube.errors import ApiError
from kube.kubeconfig import ConfigurationError

_MARKS: Mapping[Verdict, tuple[str, Mapping[str, Any]]] = {
    Verdict.OK: ("ok     ", {"fg": typer.colors.GREEN}),
    Verdict.WRONG: ("WRONG  ", {"fg": typer.colors.RED, "bold": True}),
    Verdict.UNKNOWN: ("?      ", {"fg": typer.colors.YELLOW}),
}


def doctor(whole_cluster: bool, uninstall: bool, namespace: str, access: ApiAccess, form: Form) -> None:
    if uninstall:
        results = run(_before_uninstall(access))
    else:
        results = run(_of_cluster(namespace, access) if whole_cluster else _of_node(namespace, access))
    if form.structured:
        show_data([dataclasses.asdict(finding) for finding in results], form)
    else:
        for finding in results:
            _print(finding)
        typer.echo(summary(results))
    if not healthy(results):
        raise typer.Exit(1)


def _print(finding: Finding) -> None:
    mark, style = _MARKS[finding.verdict]
    typer.echo(f"{in_colour(mark, **style)}{visible(f'{finding.check}: {finding.message}')}")
    if finding.remedy:
        typer.echo(f"         -> {visible(finding.remedy)}")


async def _of_node(namespace: str, access: ApiAccess) -> list[Finding]:
    from command import nodecheckup, thisnode

    here = thisnode.chosen()
    async with patience("checking this node"):
        results = await nodecheckup.findings(here)
    try:
        async with patience("asking the API server"), cluster(access) as connected:
            namespace = await nodeexec.namespace_of(connected, namespace)
            return results + await clustercheckup.findings(connected, namespace, here.node_name)
    except ConfigurationError as error:
        return [*results, unknown("API server", str(error), "run doctor in the daemon's pod, or set KUBECONFIG")]
    except ApiError as error:
        return [*results, wrong("API server", str(error), "kubectl cluster-info")]


async def _before_uninstall(access: ApiAccess) -> list[Finding]:
    async with patience("looking for volumes"), cluster(access) as connected:
        return await uninstallcheck.findings(connected)


async def _of_cluster(namespace: str, access: ApiAccess) -> list[Finding]:
    async with patience("checking the cluster"), cluster(access) as connected:
        return await clustercheckup.findings(connected, await nodeexec.namespace_of(connected, namespace))
