"""What a disk bears that LVM began to take, and that is in no group yet. Pure.

vgcreate and vgextend write, in this order and disk by disk: the header of the metadata area, the label, the label once
more with the mark that the disk is used; then the metadata of the group to all of them, and last the places where these
are found. Killed in between they leave a disk that LVM does not know, or one that it shows in no group and does not
remove either ("is marked in use but no VG was found using it"). So what is there is read here, as LVM lays it out.

Source: lib/format_text/layout.h and lib/label/label.c of lvm2 2.03.
"""

import re

_LABEL, _LABEL_END = 512, 1024
_LABEL_MAGIC = b"LABELONE"
_AREA, _AREA_END = 4096, 4608
_AREA_MAGIC = b" LVM2 x[5A%r0N*>"
_COMMITTED = slice(40, 64)
"""Where the metadata are, of what size, and whether they are left aside: zero until the disk belonged to a group."""
_PLACES_END = 88
"""Behind the place of metadata that were about to be committed."""
_TEXT = re.compile(rb'([A-Za-z0-9+_.-]+) \{\nid = "[^\0]*\0*')


def unfinished(start: bytes) -> str | None:
    """Of the start of a disk that was zero before LVM came: the group that the disk was to belong to and never did,
    empty as long as that is not written there. `start` has at most 1 MiB, behind which LVM puts volumes. None: there is
    anything else, or LVM has written down that the disk is in a group."""
    head, area, text = start[_LABEL:_LABEL_END], start[_AREA:_AREA_END], start[_AREA_END:]
    if any(start[:_LABEL]) or any(start[_LABEL_END:_AREA]):
        return None
    if any(area) and (area[4:20] != _AREA_MAGIC or any(area[_COMMITTED]) or any(area[_PLACES_END:])):
        return None
    if any(head) and (not head.startswith(_LABEL_MAGIC) or not any(area)):
        return None  # also of a group that keeps its metadata on other disks alone
    if not any(text):
        return ""
    group = _TEXT.fullmatch(text)
    return group[1].decode() if group and any(head) else None
