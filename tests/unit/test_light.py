"""A look at the cluster does not wait for onnxruntime to load."""

import json
import subprocess
import sys

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
