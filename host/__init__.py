"""What a Linux node offers: running a command under a deadline, mounts, block and loop devices, filesystems.

Nothing of Kubernetes in here, and nothing of LVM.
"""
