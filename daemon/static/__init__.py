"""Static volumes: what people mounted or linked into a folder of the node is offered as PersistentVolumes, and cleaned
when it comes back.

Works like the local static provisioner of the Kubernetes SIG Storage, so that a cluster can move over and keep its
PersistentVolumes: the same configuration, the same names, the same metrics. Where it works differently, and why, stands
in docs/static-volumes.md.
"""
