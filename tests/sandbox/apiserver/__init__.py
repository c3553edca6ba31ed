"""A stand-in for the Kubernetes API server, faithful where a client can tell the difference.

It stores objects, orders their changes, and answers real kubectl; it runs no controller but the garbage collector and
the removal of namespaces, which are part of what an API promises. Everything that decides is synchronous and works on
objects that are never changed once stored, so that a request is atomic without a lock: one thread, one event loop.

    resources      what is served: one frozen record each
    store          the objects, their revisions, the history that watches replay; journal: what survives a kill
    registry       create, update, delete as Kubernetes does them: preconditions, finalizers, graceful deletion
    defaults, admission, validation, volumes, pods, names: what is filled in, refused, immutable
    patches, strategic, apply: the four kinds of patch;  selectors: labels and fields
    routing, server, codec, reading, watching: the same over HTTP;  tables, columns: as kubectl prints it
    discovery, openapi, documents: what the API says of itself
    faults: bad answers and none, for tests that ask for them
    builtin, collector: what is there from the start, and what goes by itself
"""
