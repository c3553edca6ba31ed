"""The small control plane of the sandbox: what scheduler and controller-manager 1.36 do with pods, claims and volumes.

One process, shared caches. Faithful in what a provisioner and a node's daemon see: annotations, their order, phases,
events and their words, and when things are tried again. Left out: everything that no volume notices.

    selectors.py   label and node selectors (pure)
    binding.py     what claims mean for a pod and a node: bound, to be bound, to be provisioned, impossible (pure)
    filters.py     which nodes a pod fits, and why not (pure)
    scheduler.py   the scheduling of pods
    volumes.py     the persistent volume controller: claims and volumes find each other
    resizing.py    what is written of a growing claim, by the expand controller and by the kubelet (pure)
    growth.py      the expand controller, for a plugin that leaves all to the kubelet
    protection.py  the finalizers that keep what is in use, and pods of nodes that are gone
    snapshots.py   the common snapshot controller, where the API server serves snapshots
    caches.py      the shared caches
"""
