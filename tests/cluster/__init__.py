"""Tests against a Kubernetes API: the sandbox, and in `acceptance` any cluster in which elastic-local is installed."""
