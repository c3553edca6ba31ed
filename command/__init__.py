"""`elastic-local`, the command: where settings become programs, and people look at their volumes."""
