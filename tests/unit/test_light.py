"""What commands load: a look at the cluster no onnxruntime, an agent no threads of numpy's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOOK = """
import json, sys
sys.argv = ["shoal", "status", "--broker", "no url"]
from shoal.cli import main
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code, sorted(sys.modules)]))
"""


def test_status_loads_neither_onnxruntime_nor_the_planner() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    code, modules = json.loads(found.stdout)
    assert "no url" in found.stderr
    assert code == 2
    assert {"shoal.coordinator.client", "shoal.coordinator.render"} <= set(modules)
    assert not {"onnxruntime", "shoal.session", "shoal.coordinator.planner"} & set(modules)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc: threads cannot be counted")
def test_the_products_of_an_agent_have_no_threads_of_their_own() -> None:
    look = "import shoal.agent.cli, numpy, os; print(len(os.listdir('/proc/self/task')))"
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    found = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, env=plain
    )
    assert int(found.stdout) == 1
