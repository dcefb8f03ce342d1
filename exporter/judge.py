"""How good answers are: in the metric of the user's labels, and against those of the unsplit model.

labels [rows]             of an output [rows, classes]: the part that has the right one (top1)
labels [rows, tokens]     the next token of each, of an output [rows, tokens, words]: the perplexity; below
                          zero: does not count
scores [rows, rows]       how alike rows are, NaN where nobody said: the correlation (Pearson) with the
                          cosines of the answers, of which tokens are averaged
neither                   the mean cosine of the answers to those of the unsplit model
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigError, ModelError
from shoal.exporter.verify import Answer
from shoal.measured import Metric
from shoal.records import Array, TensorSpec

LABELS: Final = "labels"
SCORES: Final = "scores"
MASK: Final = "attention_mask"
"""An input of that name says which tokens count where tokens are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What answers are worth."""

    value: float
    """In the metric."""
    agreement: float | None
    """The part of the rows whose largest number is where the unsplit model has it; None: there are none."""
    cosine: float
    """The mean cosine of the answers to those of the unsplit model."""


class Judge:
    """Judges answers to the same inputs, batch by batch."""

    def __init__(
        self, metric: Metric, output: str, truth: Sequence[Array], mask: Sequence[Array | None]
    ) -> None:
        """Take for each batch the labels or scores of its rows, and which of their tokens count."""
        self.metric, self._output, self._truth, self._mask = metric, output, truth, mask
        self._wanted: list[NDArray[np.float32]] = []

    def unsplit(self, answers: Sequence[Answer]) -> Verdict:
        """Hear what the model in one piece answers, and judge that."""
        self._wanted = [np.asarray(answer[self._output], np.float32) for answer in answers]
        return self.of(answers)

    def of(self, answers: Sequence[Answer]) -> Verdict:
        """Judge the answers to all batches.  Raises ModelError if one has numbers that are not finite."""
        found = [np.asarray(answer[self._output], np.float32) for answer in answers]
        if not all(np.isfinite(array).all() for array in found):
            raise ModelError(
                f"calibrate: output {self._output}: expected finite numbers, got NaN or infinity"
            )
        cosine = float(np.mean(np.concatenate([_cosines(a, b) for a, b in self._pairs(found)])))
        return Verdict(value=self._value(found, cosine), agreement=self._agreement(found), cosine=cosine)

    def _pairs(self, found: Sequence[NDArray[np.float32]]) -> list[tuple[NDArray[np.float32], ...]]:
        return list(zip(self._wanted, found, strict=True))

    def _value(self, found: Sequence[NDArray[np.float32]], cosine: float) -> float:
        if self.metric == "top1":
            right = [got.argmax(axis=-1) == truth for got, truth in zip(found, self._truth, strict=True)]
            return float(np.mean(np.concatenate(right)))
        if self.metric == "perplexity":
            return _perplexity(found, self._truth)
        if self.metric == "pearson":
            pooled = [_pooled(got, mask) for got, mask in zip(found, self._mask, strict=True)]
            return _pearson(np.concatenate(pooled), self._truth[0])
        return cosine

    def _agreement(self, found: Sequence[NDArray[np.float32]]) -> float | None:
        if found[0].ndim < 2 or found[0].shape[-1] < 2 or self.metric == "pearson":
            return None
        same = [(want.argmax(-1) == got.argmax(-1)).reshape(-1) for want, got in self._pairs(found)]
        return float(np.mean(np.concatenate(same)))


def metric_of(truth: Mapping[str, Array], rows: int) -> Metric:
    """Return the metric for what the user gave beside the inputs.

    Raises ConfigError if that does not fit so many rows of inputs.
    """
    if LABELS in truth and SCORES in truth:
        raise ConfigError(f"calibrate: expected {LABELS} or {SCORES}, got both")
    if LABELS in truth:
        labels = truth[LABELS]
        if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or len(labels) != rows:
            raise ConfigError(
                f"calibrate: {LABELS}: expected whole numbers, [{rows}] or [{rows}, tokens], got "
                f"{labels.dtype} {list(labels.shape)}"
            )
        return "top1" if labels.ndim == 1 else "perplexity"
    if SCORES in truth:
        scores = truth[SCORES]
        if scores.dtype.kind != "f" or scores.shape != (rows, rows):
            raise ConfigError(
                f"calibrate: {SCORES}: expected fractions [{rows}, {rows}], got {scores.dtype} "
                f"{list(scores.shape)}"
            )
        return "pearson"
    return "cosine"


def judged_output(metric: Metric, outputs: Sequence[TensorSpec]) -> str:
    """Return the name of the output that is judged.  Raises ConfigError if none fits the metric."""
    sizes = {"top1": (2,), "perplexity": (3,), "pearson": (2, 3), "cosine": (1, 2, 3, 4)}[metric]
    for spec in outputs:
        if spec.dtype.startswith("float") and len(spec.shape) in sizes:
            return spec.name
    raise ConfigError(
        f"calibrate: {metric}: expected an output of fractions with {' or '.join(map(str, sizes))} sizes, "
        f"got {[spec.name for spec in outputs]}"
    )


def check_labels(metric: Metric, labels: Array, answer: Array) -> None:
    """Raise ConfigError unless `labels` are of such an answer: its places, and numbers that it has."""
    if metric not in ("top1", "perplexity"):
        return
    if labels.shape != answer.shape[:-1]:
        raise ConfigError(
            f"calibrate: {LABELS}: expected {list(answer.shape[:-1])} for an answer of {list(answer.shape)}, "
            f"got {list(labels.shape)}"
        )
    most, least = int(labels.max(initial=0)), int(labels.min(initial=0))
    if most >= answer.shape[-1] or (metric == "top1" and least < 0):
        raise ConfigError(
            f"calibrate: {LABELS}: expected numbers of 0 to {answer.shape[-1] - 1}, got {least} to {most}"
        )


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of each row of the batch."""
    if a.shape != b.shape:
        raise ModelError(f"expected an answer of {list(a.shape)}, got {list(b.shape)}")
    left, right = a.reshape(len(a), -1).astype(np.float64), b.reshape(len(b), -1).astype(np.float64)
    scale = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    found = np.ones(len(a))
    np.divide((left * right).sum(axis=1), scale, out=found, where=scale > 0)
    return found


def _perplexity(found: Sequence[NDArray[np.float32]], truth: Sequence[Array]) -> float:
    total, count = 0.0, 0
    for got, labels in zip(found, truth, strict=True):
        counted = np.asarray(labels, np.int64) >= 0
        most = got.max(axis=-1, keepdims=True)
        logs = np.log(np.exp(got - most).sum(axis=-1, dtype=np.float64)) + most[..., 0]
        chosen = np.take_along_axis(got, np.maximum(labels, 0)[..., None].astype(np.intp), axis=-1)[..., 0]
        total += float((logs - chosen)[counted].sum())
        count += int(counted.sum())
    if not count:
        raise ConfigError(f"calibrate: {LABELS}: expected some of 0 or more, got none")
    return float(np.exp(total / count))


def _pooled(got: NDArray[np.float32], mask: Array | None) -> NDArray[np.float32]:
    """Return [rows, width]; tokens are averaged."""
    if got.ndim == 2:
        return got
    weights = np.ones(got.shape[:2], np.float32) if mask is None else mask.astype(np.float32)
    total = (got * weights[:, :, None]).sum(axis=1, dtype=np.float32)
    return np.asarray(total / weights.sum(axis=1, keepdims=True), np.float32)


def _pearson(pooled: NDArray[np.float32], scores: Array) -> float:
    """Return the correlation of cosines and scores over pairs of different rows."""
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    above = np.triu(np.isfinite(scores), k=1)
    if above.sum() < 3:
        raise ConfigError(f"calibrate: {SCORES}: expected three pairs or more, got {above.sum()}")
    return float(np.corrcoef((unit @ unit.T)[above], scores[above])[0, 1])
