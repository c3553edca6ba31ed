#!/bin/sh
# Removes all that is in the filesystem mounted on LOCAL_PV_FILESYSTEM (folder.py says how and why), for those who call
# it by its name; the daemon does without this detour.
exec "${PYTHON:-python3}" -P -m daemon.static.cleaners.folder "$@"
