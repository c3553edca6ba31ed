#!/bin/sh
# Writes random bytes to every byte of a device, once or as often as the first argument says.
. "${0%/*}/device.sh"
count="$(passes "$@")"

shred --force --iterations="$count" "$device" ||
    fail "shred of $device broke off: see the kernel's log for errors of the disk"
echo "shred of $device done, $count passes"
