"""What the kubelet asks for by either driver, FlexVolume or CSI: whether a pod may have it, and how it is mounted."""
