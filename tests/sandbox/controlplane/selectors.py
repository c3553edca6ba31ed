"""Label selectors and node selectors. Pure.

Source: k8s.io/apimachinery/pkg/labels and k8s.io/component-helpers/scheduling/corev1/nodeaffinity.
"""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
Labels = Mapping[str, str]


def label_selector_matches(selector: Json | None, labels: Labels) -> bool:
    """A LabelSelector: None selects nothing, an empty one everything."""
    if selector is None:
        return False
    exact = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in exact.items()) and all(
        _requirement_holds(requirement, labels) for requirement in selector.get("matchExpressions") or []
    )


def node_selector_matches(selector: Json, labels: Labels, name: str = "") -> bool:
    """A NodeSelector: one of its terms, and of a term everything. A term without anything selects nothing."""
    for term in selector.get("nodeSelectorTerms") or []:
        expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
        if not expressions and not fields:
            continue
        if all(_requirement_holds(requirement, labels) for requirement in expressions) and all(
            _requirement_holds(requirement, {"metadata.name": name}) for requirement in fields
        ):
            return True
    return False


def topology_matches(terms: list[Json], labels: Labels) -> bool:
    """A class's allowedTopologies: none allows every node."""
    return not terms or any(
        all(
            labels.get(expression["key"]) in (expression.get("values") or [])
            for expression in term.get("matchLabelExpressions") or []
        )
        for term in terms
    )


def _requirement_holds(requirement: Json, labels: Labels) -> bool:
    key, values = requirement["key"], requirement.get("values") or []
    match requirement["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case "Gt":
            return key in labels and int(labels[key]) > int(values[0])
        case "Lt":
            return key in labels and int(labels[key]) < int(values[0])
    return False
