"""Acceptance: what any cluster must do in which elastic-local is installed, asked through its API alone."""
