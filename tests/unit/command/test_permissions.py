"""What doctor asks for is what deploy/ gives: it must not raise an alarm about a cluster that is as it should be."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import permissions
from command.permissions import Permission

_DEPLOY = Path(__file__).parents[3] / "deploy"
Right = tuple[bool, str, str, str, str]


def granted(documents: Iterable[Any]) -> set[Right]:
    return {
        (document["kind"] == "Role", group, resource, verb, name)
        for document in documents
        for rule in document.get("rules") or ()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames") or [""]
    }


def asked(rights: Iterable[Permission]) -> set[Right]:
    return {
        (
            right.own_namespace,
            right.resource.group,
            "/".join(filter(None, (right.resource.plural, right.subresource))),
            verb,
            right.name,
        )
        for right in rights
        for verb in right.verbs
    }


@pytest.mark.parametrize("account", permissions.ACCOUNTS)
def test_doctor_asks_for_nothing_that_deploy_does_not_give(account: str) -> None:
    given = granted(yaml.safe_load_all((_DEPLOY / "base" / f"rbac-{account}.yaml").read_text()))
    assert asked(permissions.ACCOUNTS[account]) <= given


@pytest.mark.parametrize("account", permissions.SNAPSHOTS)
def test_doctor_asks_for_the_rights_that_the_component_gives(account: str) -> None:
    documents = yaml.safe_load_all((_DEPLOY / "components" / "snapshots" / "rbac.yaml").read_text())
    given = granted(each for each in documents if each["metadata"]["name"] == f"elastic-local-snapshots-{account}")
    assert asked(permissions.SNAPSHOTS[account]) == given
