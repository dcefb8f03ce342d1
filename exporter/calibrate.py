"""Measures on the user's data what every codec costs in accuracy, and makes codebooks for those that code.

Every second row of the data makes codebooks and says how sensitive each exchange is; the others judge.  What
is played are the bundle's own programs, with several boards in one process.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shoal.book import Book, book_of
from shoal.codebooks import STORED
from shoal.codec import PLAIN, Codec, codec_of
from shoal.errors import ConfigError, ModelError, PlanError
from shoal.exporter.bundle import store
from shoal.exporter.data import Data
from shoal.exporter.judge import LABELS, MASK, SCORES, Judge, Verdict, check_labels, judged_output, metric_of
from shoal.exporter.progress import Report, silent
from shoal.exporter.recipes import check_codecs, ladder, mixed, standard
from shoal.exporter.samples import Sample
from shoal.exporter.trial import BookKey, Rows, Trial
from shoal.exporter.verify import Answer, run_file
from shoal.manifest import Manifest, Variant, file_of
from shoal.measured import (
    NONE,
    Calibration,
    Codebook,
    Outcome,
    Sensitivity,
    late_words,
    lost_of,
    recipe_words,
)
from shoal.memory import give_back
from shoal.records import Array

PARTS: Final = (2, 4, 8)
"""Among so many boards, where there are tokens enough."""
ROWS_BYTES: Final = 512e6
"""Of rows that are held to make codebooks of, of all tensors together ..."""
MOST_ROWS: Final = 16384
LEAST_ROWS: Final = 4096
"""... but of each of them so many."""
PROBED: Final = 128
"""Inputs on which the sensitivity of each exchange is measured."""
BATCH_BYTES: Final = 64e6
"""Inputs are asked so many at once that the work memory of a run is about so much."""
MOST_AT_ONCE: Final = 256
SEED: Final = 0
LATE: Final = (0.01, 0.05, 0.1)
"""Parts of the messages that are left out, to see what that costs ..."""
LATE_AT_ONCE: Final = 8
"""... of so many inputs that are asked together the same ones, ..."""
LATE_LEAST: Final = 20
"""... over and over until so many were left out, ..."""
LATE_MOST: Final = 10
"""... but so often at most."""

Tables = Mapping[tuple[str, int, str, str], NDArray[np.float32]]
"""Vectors of codebooks that were made elsewhere, by sharding, tag, tensor and word for the codes."""


def calibrate(
    manifest: Manifest,
    folder: Path,
    data: Data,
    words: Sequence[str] = (),
    report: Report = silent,
    tables: Tables | None = None,
) -> Manifest:
    """Return the manifest of the bundle in `folder` with a calibration and codebooks; writes their blobs.

    `words` are the codecs to try, standard ones if there are none; codebooks are made of the data unless
    they are among `tables`.  Raises ConfigError if the data does not fit or is too little, ModelError if the
    model makes numbers of it that are not finite or that no codes can be made for.
    """
    able = [
        each for each in manifest.shardings if each.strategy == "sequence" and manifest.verified(each.name)
    ]
    trials = [trial for trial in (Trial(manifest, folder, each) for each in able) if trial.coded]
    if not trials:
        raise ConfigError(f"calibrate: {manifest.name}: expected a way to divide tokens, the bundle has none")
    metric = metric_of(data.truth, data.rows)
    found = _Calibrating(manifest, folder, data, words, report, tables or {})
    while trials:
        found.sharding(trials.pop(0))  # its sessions are closed behind it
        give_back()
    calibration = Calibration(
        metric=metric,
        unsplit=found.unsplit.value,
        samples=found.held_out.rows,
        outcomes=tuple(found.outcomes),
        sensitivities=tuple(found.sensitivities),
    )
    return replace(
        manifest,
        codebooks=tuple(found.codebooks),
        calibration=calibration,
        variants=tuple(found.variant(each) for each in manifest.variants),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Inputs in batches, and who judges the answers to them."""

    batches: Sequence[Sample]
    judge: Judge
    unsplit: Verdict


class _Calibrating:
    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        data: Data,
        words: Sequence[str],
        report: Report,
        tables: Tables,
    ) -> None:
        self._manifest, self._folder, self._words, self._report = manifest, folder, words, report
        self._tables = tables
        at_once = MOST_AT_ONCE if manifest.batch else 1
        self._at_once = max(1, min(at_once, int(BATCH_BYTES / max(1, manifest.whole.work_bytes))))
        learnt, self.held_out = data.half(0), data.half(1)
        self._learnt = learnt.batches(self._at_once)
        report.detail("the model in one piece")
        self._run = run_file(folder / file_of(manifest.whole.name))
        self._judged = self._asked(self.held_out)
        self._hurried = self._asked(self.held_out, at_once=min(LATE_AT_ONCE, self._at_once))
        self._probed = self._asked(learnt.some(np.arange(min(PROBED, learnt.rows))), truth=False)
        self.unsplit = self._judged.unsplit
        self.outcomes: list[Outcome] = []
        self.sensitivities: list[Sensitivity] = []
        self.codebooks: list[Codebook] = []

    def variant(self, made: Variant) -> Variant:
        """Return a variant of the bundle with the accuracy that the model in one piece loses in it."""
        whole = self._manifest.whole.name
        if whole not in made.segments:
            return made
        self._report.detail(f"the model in {made.precision}")
        try:
            run = run_file(self._folder / file_of(whole, made.precision))
            value = self._judged.judge.of(run(self._judged.batches)).value
        except ModelError:  # as its deviations say
            return made
        lost = lost_of(self._judged.judge.metric, self.unsplit.value, value)
        return replace(made, lost=lost)

    def sharding(self, trial: Trial) -> None:
        """Calibrate one sharding."""
        name, values = trial.sharding.name, trial.values()
        most = max(LEAST_ROWS, min(MOST_ROWS, int(ROWS_BYTES / 4 / max(1, sum(values.values())))))
        self._report.detail(f"{name}: what boards hand one another")
        rows, tokens = trial.handed(self._learnt, most, SEED)
        codecs = check_codecs(self._words, values) if self._words else standard(values.values())
        counts = [parts for parts in PARTS if parts <= tokens]
        if not counts:
            raise ConfigError(f"calibrate: expected inputs of {PARTS[0]} tokens or more, got {tokens}")
        books = self._books(trial, rows, codecs)
        each = dict.fromkeys((PLAIN, *codecs))
        recipes = [(codec,) * len(trial.exchanges) for codec in each] + self._mixed(trial, codecs, books)
        for number, (parts, recipe) in enumerate([(p, r) for p in counts for r in (None, *recipes)], 1):
            what = NONE if recipe is None else recipe_words(recipe)
            self._report.detail(
                f"{name}, {parts} boards, {number}/{len(counts) * (len(recipes) + 1)}: {what}"
            )
            found = self._outcome(trial, parts, recipe, books, tokens)
            self.outcomes += [found] if found else []
        for parts, share in product(counts, LATE):
            self._report.detail(f"{name}, {parts} boards: {share:.0%} of the messages late")
            hurried = self._late(trial, parts, share, tokens)
            self.outcomes += [hurried] if hurried else []

    def _late(self, trial: Trial, parts: int, share: float, tokens: int) -> Outcome | None:
        """Measure answers without a part of the messages; None if the model cannot do without any."""
        asked = self._hurried
        chance = np.random.default_rng([SEED, parts, round(1000 * share)])
        try:
            messages = max(1, len(asked.batches) * trial.awaited(parts))
            times = min(LATE_MOST, ceil(LATE_LEAST / (share * messages)))
            found = [
                asked.judge.of(trial.hurried(parts, asked.batches, lambda *_: chance.random() < share))
                for _ in range(times)
            ]
        except PlanError:
            return None
        value = float(np.mean([each.value for each in found]))
        agreed = [each.agreement for each in found if each.agreement is not None]
        return Outcome(
            sharding=trial.sharding.name,
            parts=parts,
            recipe=late_words(str(PLAIN), share),
            bytes_per_token=trial.bytes_per_token(parts, (PLAIN,) * len(trial.exchanges), tokens),
            value=value,
            lost=lost_of(asked.judge.metric, asked.unsplit.value, value),
            agreement=float(np.mean(agreed)) if agreed else None,
        )

    def _outcome(
        self,
        trial: Trial,
        parts: int,
        recipe: tuple[Codec, ...] | None,
        books: Mapping[BookKey, Book],
        tokens: int,
    ) -> Outcome | None:
        """Measure a recipe, or no exchange at all; None if the model cannot be divided like that."""
        asked = self._judged
        if recipe is not None and any(codec.rate > max(1, tokens // parts) for codec in recipe):
            return None  # a mean of all that a board has is the least
        try:
            if recipe is None:
                answers = trial.alone(parts, asked.batches)
            else:
                answers = trial.answers(parts, recipe, asked.batches, books)
        except PlanError:
            return None
        found = asked.judge.of(answers)
        return Outcome(
            sharding=trial.sharding.name,
            parts=parts,
            recipe=NONE if recipe is None else recipe_words(recipe),
            bytes_per_token=0.0 if recipe is None else trial.bytes_per_token(parts, recipe, tokens),
            value=found.value,
            lost=lost_of(asked.judge.metric, asked.unsplit.value, found.value),
            agreement=found.agreement,
        )

    def _mixed(
        self, trial: Trial, codecs: Sequence[Codec], books: Mapping[BookKey, Book]
    ) -> list[tuple[Codec, ...]]:
        """Return mixed recipes, made from how sensitive each exchange is to each rung of the ladder."""
        values = trial.values()
        rungs = ladder(codecs, values.values())
        if len(rungs) < 2 or len(trial.coded) < 2:
            return []
        errors: dict[tuple[int, Codec], float] = {}
        sizes: dict[tuple[int, Codec], float] = {}
        for exchange, tag in enumerate(trial.exchanges):
            if tag not in trial.coded:
                continue
            self._report.detail(
                f"{trial.sharding.name}: sensitivity of exchange {exchange + 1}/{len(trial.exchanges)}"
            )
            for codec in rungs:
                recipe = [codec if other == tag else PLAIN for other in trial.exchanges]
                asked = self._probed
                verdict = asked.judge.of(trial.answers(PARTS[0], recipe, asked.batches, books))
                errors[exchange, codec] = 1 - verdict.cosine
                widths = [width for (at, _), width in values.items() if at == tag]
                sizes[exchange, codec] = float(sum(codec.row_bytes(width) for width in widths))
                self.sensitivities.append(
                    Sensitivity(
                        sharding=trial.sharding.name,
                        exchange=exchange,
                        codec=str(codec),
                        error=errors[exchange, codec],
                    )
                )
        places = [exchange for exchange, tag in enumerate(trial.exchanges) if tag in trial.coded]
        found = (dict(zip(places, recipe, strict=True)) for recipe in mixed(errors, rungs, sizes))
        return [tuple(each.get(place, PLAIN) for place in range(len(trial.exchanges))) for each in found]

    def _books(self, trial: Trial, rows: Sequence[Rows], codecs: Sequence[Codec]) -> dict[BookKey, Book]:
        """Make and store the codebooks that these codecs need."""
        coded = sorted((codec for codec in codecs if codec.groups), key=lambda codec: codec.stages)
        words = dict.fromkeys(codec.book for codec in coded)
        found: dict[BookKey, Book] = {}
        for number, word in enumerate(words, 1):
            for index, one in enumerate(rows, 1):
                self._report.detail(
                    f"{trial.sharding.name}: codebooks {number}/{len(words)} {word}, {index}/{len(rows)}"
                )
                what = f"{trial.sharding.name}, exchange {one.tag}: tensor {one.tensor}"
                codec = codec_of(word)
                same = found.get((one.tag, one.tensor, replace(codec, stages=1).book))
                first = None if same is None else same.table.reshape(codec.groups, codec.codes, -1)
                found[one.tag, one.tensor, word] = self._book(trial, one, codec, first, what)
        return found

    def _book(self, trial: Trial, one: Rows, codec: Codec, first: Array | None, what: str) -> Book:
        """Make and store a codebook, whose first stage is `first` if that was made before."""
        word = codec.book
        table = self._tables.get((trial.sharding.name, one.tag, one.tensor, word))
        try:
            if table is None:
                table = _kmeans(codec, one.rows, first)
            book = book_of(codec, table)
        except ModelError as error:
            raise ModelError(f"{what}: {error}") from error
        if book.values != one.rows.shape[1]:
            raise ModelError(f"{what}: expected a codebook of {one.rows.shape[1]} values, got {book.values}")
        self.codebooks.append(
            Codebook(
                sharding=trial.sharding.name,
                tag=one.tag,
                tensor=one.tensor,
                codec=word,
                values=book.values,
                source=self._manifest.source_sha256,
                blob=store(np.ascontiguousarray(table, STORED).tobytes(), self._folder),
            )
        )
        return book

    def _asked(self, data: Data, *, truth: bool = True, at_once: int = 0) -> _Asked:
        """Ask the model in one piece; without `truth` only the answers themselves are compared."""
        at_once = at_once or self._at_once
        batches = data.batches(at_once)
        metric = metric_of(data.truth, data.rows) if truth else "cosine"
        judge = Judge(
            metric, self._output(data), [*self._truth(data, at_once)] if truth else [], self._masks(batches)
        )
        answers: list[Answer] = list(self._run(batches))
        if truth and LABELS in data.truth:
            for answer, labels in zip(answers, self._truth(data, at_once), strict=True):
                check_labels(metric, labels, answer[self._output(data)])
        return _Asked(batches=batches, judge=judge, unsplit=judge.unsplit(answers))

    def _output(self, data: Data) -> str:
        return judged_output(metric_of(data.truth, data.rows), self._manifest.outputs)

    def _truth(self, data: Data, at_once: int) -> Iterator[NDArray[np.generic]]:
        """Yield the labels of each batch, or all scores at once."""
        if SCORES in data.truth:
            yield data.truth[SCORES]
        elif LABELS in data.truth:
            for start in range(0, data.rows, at_once):
                yield data.truth[LABELS][start : start + at_once]

    def _masks(self, batches: Sequence[Sample]) -> list[NDArray[np.generic] | None]:
        return [batch.get(MASK) for batch in batches]


def _kmeans(codec: Codec, rows: NDArray[np.float32], first: Array | None) -> NDArray[np.float32]:
    try:
        from shoal.exporter.kmeans import table_of
    except ImportError as error:
        raise ConfigError(
            f"codebooks need scikit-learn: in a clone of shoal, pip install '.[calibrate]' ({error})"
        ) from error
    return table_of(codec, rows, SEED, first=first)
