"""Keeps a training on disk, so that it can be stopped at any moment and go on."""

import io
import pickle
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
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: expected a training to go on with, got {error}") from error
    if not isinstance(found, dict) or found.keys() != {"run", "state"}:
        raise ConfigError(f"{path}: expected a training to go on with, got something else")
    if found["run"] != run:
        raise ConfigError(
            f"{path}: expected a training of this model, data and recipe, got one of others; "
            "leave out --resume to begin anew"
        )
    state: State = found["state"]
    return state
