"""Cluster-wide, one leader: provisions PersistentVolumes for claims, keeps account of capacity, reclaims volumes.

`decision`, `podcapacity`, `capacityledger` and `nodeloss` are pure. `claims`, `expansion`, `reclaim` and `nodecleanup`
are the controllers, `main` puts them together.
"""
