"""Keeps a training on disk, so that it can be stopped at any moment and go on."""

import io
from pathlib import Path

import torch

from shoal.errors import ConfigError
from shoal.exporter.learnt import write_file
from shoal.train.tuning import State


def save(path: Path, state: State, run: str) -> None:
    """Write `state` to `path`, all or nothing; `run` says of what model, data and recipe it is.

    Raises ConfigError if it cannot be written.
    """
    content = io.BytesIO()
    torch.save({"run": run, "state": state}, content)
    write_file(path, content.getvalue())


def load(path: Path, run: str) -> State:
    """Return what `save` wrote.  Raises ConfigError if there is none, or if it is of another run."""
    try:
        found = torch.load(path, weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: expected a training to go on with, found none") from error
    except Exception as error:  # what torch says of other bytes depends on them
        raise ConfigError(f"{path}: expected a training to go on with, got {_line(error)}") from error
    if not isinstance(found, dict) or found.keys() != {"run", "state"}:
        raise ConfigError(f"{path}: expected a training to go on with, got something else")
    if found["run"] != run:
        raise ConfigError(
            f"{path}: expected a training of this model, data and recipe, got one of others; "
            "leave out --resume to begin anew"
        )
    state: State = found["state"]
    return state


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
