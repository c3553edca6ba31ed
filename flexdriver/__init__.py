"""The FlexVolume driver: what the kubelet executes for every mount and unmount of ours.

It starts for each call, so it imports next to nothing, and it knows nothing: the daemon decides.
"""
