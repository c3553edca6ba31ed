"""Binding a pod to a node: the one way to set spec.nodeName. Source: pkg/registry/core/pod/storage/storage.go."""

from tests.sandbox.apiserver import errors
from tests.sandbox.apiserver.registry import Registry, timestamp
from tests.sandbox.apiserver.resources import PODS, Json
from tests.sandbox.apiserver.store import Stored


def bind(registry: Registry, namespace: str, name: str, binding: Json) -> Stored:
    """Raises Conflict for a pod that has a node or is being deleted, Invalid for a binding without a node."""
    target = binding.get("target") or {}
    if target.get("kind") not in ("Node", "", None) or not target.get("name"):
        raise errors.bad_request("a binding needs a target of kind Node with a name")

    def assign(pod: Json) -> Json:
        if "deletionTimestamp" in pod["metadata"]:
            raise errors.conflict(PODS, name, f"pod {name} is being deleted, cannot be assigned to a host")
        if taken := pod["spec"].get("nodeName"):
            raise errors.conflict(PODS, name, f'pod {name} is already assigned to node "{taken}"')
        pod["spec"]["nodeName"] = target["name"]
        pod["metadata"].setdefault("annotations", {}).update((binding.get("metadata") or {}).get("annotations") or {})
        conditions = [each for each in pod["status"].get("conditions") or [] if each["type"] != "PodScheduled"]
        conditions.append(
            {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": timestamp()}
        )
        pod["status"]["conditions"] = conditions
        return pod

    return registry.update(PODS, namespace, name, assign, subresource="binding")
