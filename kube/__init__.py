"""What the daemon and the provisioner need of the API server: requests, caches, a work queue, events, leadership."""
