"""`make databases`: databases of Debian on volumes of the sandbox. See docs/databases.md."""
