"""The JSON Schemas of the configuration files, for editors: `make docs` writes them to daemon/schemas, so that they are
in the package, and by a link in deploy/schemas. A test holds the files to it. The daemon checks what it reads by the
readers that the schemas are made of."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from daemon.static import configuration
from daemon.storage import deviceclasses


def files() -> Mapping[str, str]:
    """By name."""
    schemas = {
        "device-classes.schema.json": deviceclasses.schema(),
        "static-volumes.schema.json": configuration.schema(),
    }
    return {name: json.dumps(schema, indent=2, ensure_ascii=False) + "\n" for name, schema in schemas.items()}


if __name__ == "__main__":
    for name, text in files().items():
        Path(sys.argv[1], name).write_text(text, encoding="utf-8")
