"""What developers run, and releases are made with: `make` calls it. Nothing of it is shipped."""
