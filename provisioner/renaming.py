"""A node that was registered again under another name, with the hostname label it had, still has its volumes.

Their node affinity still fits, so pods come to the node, but our label on them has the old name, by which no daemon
looks for them any more. Names of Nodes can't be changed, so this is a Node that went and another that came: the label
follows once the old one is gone for certain, and exactly one Node has the hostname.
"""

import logging
from collections.abc import Iterable

from contract import names
from kube.client import VOLUMES, Cluster, NotFound
from provisioner.residents import Resident
from provisioner.standing import Standing

_log = logging.getLogger(__name__)


async def follow(cluster: Cluster, standing: Standing, residents: Iterable[Resident]) -> None:
    """Corrects the label of those volumes of ours whose node has another name now. Raises ApiError."""
    for resident in list(residents):
        hostnames = resident.nodes - {resident.label}
        if not resident.label or len(hostnames) != 1 or standing.known(frozenset({resident.label})):
            continue
        found = await standing.with_hostname(*hostnames)
        if len(found) != 1 or not await standing.gone(frozenset({resident.label})):
            continue
        label = names.node_label_value(found[0])
        metadata = {"uid": resident.uid, "resourceVersion": resident.resource_version}
        try:
            await cluster.patch(VOLUMES, resident.name, {"metadata": {**metadata, "labels": {names.NODE_LABEL: label}}})
        except NotFound:
            continue
        named = {"volume": resident.name, "claim": str(resident.claim or "")}
        _log.warning("its node %s is called %s now", resident.label, found[0], extra=named)
