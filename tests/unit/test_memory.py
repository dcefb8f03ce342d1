"""What a process keeps of memory that it has freed."""

import subprocess
import sys

import pytest

from shoal import memory

THREADS = """
import threading
import numpy as np
import psutil
from shoal.memory import give_back, keep

keep()
own = psutil.Process()
before = own.memory_info().rss
together = threading.Barrier(6)

def use():
    array = np.ones(10_000_000, np.uint8)
    together.wait()
    del array
    together.wait()

threads = [threading.Thread(target=use) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
give_back()
print(own.memory_info().rss - before)
"""


@pytest.mark.skipif(memory._LIBC is None, reason="another C library than glibc")
def test_what_threads_freed_is_given_back() -> None:
    run = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 5_000_000, "of 60 MB"
