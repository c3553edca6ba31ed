"""The file that tells a client where the API server is, and who the client is."""

from pathlib import Path

import yaml


def write(path: Path, address: str, token: str = "") -> None:
    """Whole or not at all. `token` is that of a service account (users.token), empty for the administrator."""
    name = "sandbox"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": {"server": address}}],
        "users": [{"name": name, "user": {"token": token} if token else {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(yaml.safe_dump(content, sort_keys=False))
    fresh.replace(path)
