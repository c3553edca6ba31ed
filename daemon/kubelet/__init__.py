"""The kubelet's side: the socket, what a callout asks for, whether it may have it, and the driver it runs."""
