"""Where volumes live: a module for each kind of storage, which speaks the protocol of daemon.storage.backend."""
