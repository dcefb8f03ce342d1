"""One board: runs its programs, profiles itself, answers requests."""
