"""The program that runs on every node: the socket API, the life of volumes, discovery, capacity and metrics."""
