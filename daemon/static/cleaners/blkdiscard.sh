#!/bin/sh
# Tells a device to forget every block. Without --force, which would take away the check that nobody uses the device.
. "${0%/*}/device.sh"

blkdiscard "$device" </dev/null ||
    fail "$device could not be discarded: choose another cleaner if it does not take discards, else see who uses it"
echo "discard of $device done"
