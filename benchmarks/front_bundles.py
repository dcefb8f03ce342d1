"""Bundles of the two models of `benchmarks.front`, with codebooks for all the codecs that are tried.

The small vision transformer has those of `benchmarks.accuracy`: k-means of what boards hand one another of
1,000 training pictures.  The large one has random weights and random vectors for its codes: how fast a codec
is does not depend on them, and of its accuracy nothing is said.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks import speedup
from benchmarks.accuracy import CODED, SMALL
from benchmarks.datasets import fashion
from shoal.codebooks import STORED, read_book, wanted
from shoal.codec import Codec, codec_of
from shoal.collective import Books
from shoal.exporter.bundle import MANIFEST, read_manifest, store, write_manifest
from shoal.exporter.export import export
from shoal.exporter.kmeans import table_of
from shoal.exporter.trial import Trial
from shoal.manifest import Manifest
from shoal.measured import Codebook
from shoal.program import Program

BUILD: Final = Path(__file__).parents[1] / "build" / "front"
LEARNT_FROM: Final = 1000
"""Training pictures, asked so many at once:"""
AT_ONCE: Final = 250

Tables = Callable[[int, str, Codec, int], NDArray[np.float32]]
"""From tag, tensor, codec and the values of a row to vectors [stages, groups, codes, width]."""


def small(words: Sequence[str]) -> Path:
    """Return the bundle of the vision transformer.  Raises ConfigError if its pictures are not installed."""
    folder = BUILD / "vit-fashion-mnist"
    if not (folder / MANIFEST).exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        export(SMALL, folder, force=True)
    manifest = read_manifest(folder)
    trial = Trial(manifest, folder, next(s for s in manifest.shardings if s.name == "sequence"))
    pictures = fashion("train").pixels[:LEARNT_FROM]
    batches = [{"pixel_values": pictures[at : at + AT_ONCE]} for at in range(0, LEARNT_FROM, AT_ONCE)]
    rows = {(one.tag, one.tensor): one.rows for one in trial.handed(batches, CODED, 0)[0]}

    def made(tag: int, tensor: str, codec: Codec, _values: int) -> NDArray[np.float32]:
        return table_of(codec, rows[tag, tensor], 0)

    return with_books(folder, {"sequence": words}, made)


def large(words: Mapping[str, Sequence[str]]) -> Path:
    """Return the bundle of the shape of ViT-B; `words` are codecs by sharding."""
    folder = BUILD / "large"
    if not (folder / "bundle" / MANIFEST).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        speedup.made(folder)
    chance = np.random.default_rng(0)

    def drawn(_tag: int, _tensor: str, codec: Codec, values: int) -> NDArray[np.float32]:
        shape = (codec.stages, codec.groups, codec.codes, values // codec.groups)
        return chance.standard_normal(shape, np.float32)

    return with_books(folder / "bundle", words, drawn)


def with_books(bundle: Path, words: Mapping[str, Sequence[str]], tables: Tables) -> Path:
    """Return a copy of a bundle that has codebooks for these codecs, which is made if it is not there."""
    manifest = read_manifest(bundle)
    codecs = {name: dict.fromkeys(codec_of(each).book for each in some) for name, some in words.items()}
    needed = {(name, word) for name, some in codecs.items() for word in some if word}
    copy = bundle.with_name(f"{bundle.name}-coded")
    if (copy / MANIFEST).exists():
        found = read_manifest(copy)
        if needed <= {(book.sharding, book.codec) for book in found.codebooks}:
            return copy
        shutil.rmtree(copy)
    shutil.copytree(bundle, copy, copy_function=os.link)
    books = []
    for sharding in manifest.shardings:
        chosen = sorted(word for name, word in needed if name == sharding.name)
        values = Trial(manifest, bundle, sharding).values() if chosen else {}
        for (tag, tensor), width in values.items():
            for word in chosen:
                table = tables(tag, tensor, codec_of(word), width)
                books.append(
                    Codebook(
                        sharding=sharding.name,
                        tag=tag,
                        tensor=tensor,
                        codec=word,
                        values=width,
                        source=manifest.source_sha256,
                        blob=store(np.ascontiguousarray(table, STORED).tobytes(), copy),
                    )
                )
    (copy / MANIFEST).unlink()  # it is the same file as the other bundle's
    write_manifest(replace(manifest, codebooks=tuple(books)), copy)
    return copy


def books_of(bundle: Path, manifest: Manifest, program: Program) -> dict[int, Books]:
    """Return the codebooks of a program, by the tag of the exchange."""
    return {
        tag: {
            tensor: read_book(record, (bundle / "blobs" / record.blob.sha256).read_bytes())
            for tensor, record in by_tensor.items()
        }
        for tag, by_tensor in wanted(manifest, program).items()
    }
