"""Static volumes: disks and filesystems that administrators put into a folder of the node become PersistentVolumes, and
are cleaned after use.

Compatible with the local static provisioner of Kubernetes SIG Storage, so that a cluster can move over and keep its
PersistentVolumes: same configuration, names and metrics. docs/static-volumes.md lists the differences and their
reasons."""
