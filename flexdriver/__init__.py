"""The FlexVolume driver: what the kubelet executes for every mount and unmount of ours.

It starts for each call, so it does next to nothing, and it knows nothing: the daemon decides. It exists twice, held to
one test suite. The native program needs nothing of the node but its kernel, and starts some thirty times faster than an
interpreter; the Python one is for machines that it was not built for.
"""
