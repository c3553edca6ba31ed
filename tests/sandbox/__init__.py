"""The sandbox: a one-machine cluster of real daemons and real mounts under a control plane small enough to read.

The demo and the tests of the cluster floor share it. Each part is a process of its own, `python -m tests.sandbox...`.
"""
