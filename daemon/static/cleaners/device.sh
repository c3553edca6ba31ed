# What every cleaner of a block device begins with. Sets `device`; `passes` reads how often to overwrite it.
# The paths of tools are not ours to know: /sbin is added because mkfs and wipefs are there and users' PATH may lack it.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
export LC_ALL=C

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

device="${LOCAL_PV_BLKDEVICE:-}"
[ -n "$device" ] || fail "LOCAL_PV_BLKDEVICE is not set: set it to the path of the block device to clean"
[ -e "$device" ] || fail "LOCAL_PV_BLKDEVICE is $device, which does not exist: see whether the disk is there"
[ -b "$device" ] || fail "LOCAL_PV_BLKDEVICE is $device, which is no block device: set it to the path of one"

passes() {
    case "$#:${1:-1}" in
        [2-9]:*) fail "$# arguments: give at most one, the number of passes" ;;
        *:0* | *:*[!0-9]* | *:????*) fail "the number of passes is '$1': give a whole number from 1 to 999" ;;
        *) echo "${1:-1}" ;;
    esac
}
