#!/bin/sh
# Discards all blocks of a device. Without --force, which would skip the check that the device is not in use.
. "${0%/*}/device.sh"

blkdiscard "$device" </dev/null ||
    fail "$device could not be discarded: choose another cleaner if it does not take discards, else see who uses it"
echo "discard of $device done"
