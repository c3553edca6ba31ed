"""The API server's side: what PersistentVolumes want of this node, what the node publishes and reports, and what it
does about volumes that nobody names any more."""
