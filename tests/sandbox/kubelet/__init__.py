"""A kubelet for the sandbox: real callouts, real mounts, real processes; no images, no network, no cgroups.

It follows kubelet 1.36 where a FlexVolume or CSI driver can tell the difference: when a driver is probed or registered,
which calls it gets with which arguments, how its answers are judged, what happens after a failure and after a restart.
Time is compressed in one place only: a grown claim is noticed at once, not after up to 70 seconds.

    driver.py      one FlexVolume executable: its calls and how their answers are judged
    plugins.py     the FlexVolume plugin directory and its probing
    csiclient.py   one CSI driver: its calls and how their answers are judged
    registration.py  the CSI drivers of the node, by their sockets, and its CSINode
    csi.py         CSI volumes: staged, published, and what is written down of them
    staged.py      CSI volumes as the node has them, from the first pod to the last
    blockdevices.py  a device on its way into a pod
    metrics.py     how full CSI volumes are
    sources.py     what a pod's volume refers to, and the JSON that a driver gets for it (pure)
    layout.py      the kubelet's folder: where things are, and what a new kubelet finds there
    volumes.py     mounts what pods want and unmounts what they don't, with retries
    expansion.py   growing a mounted volume
    container.py   a container as a process; shim.py is what stays with it when the kubelet dies
    podworker.py   the life of one pod
    status.py      what the API is told of a pod (pure)
    agent.py       the node and the pods that are bound to it
"""
