"""What a process keeps of memory that it has freed."""

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

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


RUN = """
import sys
from pathlib import Path
from pathlib import Path
import numpy as np
import psutil
from shoal.memory import give_back, keep
from shoal.session import open_session, shrink

keep()
session, own = open_session(Path(sys.argv[1])), psutil.Process()
before = own.memory_info().rss
for _ in range(2):
    session.run({"size": np.array([25_000_000], np.int64)})
print(own.memory_info().rss - before)
shrink()
give_back()
print(own.memory_info().rss - before)
"""


@pytest.mark.skipif(memory._LIBC is None, reason="another C library than glibc")
def test_what_the_largest_run_took_is_given_back(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("ReduceMax", ["ones"], ["most"], keepdims=0),
    ]
    ports = [
        helper.make_tensor_value_info("size", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("most", TensorProto.FLOAT, []),
    ]
    file = tmp_path / "large.onnx"
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    run = subprocess.run([sys.executable, "-c", RUN, file], capture_output=True, text=True, check=True)
    kept, left = map(int, run.stdout.split())
    assert kept > 90_000_000, "100 MB, or twice that"
    assert left < 20_000_000
