"""How a client learns what is served: /version, /api, /apis and the lists of resources."""

from tests.sandbox.apiserver.resources import Json, Serves, groups, served_by

MINOR = "36"
VERSION: Json = {
    "major": "1",
    "minor": MINOR,
    "gitVersion": f"v1.{MINOR}.0",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "go1.25",
    "compiler": "gc",
    "platform": "linux/amd64",
}


def core_versions(address: str) -> Json:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(serves: Serves) -> Json:
    described = [_group(name, versions) for name, versions in groups(serves).items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": described}


def group(name: str, serves: Serves) -> Json | None:
    found = groups(serves).get(name)
    return {"kind": "APIGroup", "apiVersion": "v1", **_group(name, found)} if found else None


def _group(name: str, served: list[str]) -> Json:
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in served]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def resource_list(group_name: str, version: str, serves: Serves) -> Json | None:
    """None for a group and version that is not served."""
    served = served_by(group_name, version, serves)
    if not served:
        return None
    listed: list[Json] = []
    for each in served:
        entry: Json = {
            "name": each.plural,
            "singularName": each.singular,
            "namespaced": each.namespaced,
            "kind": each.kind,
            "verbs": list(each.verbs),
        }
        if each.short_names:
            entry["shortNames"] = list(each.short_names)
        if each.categories:
            entry["categories"] = list(each.categories)
        listed.append(entry)
        if each.has_status:
            listed.append(_subresource(each.plural, "status", each.namespaced, each.kind, ("get", "patch", "update")))
        for name, kind, verbs in each.more_subresources:
            listed.append(_subresource(each.plural, name, each.namespaced, kind, verbs))
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": served[0].api_version,
        "resources": listed,
    }


def _subresource(plural: str, name: str, namespaced: bool, kind: str, verbs: tuple[str, ...]) -> Json:
    return {
        "name": f"{plural}/{name}",
        "singularName": "",
        "namespaced": namespaced,
        "kind": kind,
        "verbs": list(verbs),
    }
