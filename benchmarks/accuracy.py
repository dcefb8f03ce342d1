"""What it costs in accuracy that boards hand one another less than they have, before and after training.

    python -m benchmarks.accuracy train [--steps N]      fine-tunes the vision transformer, to build/accuracy:
                                                         three quarters of an hour of one core
    python -m benchmarks.accuracy measure [--samples N]  fills benchmarks/results/accuracy.json
    python -m benchmarks.accuracy late [--samples N]     fills benchmarks/results/late.json
    python -m benchmarks.accuracy page                   writes docs/accuracy.md from that

Every value is what the bundle's own programs answer, with shoal's codecs and onnxruntime, all boards in one
process.  The models and data are those of `benchmarks.datasets`; what is not installed is named and left
out.  Both of the first two go on where they were stopped.  Nothing here is timed.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import click
import numpy as np

from benchmarks import accuracy_page
from benchmarks.datasets import Pictures, fashion
from benchmarks.record import RESULTS, write
from benchmarks.subjects import BUILD, Subject, saliency, sentences, texts
from shoal.book import Book, book_of
from shoal.codec import Codec, codec_of
from shoal.errors import ShoalError
from shoal.exporter.bundle import read_manifest
from shoal.exporter.kmeans import table_of
from shoal.exporter.learnt import beside, read_learnt
from shoal.exporter.trial import BookKey, Parts, Rows, Trial
from shoal.measured import NONE
from shoal.records import Array

SMALL = Path(__file__).parents[1] / "tests" / "data" / "vit-fashion-mnist.onnx"
TUNED = BUILD / "vit-fashion-mnist-tuned.onnx"
PARTS = (2, 4, 8)
UNEVEN: Mapping[str, Sequence[float]] = {"3:1": (0.75, 0.25), "4:2:1:1": (0.5, 0.25, 0.125, 0.125)}
"""Shares that are no equal ones, by the words of their rows."""
CODECS = (
    NONE, "f32", "f16", "i8", "i4",
    "means2", "means3", "means4", "means8", "means10", "means32",
    "vq4x256", "vq8x256", "vq16x256", "means3-i8", "vq8x256-keep1.0", "vq32x16", "vq16x16",
    "means3-keep1.0", "means10-keep1.0", "means4-vq8x256", "means10-vq8x256",
)  # fmt: skip
FIRST = (NONE, "means3", "means10", "vq8x256", "i8", "i4", "vq16x256")
"""Measured before the others."""
HIDDEN = ("i8", "i4", "means3", "means10", "vq8x256")
WIDE = (
    NONE, "f16", "i8", "i4", "means3", "means10",
    "vq192x16", "vq96x16", "vq48x256", "vq96x256", "vq96x256-keep1.0",
)  # fmt: skip
"""For rows of 384 values."""
CODED = 12_000
"""Rows at each exchange from which codebooks are made, about."""
BATCH = 250
LATE = (0.0, 0.01, 0.05, 0.1)
"""Parts of the messages that are late."""
AT_ONCE = 20
"""Pictures that are asked together, of which the same messages are late."""


class Divided:
    """A subject among boards that gather at one point."""

    def __init__(self, subject: Subject, point: str) -> None:
        manifest = read_manifest(subject.bundle)
        found = next(s for s in manifest.shardings if s.strategy == "sequence" and s.point == point)
        self._subject, self._source = subject, manifest.source_sha256
        self._trial = Trial(manifest, subject.bundle, found)
        self._tables: dict[BookKey, Array] = {}
        learnt = beside(subject.model)
        if learnt.exists():
            for place, table in read_learnt(learnt, self._source).items():
                if place.sharding == found.name:
                    self._tables[place[1:]] = table

    def value(self, parts: Parts, word: str) -> float:
        """Return what the answers are worth when rows cross in a codec, or not at all."""
        if word == NONE:
            return self._subject.value(self._trial.alone(parts, self._subject.inputs))
        codec = codec_of(word)
        return self._subject.value(
            self._trial.answers(parts, codec, self._subject.inputs, self._books(codec))
        )

    def hurried(self, parts: int, share: float) -> float:
        """Return what the answers are worth if this share of the messages is late; rows cross as they are."""
        random = np.random.default_rng([parts, round(1000 * share)])
        answers = self._trial.hurried(parts, self._subject.inputs, lambda *_: random.random() < share)
        return self._subject.value(answers)

    def bytes_per_token(self, parts: Parts, word: str) -> float:
        """Return the bytes that a board's token takes to each peer in one exchange, on the average."""
        if word == NONE:
            return 0.0
        codecs = (codec_of(word),) * len(self._trial.exchanges)
        return self._trial.bytes_per_token(parts, codecs, self._handed[1])

    def _books(self, codec: Codec) -> dict[BookKey, Book]:
        if not codec.book:
            return {}
        found: dict[BookKey, Book] = {}
        for one in self._handed[0]:
            key = (one.tag, one.tensor, codec.book)
            if key not in self._tables:
                self._tables[key] = table_of(codec, one.rows, 0)
            found[key] = book_of(codec, self._tables[key])
        return found

    @cached_property
    def _handed(self) -> tuple[list[Rows], int]:
        """Return rows of what boards hand one another, and how many tokens there are."""
        return self._trial.handed(self._subject.background, CODED, 0)


def pictures(finetuned: bool, samples: int, at_once: int = BATCH) -> Subject:
    """Return the vision transformer and pictures of Fashion-MNIST."""
    test, train = fashion("t10k"), fashion("train")

    def right(answers: Sequence[Mapping[str, Array]]) -> float:
        chosen = np.concatenate([answer["logits"].argmax(1) for answer in answers])
        return float((chosen == test.labels[:samples]).mean())

    return Subject(
        name="vit-fashion-mnist",
        finetuned=finetuned,
        model=TUNED if finetuned else SMALL,
        metric="top1",
        inputs=_batches(test, samples, at_once),
        background=_batches(train, 1000, BATCH),
        value=right,
    )


def _batches(given: Pictures, samples: int, at_once: int) -> list[dict[str, Array]]:
    starts = range(0, samples, at_once)
    return [{"pixel_values": given.pixels[start : min(start + at_once, samples)]} for start in starts]


@click.group()
def main() -> None:
    """Measure what less exchange costs in accuracy."""


@main.command()
@click.option("--steps", default=10_000)
@click.option("--batch", default=128)
@click.option("--learning-rate", default=1e-3)
@click.option("--again", is_flag=True, help="Go on from what was trained before.")
@click.argument("more", nargs=-1)
def train(steps: int, batch: int, learning_rate: float, again: bool, more: tuple[str, ...]) -> None:
    """Fine-tune the vision transformer; MORE goes to shoal train as it is."""
    from shoal.cli import cli

    BUILD.mkdir(parents=True, exist_ok=True)
    data, given = BUILD / "train.npz", fashion("train")
    if not data.exists():
        both = np.concatenate([given.pixels, given.pixels[:, :, :, ::-1]])  # mirrored too, as it was trained
        np.savez(data, pixel_values=both, labels=np.concatenate([given.labels, given.labels]))
    model = TUNED if again else SMALL
    words = ["train", str(model), str(data), "-o", str(TUNED), "--steps", str(steps), "--batch", str(batch)]
    words += ["--learning-rate", str(learning_rate), "--teacher", str(SMALL), "--recipe", "prism"]
    words += ["--draws", "4", "--uneven", "0.3", "--threads", "1", "--force", *more]
    if TUNED.with_name(f"{TUNED.name}.training").exists():
        words.append("--resume")
    cli(words, standalone_mode=False)
    shutil.rmtree(BUILD / f"{TUNED.stem}.bundle", ignore_errors=True)


@main.command()
@click.option("--samples", default=10_000, help="Pictures to judge by.")
@click.option(
    "--only", default="", help="Rows of which 'MODEL plain|trained PARTS CODEC' has this regular expression."
)
def measure(samples: int, only: str) -> None:
    """Measure all that was not measured yet, or on fewer pictures."""
    file = RESULTS / "accuracy.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    done = {_key(row): row for row in rows}
    subjects: list[Callable[[], Subject]] = [partial(pictures, each, samples) for each in (False, True)]
    for make in (*subjects, texts, sentences, saliency):
        try:
            subject = make()
            state = "trained" if subject.finetuned else "plain"
            cells = _cells(subject)
            for point, parts, shares, word in cells:
                row = {
                    "model": subject.name,
                    "point": point,
                    "parts": parts,
                    "shares": shares,
                    "codec": word,
                    "finetuned": subject.finetuned,
                }
                enough = min(samples, subject.samples)
                known = done.get(_key(row), {"samples": 0})["samples"] >= enough
                if not known and re.search(only, f"{subject.name} {state} {parts} {word}"):
                    done[_key(row)] = row | measured(subject, point, shares, parts, word)
                    print(json.dumps(done[_key(row)]), flush=True)
                    write("accuracy", list(done.values()))
        except ShoalError as error:
            print(f"left out: {error}", flush=True)


@main.command()
@click.option("--samples", default=10_000, help="Pictures to judge by.")
def late(samples: int) -> None:
    """Measure answers without rows that are late: each message by itself with the same chance."""
    rows = []
    for finetuned in (False, True):
        subject = pictures(finetuned, samples, at_once=AT_ONCE)
        divided = Divided(subject, "kv")
        for parts, share in product(PARTS, LATE):
            rows.append(
                {
                    "model": subject.name,
                    "finetuned": finetuned,
                    "parts": parts,
                    "late": share,
                    "metric": subject.metric,
                    "value": divided.hurried(parts, share),
                    "unsplit": subject.unsplit,
                    "samples": samples,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            write("late", rows)


_DIVIDED: dict[tuple[str, str], Divided] = {}


def measured(subject: Subject, point: str, shares: str, parts: int, word: str) -> dict[str, object]:
    """Return what there is to say of one way to exchange."""
    key = (subject.model.stem, point)
    if key not in _DIVIDED:
        _DIVIDED[key] = Divided(subject, point)
    divided, each = _DIVIDED[key], UNEVEN.get(shares, parts)
    return {
        "bytes_per_token_layer": divided.bytes_per_token(each, word),
        "part_of_f32": divided.bytes_per_token(each, word) / divided.bytes_per_token(each, "f32"),
        "metric": subject.metric,
        "value": divided.value(each, word),
        "unsplit": subject.unsplit,
        "samples": subject.samples,
    }


def _key(row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("model", "point", "parts", "shares", "codec", "finetuned"))


def _cells(subject: Subject) -> list[tuple[str, int, str, str]]:
    """Return point, parts, shares and codec of each row, those that matter most first."""
    if subject.metric != "top1":
        return [("kv", parts, "equal", word) for parts in PARTS for word in WIDE]
    less = [word for word in CODECS if word not in FIRST]
    found = [("kv", parts, "equal", word) for some in (FIRST, less) for parts in PARTS for word in some]
    words = ("means3", "means10", "vq8x256")
    found += [("kv", len(shares), name, word) for name, shares in UNEVEN.items() for word in words]
    found += [("kv", parts, "equal", word) for parts in (3, 5, 6, 7) for word in words]
    return found + [("hidden", 2, "equal", word) for word in HIDDEN]


main.add_command(click.Command("page", callback=accuracy_page.main))

if __name__ == "__main__":
    main()
