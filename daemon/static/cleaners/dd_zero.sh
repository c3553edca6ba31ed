#!/bin/sh
# Writes zeros to every byte of a device, once or as often as the first argument says. Past the page cache, so that
# pods don't lose theirs to a disk full of zeros; the size is given because dd takes the end of a device for an error.
. "${0%/*}/device.sh"
count="$(passes "$@")"
size="$(blockdev --getsize64 "$device")" || fail "the size of $device can't be read"

pass=1
while [ "$pass" -le "$count" ]; do
    echo "zero fill of $device: pass $pass of $count"
    dd if=/dev/zero of="$device" bs=4M count="$size" iflag=count_bytes,fullblock oflag=direct conv=fsync,notrunc \
        status=none || fail "pass $pass of $count over $device broke off: see the kernel's log for errors of the disk"
    pass=$((pass + 1))
done
echo "zero fill of $device done"
