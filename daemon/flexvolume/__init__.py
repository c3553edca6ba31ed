"""The FlexVolume driver: the socket that its callouts come to, what they ask for, and the executable in its place."""
