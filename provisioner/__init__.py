"""Cluster-wide, one leader: provisions PersistentVolumes for claims, accounts for the capacity of nodes, reclaims
volumes.

`decision`, `podcapacity`, `capacityledger` and `nodeloss` are pure. `claims`, `expansion`, `reclaim` and `nodecleanup`
are the controllers, `main` puts them together.
"""
