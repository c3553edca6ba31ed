"""The API server stand-in keeps the promises of the real one."""
