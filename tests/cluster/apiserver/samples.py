"""Small valid objects, and where they live."""

from tests.sandbox.apiserver.resources import Json

POD_SPEC: Json = {"containers": [{"name": "main", "image": "busybox:1"}]}
CLAIM_SPEC: Json = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
VOLUME_SPEC: Json = {
    "capacity": {"storage": "1Gi"},
    "accessModes": ["ReadWriteOnce"],
    "flexVolume": {"driver": "example.com/disk", "options": {"size": "1"}},
}


def affinity(*hostnames: str) -> Json:
    expression = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(hostnames)}
    return {"required": {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}


def config(name: str, **metadata: object) -> Json:
    return {"metadata": {"name": name, **metadata}, "data": {"key": "value"}}


def pod(name: str, **metadata: object) -> Json:
    return {"metadata": {"name": name, **metadata}, "spec": POD_SPEC}


def claim(name: str, **spec: object) -> Json:
    return {"metadata": {"name": name}, "spec": CLAIM_SPEC | spec}


def volume(name: str, **spec: object) -> Json:
    return {"metadata": {"name": name}, "spec": VOLUME_SPEC | spec}


def maps(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps" + (f"/{name}" if name else "")


def pods(namespace: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{namespace}/pods" + (f"/{name}" if name else "")
