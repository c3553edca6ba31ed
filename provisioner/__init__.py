"""Cluster-wide, one leader: turns claims into PersistentVolumes, keeps the books of what nodes can hold, reclaims.

The middle is pure: `decision` says what is to be done for a claim, `books` what is promised, `manifest` how the
volume looks. `creation`, `claims`, `doubts` and `reclaim` do it, `controller` puts them together.
"""
