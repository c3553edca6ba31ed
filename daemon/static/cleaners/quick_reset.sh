#!/bin/sh
# Makes a device look new. A filesystem made by force destroys the tables of what was there before, the copies at the
# end of the device included; then its own signatures go, and others' that lie where mkfs does not write. Fast and not
# thorough: the contents of files stay on the disk, unless it takes the discard that mkfs sends.
. "${0%/*}/device.sh"

mkfs.ext4 -q -F "$device" || fail "mkfs.ext4 could not write to $device: see whether it is in use or broken"
wipefs --quiet --all "$device" || fail "wipefs could not remove the signatures of $device: see whether it is in use"
left="$(wipefs --no-act --noheadings "$device")" || fail "wipefs could not read $device back"
[ -z "$left" ] || fail "signatures are left on $device: $left"
echo "quick reset of $device done"
