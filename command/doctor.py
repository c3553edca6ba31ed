"""`doctor`: what is wrong with this node, or with the cluster, and the command that mends it."""

import dataclasses
from typing import Annotated

import typer

from command import clustercheckup, nodecheckup, thisnode
from command.checkup import Finding, Verdict, healthy, unknown, wrong
from command.running import Kubeconfig, cluster, patience, run
from command.table import Form, Output, show_json
from contract import names
from kube.client import ApiError, ConfigurationError

_MARKS = {
    Verdict.OK: typer.style("ok     ", fg=typer.colors.GREEN),
    Verdict.WRONG: typer.style("WRONG  ", fg=typer.colors.RED, bold=True),
    Verdict.UNKNOWN: typer.style("?      ", fg=typer.colors.YELLOW),
}


def doctor(
    whole_cluster: Annotated[bool, typer.Option("--cluster", help="Check the cluster instead of this node.")] = False,
    namespace: Annotated[str, typer.Option(envvar="NAMESPACE", help="Of daemons and provisioner.")] = names.NAMESPACE,
    kubeconfig: Kubeconfig = None,
    output: Output = Form.TABLE,
) -> None:
    """Check what can be wrong on this node, or with --cluster in the cluster, in the order in which things depend on
    each other. Under each fault stands the command that mends it. Exit code 1 when there is one.

    On a node: run it in the daemon's pod, or as root. For the cluster: with an administrator's kubeconfig.
    """
    found = run(_of_cluster(namespace, kubeconfig) if whole_cluster else _of_node(namespace, kubeconfig))
    if output is Form.JSON:
        show_json([dataclasses.asdict(finding) for finding in found])
    else:
        for finding in found:
            _tell(finding)
    if not healthy(found):
        raise typer.Exit(1)


def _tell(finding: Finding) -> None:
    typer.echo(f"{_MARKS[finding.verdict]}{finding.check}: {finding.words}")
    if finding.remedy:
        typer.echo(f"         -> {finding.remedy}")


async def _of_node(namespace: str, kubeconfig: str | None) -> list[Finding]:
    here = thisnode.chosen()
    async with patience("checking this node"):
        found = await nodecheckup.findings(here)
    try:
        async with patience("asking the API server"), cluster(kubeconfig) as connected:
            return found + await clustercheckup.findings(connected, namespace, here.node_name)
    except ConfigurationError as error:
        return [*found, unknown("API server", str(error), "run doctor in the daemon's pod, or set KUBECONFIG")]
    except ApiError as error:
        return [*found, wrong("API server", str(error), "kubectl cluster-info")]


async def _of_cluster(namespace: str, kubeconfig: str | None) -> list[Finding]:
    async with patience("checking the cluster"), cluster(kubeconfig) as connected:
        return await clustercheckup.findings(connected, namespace)
