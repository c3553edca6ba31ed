"""The life of volumes on this node: records, free space, queues, filesystems, staging, expansion, clones, erasing.
Knows nothing of Kubernetes."""
