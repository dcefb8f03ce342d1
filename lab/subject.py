"""What a scenario runs: its bundle, requests and what the unsplit model answers, and what it costs here."""

import hashlib
import json
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from shoal.agent.rehearsal import rehearse
from shoal.encoding import build
from shoal.errors import ConfigError, ModelError, WireError
from shoal.lab.boards import Setting
from shoal.lab.calibration import Calibration, completed
from shoal.lab.files import kinds
from shoal.lab.scenario import BoardSpec, Scenario
from shoal.manifest import WHOLE, Manifest, parse
from shoal.profiler.opening import opener
from shoal.profiler.segments import Found, measure, refine
from shoal.records import Array, BoardId, Sha256, TensorSpec
from shoal.session import open_session
from shoal.sizes import sizes_in

REQUESTS: Final = 4
"""So many different requests are asked in turn."""

PASSES: Final = 2
LAWS_S: Final = 1.0
"""So long a simulation has segments of shardings measured at several sizes."""
MEMORY_BYTES: Final = 1_000_000_000
"""Of a board of which nothing else is said."""

Tensors = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A bundle and what to ask of it."""

    bundle: Path
    manifest: Manifest
    digest: Sha256
    """Of the manifest."""
    inputs: tuple[Tensors, ...]
    expected: tuple[Tensors, ...]
    """What the unsplit model answers."""

    @property
    def parts(self) -> frozenset[str]:
        """Return the segments of which a board has a part: those of shardings."""
        return frozenset(segment.name for one in self.manifest.shardings for segment in one.segments)


def prepare(scenario: Scenario, folder: Path) -> Subject:
    """Make or find the scenario's bundle and ask the unsplit model.

    Raises ConfigError, with file and line, if what the scenario names is not there or does not fit.
    """
    if scenario.bundle:
        bundle = _beside(scenario, scenario.bundle)
        if not (bundle / "manifest.json").is_file():
            raise _wrong(scenario, "bundle", f"expected a folder made by `shoal export`, got {bundle}")
        original = bundle / "whole.onnx"
    else:
        bundle = folder / "bundle"
        original = _export(scenario, bundle, folder)
    text = (bundle / "manifest.json").read_bytes()
    manifest = parse(text, str(bundle / "manifest.json"))
    inputs = _inputs(scenario, manifest)
    session = open_session(original)
    try:
        expected = tuple(session.run(one) for one in inputs)
    except ModelError as error:
        raise _wrong(scenario, "workload", f"the model does not take these inputs: {error}") from error
    digest = Sha256(hashlib.sha256(text).hexdigest())
    return Subject(bundle=bundle, manifest=manifest, digest=digest, inputs=inputs, expected=expected)


def calibrate(subject: Subject, laws_s: float = 0.0, due: Collection[str] | None = None) -> Calibration:
    """Return what each segment takes on one core of this machine.

    The same small measurement that a board makes of itself, twice: the quicker one was disturbed less.
    Then for `laws_s` the closer one, at several sizes, of the segments in `due`: those of shardings, if
    nothing is said.
    """
    opened = opener(subject.bundle, threads=1)
    passes: list[Found] = []
    for _ in range(PASSES):
        *_, found = measure(subject.manifest, opened, threading.Lock())
        passes.append(found)
    timings = [found.timings for found in passes]
    best = {name: min((each[name] for each in timings), key=lambda t: t.median_s) for name in timings[0]}
    laws = dict(passes[-1].laws)
    if laws_s:
        closer = refine(
            subject.manifest,
            opened,
            threading.Lock(),
            best,
            subject.parts if due is None else due,
            go_on=lambda: True,
            room_bytes=MEMORY_BYTES,
            budget_s=laws_s,
        )
        for look in closer:
            if look.law is not None:
                laws |= dict.fromkeys(look.segments, look.law)
    seconds = {name: timing.median_s for name, timing in best.items()}
    return Calibration(seconds=seconds, laws=laws, exchanges=rehearse())


def read_calibration(file: Path) -> Calibration:
    """Return the calibration in a file that `--json` wrote.  Raises ConfigError if it is none."""
    try:
        return build(Calibration, json.loads(file.read_text())["outcome"]["calibration"], str(file))
    except (OSError, ValueError, KeyError, TypeError, WireError) as error:
        raise ConfigError(f"{file}: expected a file that --json wrote: {error!r}") from error


def speeds(scenario: Scenario, subject: Subject, calibration: Calibration) -> dict[BoardId, float | None]:
    """Return what share of this machine's core each board is to be; None: all of it.

    What the scenario says comes first, then the board's quota, then the seed figure of its kind.
    """
    flops_per_s = subject.manifest.whole.flops / calibration.seconds[WHOLE]

    def speed_of(board: BoardSpec) -> float | None:
        if board.speed is not None:
            return board.speed
        if board.quota is not None and board.quota < 1:
            return board.quota
        return min(1.0, kinds()[board.kind].gflops * 1e9 / flops_per_s) if board.kind else None

    return {board.name: speed_of(board) for board in scenario.boards}


def offered_bytes(board: BoardSpec) -> int:
    """Return the memory that the board's agent may use."""
    return MEMORY_BYTES if board.memory_bytes is None else board.memory_bytes


def setting(scenario: Scenario, subject: Subject, calibration: Calibration) -> Setting:
    """Return what a simulation must know."""
    return Setting(
        manifest=subject.manifest,
        digest=subject.digest,
        calibration=completed(subject.manifest, calibration),
        speeds={name: speed or 1.0 for name, speed in speeds(scenario, subject, calibration).items()},
        quotas={board.name: min(1.0, board.quota or 1.0) for board in scenario.boards},
        memory_bytes={board.name: offered_bytes(board) for board in scenario.boards},
        input_bytes=sum(array.nbytes for array in subject.inputs[0].values()),
        sizes=sizes_in(subject.manifest, subject.inputs[0]),
        output_bytes=sum(array.nbytes for array in subject.expected[0].values()),
    )


def input_bytes(manifest: Manifest) -> dict[str, int]:
    """Return the bytes of each segment's inputs at the sample sizes."""
    sizes = manifest.tensor_bytes
    return {
        name: sum(sizes[spec.name] for spec in segment.inputs) for name, segment in manifest.by_name.items()
    }


def _export(scenario: Scenario, bundle: Path, folder: Path) -> Path:
    """Export the scenario's model and return its ONNX file."""
    try:
        from shoal.exporter.export import export
        from shoal.lab import builtin
    except ImportError as error:
        words = f"to export a model takes onnx: pip install '.[export]' in a clone of shoal ({error})"
        raise _wrong(scenario, "model", words) from error
    sizes: dict[str, int] = {}
    if scenario.model in builtin.MODELS:
        file = folder / f"{scenario.model}.onnx"
        builtin.write(scenario.model, file)
        tokens = scenario.workload.tokens or builtin.MODELS[scenario.model].tokens
        sizes = {"batch": scenario.workload.batch, "tokens": tokens}
    else:
        file = _beside(scenario, scenario.model)
        if not file.is_file():
            known = ", ".join(builtin.MODELS)
            raise _wrong(scenario, "model", f"expected one of {known}, or an ONNX file, got {file}")
    export(file, bundle, sizes=sizes, force=True)
    return file


def _inputs(scenario: Scenario, manifest: Manifest) -> tuple[Tensors, ...]:
    if not scenario.workload.inputs:
        sizes = dict(manifest.sample_sizes)
        if manifest.batch is not None:
            sizes[manifest.batch] = scenario.workload.batch
        if "tokens" in sizes and scenario.workload.tokens:
            sizes["tokens"] = scenario.workload.tokens
        chance = np.random.default_rng(scenario.seed)
        made = range(REQUESTS)
        return tuple({spec.name: _noise(spec, sizes, chance) for spec in manifest.inputs} for _ in made)
    file = _beside(scenario, scenario.workload.inputs)
    try:
        with np.load(file) as found:
            return ({spec.name: found[spec.name] for spec in manifest.inputs},)
    except (OSError, ValueError, KeyError) as error:
        wanted = ", ".join(spec.name for spec in manifest.inputs)
        words = f"expected an .npz file with {wanted}, got {file}: {error}"
        raise _wrong(scenario, "workload", words, "inputs") from error


def _noise(spec: TensorSpec, sizes: Mapping[str, int], chance: np.random.Generator) -> Array:
    shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.shape]
    if spec.dtype.startswith("float"):
        return chance.standard_normal(shape).astype(spec.dtype)
    return np.ones(shape, dtype=spec.dtype)


def _beside(scenario: Scenario, name: str) -> Path:
    """Return a path that is relative to the scenario's file."""
    return Path(scenario.lines.file).parent / name


def _wrong(scenario: Scenario, key: str, words: str, *more: str) -> ConfigError:
    return ConfigError(f"{scenario.lines.where((key, *more))}: {'.'.join((key, *more))}: {words}")
