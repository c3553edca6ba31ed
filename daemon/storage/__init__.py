"""The life of volumes on this node: record, room, order, filesystem, staging, growth, copies, erasure. Nothing of
Kubernetes."""
