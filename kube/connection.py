"""Where the API server is and who we are: the library's configuration, found in the order that people expect.

The library reads kubeconfig files (certificates, tokens, exec plugins, OIDC) and a pod's service account. Ours is the
order, and an error that says what to set.
"""

import os
from pathlib import Path

import yaml
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config


class ConfigurationError(Exception):
    """There is no usable way to an API server: says what was looked at and what to set."""


async def load(kubeconfig: str | None) -> Configuration:
    """The configuration of `kubeconfig`, else $KUBECONFIG, else the pod's service account, else ~/.kube/config.

    Raises ConfigurationError."""
    configuration = Configuration()
    home = Path.home() / ".kube" / "config"
    path = kubeconfig or os.environ.get("KUBECONFIG")
    try:
        if not path and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(configuration)
            return configuration
        if not path and not home.exists():
            raise ConfigurationError(
                f"no API server is configured: set KUBECONFIG, or create {home}, or run in a pod with a service account"
            )
        await load_kube_config(path or str(home), client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, yaml.YAMLError, TypeError) as error:
        source = f"kubeconfig {path or home}" if path or home.exists() else "the pod's service account"
        raise ConfigurationError(f"{source} can't be used: {error}") from error
    return configuration
