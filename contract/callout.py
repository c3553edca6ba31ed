"""The socket protocol between the callout and the daemon, and the answers that the kubelet accepts.

One request per callout: HTTP/1.0 over the Unix socket, JSON both ways.

    GET  /init                                                  -> answer with capabilities
    POST /mount    {"dir": DIR, "options": {...}}               -> answer
    POST /unmount  {"dir": DIR}                                 -> answer
    POST /expandfs {"dir": DIR, "options": {...}, "new_size": bytes, "old_size": bytes} -> answer

An answer is {"status": "Success" | "Failure", "message": str}. The kubelet's side: design and traps in
docs/architecture.md. No imports: the kubelet waits for the callout to start.
"""

SUCCESS = "Success"
FAILURE = "Failure"
NOT_SUPPORTED = "Not supported"

INIT = "init"
MOUNT = "mount"
UNMOUNT = "unmount"
EXPANDFS = "expandfs"

CAPABILITIES = {
    "attach": False,
    "selinuxRelabel": True,
    "supportsMetrics": True,
    "fsGroup": True,
    "requiresFSResize": True,
}

READ_WRITE_OPTION = "kubernetes.io/readwrite"
POD_NAME_OPTION = "kubernetes.io/pod.name"
POD_NAMESPACE_OPTION = "kubernetes.io/pod.namespace"

DEADLINES = {MOUNT: 110, UNMOUNT: 50, EXPANDFS: 110, INIT: 5}
"""Seconds that the callout waits for the daemon: the kubelet itself sets no limit. The daemon goes on with what it
began, and the kubelet's next try joins it."""
