"""The callout: what the kubelet's executable sends to the daemon, what comes back, and what it says when nothing does.

The executable exists twice, as a native program (flexdriver/native/callout.c, which gets all of this as a generated
header) and as a Python one (flexdriver/callout.py). Both carry the kubelet's arguments to the daemon and its answer
back, one HTTP/1.0 request over the Unix socket for each call:

    POST /callout {"argv": ["mount", DIR, OPTIONS]}  ->  {"status": "Success", "message": ""}

What the arguments mean is the daemon's business (daemon/flexvolume/calls.py). Whoever is not the kubelet, and has no
argv, finds the same calls on the same socket under their names:

    GET  /init                                                                          the capabilities
    POST /mount    {"dir": DIR, "options": {...}}
    POST /unmount  {"dir": DIR}
    POST /expandfs {"dir": DIR, "options": {...}, "new_size": BYTES, "old_size": BYTES}

The kubelet's side: design and traps in docs/architecture.md. No imports but json: the kubelet waits for the callout to
start.
"""

import json
from collections.abc import Sequence

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

DEADLINES = {MOUNT: 110, UNMOUNT: 50, EXPANDFS: 110, INIT: 1}
"""The verbs there are, and the seconds that the callout waits for the daemon: the kubelet itself sets no limit. The
daemon goes on with what it began, and the kubelet's next try joins it."""

ROUTE = "/callout"
REQUEST_HEAD = f"POST {ROUTE} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
"""HTTP/1.0, so that the end of the reply is the end of the stream. %d: bytes of the body."""
ANSWER_LIMIT = 1 << 16
"""Bytes of the daemon's reply, head and all. More than this is not our daemon."""
_MESSAGE_LIMIT = 4096
"""Characters. An event of Kubernetes holds 1024 bytes; a character takes at most twelve when it is escaped."""

INIT_ANSWER = json.dumps({"status": SUCCESS, "capabilities": CAPABILITIES})
"""What init is always answered, with a daemon or without: a kubelet whose init fails tries again dozens of times a
second, and one that starts before the daemon would not know the driver. It is reported to the daemon all the same, so
that it knows that the kubelet sees the driver."""

# What the callout says when the daemon doesn't: messages for the pod's owner, in the language of printf, which both
# programs speak.
NO_VERB = "elastic-local: no verb given: the kubelet calls init, mount, unmount and expandfs"
NOT_IMPLEMENTED = "elastic-local does not implement %.64s"
"""The verb. The kubelet remembers it until the driver's file changes, so no verb of DEADLINES may be answered this."""
AWAY = (
    "elastic-local: the daemon does not run on this node (nothing listens at %.200s); the %s is tried "
    "again until it does. Look at its pod: kubectl get pods -A -o wide -l app.kubernetes.io/component=daemon"
)
"""The socket, the verb."""
BUSY = (
    "elastic-local: the daemon is still busy with the %s after %d s; it goes on, and the next try picks up its result"
)
"""The verb, its deadline."""
BROKEN_OFF = "elastic-local: the daemon broke off the %s (%.200s); it is tried again"
"""The verb, the system's error."""
NO_SENSE = (
    "elastic-local: no sensible answer from %.200s (%.80s): is it the elastic-local daemon that listens there? The "
    "call is tried again"
)
"""The socket, the first line of what came."""


def request(argv: Sequence[str]) -> bytes:
    """The body of a request. Arguments are bytes to the kernel: what is no ASCII travels as the surrogates U+DC80 to
    U+DCFF, as os.fsdecode has them, so that the callout needs to know nothing of encodings."""
    return json.dumps({"argv": list(argv)}).encode()


def answer(status: str, message: str) -> str:
    """The body of an answer. The callout takes it in this very form only, and so notices when its end is missing."""
    return json.dumps({"status": status, "message": message[:_MESSAGE_LIMIT]})
