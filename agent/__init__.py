"""One board: runs its programs, profiles itself, answers requests."""

import os

# Read once, when numpy is imported: the threads of its products would busy-wait on cores that segments need.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
