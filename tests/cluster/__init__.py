"""Tests against a Kubernetes API: the sandbox, or a real cluster when KUBECONFIG names one."""
