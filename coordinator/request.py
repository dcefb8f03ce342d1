"""Requests from the command line: tensors from a file, or made up, to a board and back."""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import aiohttp
import numpy as np

from shoal.coordinator import client
from shoal.errors import ConfigError
from shoal.messages import Birth
from shoal.program import Plan
from shoal.records import Array, BoardId


async def ask(
    broker: str,
    cluster: str,
    inputs: Path | None,
    board: BoardId | None,
    repeat: int,
    trace: Path | None = None,
    deadline_s: float | None = None,
) -> tuple[dict[str, Array], list[float]]:
    """Return the last of `repeat` answers, and the seconds that each took.

    The timeline of one more request is written to `trace`.  With `deadline_s` each answer is wanted within so
    many seconds or not at all.

    Raises ConfigError if nothing is served or the file cannot be read, ModelError if its tensors do not
    fit, BoardError if there is no answer.
    """
    async with client.Operator(broker, cluster) as operator, aiohttp.ClientSession() as http:
        view = operator.view
        plan = await _plan(operator)
        url = plan.addresses[plan.lead].http_url
        if board is not None:
            birth = view.boards.get(board, {}).get(Birth)
            if not isinstance(birth, Birth):
                raise ConfigError(f"--board: expected one of {sorted(view.boards)}, got {board}")
            url = birth.address.http_url
        if inputs is not None:
            tensors: Mapping[str, Array] = load(inputs)
        else:
            tensors = await client.made_up(http, url, plan.model)
        seconds = []
        for _ in range(repeat):
            begun_s = time.perf_counter()
            answer = await client.infer(http, url, plan.model, tensors, deadline_s=deadline_s)
            seconds.append(time.perf_counter() - begun_s)
        if trace is not None:
            name, lead = secrets.token_hex(8), plan.addresses[plan.lead].http_url
            await client.infer(http, lead, plan.model, tensors, trace=name)
            write(trace, await client.timeline(http, lead, name))
        return answer, seconds


async def _plan(operator: client.Operator) -> Plan:
    """Return the plan in force, waiting a little where one is put down for the next.

    Raises ConfigError if there is none.
    """
    view, until_s = operator.view, time.monotonic() + client.TIMEOUT_S
    while view.plan is None and view.deployment is not None and time.monotonic() < until_s:
        await operator.next(until_s - time.monotonic())
    if view.plan is None:
        raise ConfigError("no plan is in force; see `shoal status`")
    return view.plan


def write(file: Path, content: bytes) -> None:
    """Write a file.  Raises ConfigError if that cannot be done."""
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{file}: cannot write: {error.strerror}") from error


def load(file: Path) -> dict[str, Array]:
    """Return the tensors of an .npz file by name.  Raises ConfigError if it is none."""
    try:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise ConfigError(
                f"{file}: expected an .npz file with tensors by name, got one tensor; "
                f"np.savez('inputs.npz', NAME=tensor) writes one"
            )
        with found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file}: expected an .npz file with tensors by name: {error}") from error


def save(file: Path, tensors: Mapping[str, Array]) -> None:
    """Write tensors as an .npz file.  Raises ConfigError if it cannot be written."""
    try:
        with file.open("wb") as out:
            np.savez(out, **dict(tensors))  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"{file}: cannot write: {error.strerror}") from error
