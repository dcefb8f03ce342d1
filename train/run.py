"""The way from a model and data to a model that was trained for what its boards hand one another."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import numpy as np
import torch

from shoal import memory
from shoal.codec import PLAIN
from shoal.errors import ConfigError, ModelError
from shoal.exporter.data import Data, read_data
from shoal.exporter.export import export
from shoal.exporter.judge import LABELS, metric_of
from shoal.exporter.kmeans import table_of
from shoal.exporter.learnt import Place, beside, digest_of, write_learnt
from shoal.exporter.recipes import check_codecs
from shoal.exporter.trial import Trial
from shoal.manifest import WHOLE, Manifest, Sharding, file_of
from shoal.records import Array
from shoal.session import Session, open_session
from shoal.sharding import programs
from shoal.sizes import resized, sizes_in
from shoal.train.draws import Draw, rows_of
from shoal.train.files import same_answers, write_model
from shoal.train.graph import read_graph
from shoal.train.network import Network
from shoal.train.recipe import Recipe
from shoal.train.state import load, save
from shoal.train.tuning import Tuning, books_in, names
from shoal.train.unsplit import Unsplit

Point = Literal["kv", "hidden"]
Report = Callable[[int, float], None]
"""Is told of each step that was made, and its loss."""

TOLERANCE: Final = 1e-4
"""How far torch may be from onnxruntime, as a part of the largest number."""
LOOKED_AT: Final = 8
"""Rows on which the two are compared."""
KEPT_BYTES: Final = 1 << 30
"""Freed memory up to so much is kept for the next step."""
CODED: Final = 10_000
"""Rows at each exchange from which codebooks are made, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a training."""

    steps: int
    first_loss: float
    """The mean of the first tenth of the steps made now."""
    last_loss: float
    """The mean of the last tenth."""
    books: Path | None
    """The codebooks that were learnt with the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be trained, and where it goes."""

    model: Path
    data: Path
    target: Path
    recipe: Recipe
    point: Point
    """What is gathered: keys and values, or the rows that they are made of."""
    teacher: Path | None
    """A model whose answers are taught; None: those of `model`."""
    resume: bool
    save_every: int
    """Steps."""

    @property
    def kept(self) -> Path:
        """Return where the training is kept while it goes on."""
        return self.target.with_name(f"{self.target.name}.training")

    def run(self) -> str:
        """Return a word for this model, data and recipe: another one has another, but for its steps."""
        recipe = replace(self.recipe, steps=1)
        teacher = digest_of(self.teacher) if self.teacher else ""
        words = (digest_of(self.model), digest_of(self.data), teacher, self.point, repr(recipe))
        return sha256("\n".join(words).encode()).hexdigest()


def train(order: Order, report: Report) -> Outcome:
    """Train a model and write it, and codebooks beside it.

    Raises ConfigError if an argument, the data or a training to go on with does not fit, ModelError if the
    model cannot be divided or trained, PlanError if it does not take what a codec makes.
    """
    memory.keep(KEPT_BYTES)
    run = order.run()
    state = load(order.kept, run) if order.resume else None
    with TemporaryDirectory() as place:
        bundle = Path(place) / "bundle"
        manifest = export(order.model, bundle)
        data = read_data(order.data, manifest.inputs)
        metric_of(data.truth, data.rows)  # refuses labels that do not fit
        manifest = resized(manifest, sizes_in(manifest, data.inputs))
        sharding = _sharding(manifest, order)
        original = open_session(bundle / file_of(WHOLE), threads=torch.get_num_threads())
        network = Network({s.name: read_graph(bundle / file_of(s.name)) for s in sharding.segments})
        trial = Trial(manifest, bundle, sharding)
        check_codecs([str(codec) for codec in order.recipe.codecs], trial.values())
        books = _books(trial, data, order.recipe) if state is None else books_in(state)
        outputs = tuple(spec.name for spec in manifest.outputs)
        tuning = Tuning(sharding, network, outputs, order.recipe, books)
        _compare(tuning, data, original)
        tuning.quicken(data.some(np.arange(LOOKED_AT)).inputs)
        if state is not None:
            tuning.restore(state)
        losses = _steps(order, tuning, data, Unsplit(_teacher(order, original), data), run, report)
        digest = write_model(bundle / file_of(WHOLE), network.arrays(), order.target)
    if books:
        write_learnt(beside(order.target), digest, tuning.books())
    order.kept.unlink(missing_ok=True)
    tenth = max(1, len(losses) // 10)
    return Outcome(
        steps=tuning.step,
        first_loss=float(np.mean(losses[:tenth])) if losses else 0.0,
        last_loss=float(np.mean(losses[-tenth:])) if losses else 0.0,
        books=beside(order.target) if books else None,
    )


def _steps(
    order: Order, tuning: Tuning, data: Data, unsplit: Unsplit, run: str, report: Report
) -> list[float]:
    """Make all steps that are left, and return the loss of each."""
    losses: list[float] = []
    taught = LABELS not in data.truth or order.recipe.taught > 0
    for step in range(tuning.step, order.recipe.steps):
        rows = rows_of(order.recipe, step, data.rows)
        losses.append(tuning.learn(data.some(rows), unsplit.answers(rows) if taught else {}))
        if tuning.step % order.save_every == 0 and tuning.step < order.recipe.steps:
            save(order.kept, tuning.state(), run)
        report(tuning.step, losses[-1])
    return losses


def _teacher(order: Order, original: Session) -> Session:
    """Return the model whose answers are taught.  Raises ModelError if it is not one of the same kind."""
    if order.teacher is None:
        return original
    found = open_session(order.teacher, threads=torch.get_num_threads())
    expected, got = ((*one.inputs, *one.outputs) for one in (original, found))
    if expected != got:
        raise ModelError(f"{order.teacher}: expected inputs and outputs {expected}, got {got}")
    return found


def _sharding(manifest: Manifest, order: Order) -> Sharding:
    """Return the sharding to train.  Raises ModelError with why there is none, PlanError for a codec."""
    name = "sequence" if order.point == "kv" else "sequence-hidden"
    found = next((s for s in manifest.shardings if s.name == name), None)
    if found is None:
        proof = next((v for v in manifest.verification if v.strategy == name), None)
        reason = proof.reason if proof else f"nothing smaller than keys and values to gather for {name}"
        raise ModelError(f"{order.model}: cannot divide its tokens: {reason}")
    boards = names(2)
    for codec in order.recipe.codecs:
        programs(found, boards, boards[0], (0.5, 0.5), codec)
    return found


def _books(trial: Trial, data: Data, recipe: Recipe) -> dict[Place, Array]:
    """Return codebooks for what the recipe codes, from what crosses before training."""
    coded = {codec.book: codec for codec in recipe.codecs if codec.book}
    if not coded:
        return {}
    some = data.some(np.arange(min(data.rows, 2 * max(1, CODED // trial.sharding.units))))
    handed, _ = trial.handed(some.batches(recipe.batch), CODED, recipe.seed)
    return {
        Place(trial.sharding.name, one.tag, one.tensor, word): table_of(codec, one.rows, recipe.seed)
        for word, codec in coded.items()
        for one in handed
    }


def _compare(tuning: Tuning, data: Data, original: Session) -> None:
    """Raise ModelError if torch does not answer as onnxruntime does."""
    inputs = data.some(np.arange(LOOKED_AT)).inputs
    got = tuning.answer(inputs, Draw(shares=(0.5, 0.5), codec=PLAIN))
    wrong = same_answers(original.run(inputs), got, TOLERANCE)
    if wrong:
        raise ModelError(f"train: expected torch to answer as onnxruntime does, {wrong}")


def check_target(target: Path, *, force: bool) -> None:
    """Raise ConfigError if there is something at `target` that nobody said may be replaced."""
    if target.exists() and not force:
        raise ConfigError(f"{target}: expected a free name, or --force to replace it, found something there")
