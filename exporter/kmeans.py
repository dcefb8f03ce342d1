"""Makes codebooks from rows, by k-means: the only module that knows scikit-learn."""

import warnings
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from shoal.codec import Codec
from shoal.errors import ModelError
from shoal.exporter.recipes import ROWS_A_CODE
from shoal.records import Array
from shoal.search import Floats

ENOUGH: Final = 24
"""So many rows for each code are taken, at even distances, where there are more."""
LEAST_ROWS: Final = 4096
"""But never fewer than these."""
SEEDING: Final = 4
LEAST_SEEDING: Final = 1024
"""Among so many rows for each code, but no fewer than these, k-means++ chooses where to begin."""
STEPS: Final = 8
"""Of Lloyd's algorithm: what later ones gain cannot be told from the answers."""
ROUNDS: Final = 3
"""So many times codes that no row takes are put where rows are that none is near to."""
MOST_DEAD: Final = 0.05
"""A larger part of the codes that no row takes after that is an error."""


def table_of(
    codec: Codec,
    rows: Array,
    seed: int,
    told: Callable[[], None] = lambda: None,
    first: Array | None = None,
) -> NDArray[np.float32]:
    """Return vectors for the codes of `rows`, [rows, values]: float32 [stages, groups, codes, width].

    `told` is called after each group of each stage.  The first stage is `first`, [groups, codes, width], if
    that was made before.  Raises ModelError if there are too few rows, if a number of them is not finite, or
    if codes stay without rows although there are enough different ones.
    """
    count, values = rows.shape
    if count < ROWS_A_CODE * codec.codes:
        raise ModelError(
            f"{codec.book}: expected {ROWS_A_CODE * codec.codes} rows or more for {codec.codes} codes, got "
            f"{count}"
        )
    if not np.isfinite(rows).all():
        raise ModelError(f"{codec.book}: expected finite numbers, got NaN or infinity in {count} rows")
    random = np.random.default_rng(seed)
    wanted = max(LEAST_ROWS, ENOUGH * codec.codes)
    taken = np.sort(random.permutation(count)[:wanted])
    width = values // codec.groups
    left = np.array(rows[taken], np.float32).reshape(len(taken), codec.groups, width)
    table = np.empty((codec.stages, codec.groups, codec.codes, width), np.float32)
    with threadpool_limits(1), warnings.catch_warnings():  # steps are so short that threads cost more
        warnings.simplefilter("ignore", ConvergenceWarning)  # dead codes are looked for below
        for stage in range(codec.stages):
            for group in range(codec.groups):
                piece = np.ascontiguousarray(left[:, group])
                if first is not None and stage == 0:
                    table[stage, group] = first[group]
                else:
                    table[stage, group] = _vectors(piece, codec.codes, random)
                if stage + 1 < codec.stages:
                    vectors = table[stage, group]
                    left[:, group] -= vectors[_nearest(piece, vectors)]
                told()
    return table


def _vectors(piece: Floats, codes: int, random: np.random.Generator) -> Floats:
    """Return `codes` vectors near to those of `piece`, [rows, width]."""
    if _kinds(piece, random) <= codes:
        different = np.unique(piece, axis=0)  # each has a code; what is left over repeats the last
        return np.concatenate((different, np.repeat(different[-1:], codes - len(different), axis=0)))
    some = piece[random.permutation(len(piece))[: max(LEAST_SEEDING, SEEDING * codes)]]
    start, _ = kmeans_plusplus(some, codes, random_state=int(random.integers(1 << 31)))
    means = KMeans(codes, init=start, n_init=1, max_iter=STEPS, tol=0)
    vectors = np.asarray(means.fit(piece).cluster_centers_, np.float32)
    for _ in range(ROUNDS):
        taken = _nearest(piece, vectors)
        dead = np.flatnonzero(np.bincount(taken, minlength=codes) == 0)
        if not len(dead):
            return vectors
        apart = ((piece - vectors[taken]) ** 2).sum(axis=1)
        vectors[dead] = piece[np.argsort(-apart, kind="stable")[: len(dead)]]
    dead_now = codes - len(np.unique(_nearest(piece, vectors)))
    if dead_now > MOST_DEAD * codes:
        raise ModelError(f"expected rows for {codes} codes, got none for {dead_now} of them: give more data")
    return vectors


def _kinds(piece: Floats, random: np.random.Generator) -> int:
    """Return how many different rows there are; by a number for each, which is quicker to sort than a row."""
    return len(np.unique(piece.astype(np.float64) @ random.standard_normal(piece.shape[1])))


def _nearest(piece: Floats, vectors: Floats) -> NDArray[np.intp]:
    """Return which vector is nearest to each row."""
    scores = (vectors**2).sum(axis=1) / 2 - piece @ vectors.T
    found: NDArray[np.intp] = np.argmin(scores, axis=1)
    return found
