"""The house stands as drawn: links, layers, light boards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("agent", "coordinator", "exporter", "firmware_configs", "lab", "profiler", "train")


@pytest.mark.parametrize("folder", FOLDERS)
def test_links_point_at_the_folders(folder: str) -> None:
    assert (ROOT / "shoal" / folder).resolve() == ROOT / folder


@pytest.mark.parametrize("folder", [*FOLDERS, "shoal"])
def test_packages_are_flat(folder: str) -> None:
    nested = [
        path
        for path in (ROOT / folder).glob("*/*.py")
        if not path.parent.is_symlink() and path.parent.name != "__pycache__"
    ]
    assert nested == []


def test_imports_keep_to_the_layers() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def modules_after(imports: str) -> set[str]:
    code = f"import json, sys\n{imports}\nprint(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(found.stdout))


def test_an_agent_loads_nothing_heavy() -> None:
    parts = [f"import shoal.agent.{path.stem}" for path in sorted((ROOT / "agent").glob("[a-z]*.py"))]
    loaded = modules_after("\n".join(parts))
    assert "shoal.agent.service" in loaded
    heavy = {
        "onnx",
        "torch",
        "transformers",
        "amqtt",
        "PIL",
        "shoal.exporter",
        "shoal.coordinator",
        "shoal.lab",
    }
    assert not heavy & loaded


def test_help_loads_no_command() -> None:
    loaded = modules_after(
        "from click.testing import CliRunner\n"
        "from shoal.cli import cli\n"
        "CliRunner().invoke(cli, ['--version'])"
    )
    assert "shoal.cli" in loaded
    assert not {"numpy", "onnxruntime", "aiohttp", "paho"} & loaded


def test_no_source_file_is_loaded_under_two_names() -> None:
    seen: dict[Path, str] = {}
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] in (*FOLDERS, "shoal") and file:
            real = Path(file).resolve()
            assert real not in seen, f"{real.name}: {seen[real]} and {name}"
            seen[real] = name


def test_every_command_of_the_table_loads_and_has_help() -> None:
    from click import Context

    from shoal.cli import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(Context(cli), name)
        assert command is not None
        assert command.help, name
