"""What doctor asks for is what deploy/ gives: it must not raise an alarm about a cluster that is as it should be."""

from pathlib import Path

import pytest
import yaml

from command import permissions

_BASE = Path(__file__).parents[3] / "deploy" / "base"


@pytest.mark.parametrize("account", permissions.ACCOUNTS)
def test_doctor_asks_for_nothing_that_deploy_does_not_give(account: str) -> None:
    granted = set()
    for document in yaml.safe_load_all((_BASE / f"rbac-{account}.yaml").read_text()):
        for rule in document.get("rules") or ():
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        for name in rule.get("resourceNames") or [""]:
                            granted.add((document["kind"] == "Role", group, resource, verb, name))
    asked = {
        (
            right.own_namespace,
            right.resource.group,
            "/".join(filter(None, (right.resource.plural, right.subresource))),
            verb,
            right.name,
        )
        for right in permissions.ACCOUNTS[account]
        for verb in right.verbs
    }
    assert asked <= granted
