"""The CSI driver: its sockets, its services Identity and Node, and its registration with the kubelet."""
