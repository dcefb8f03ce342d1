"""What is played in training: how many boards, what share each has, what crosses, and which rows are asked.

All of it follows from the seed and a number, so training goes on where it was stopped.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.codec import PLAIN, Codec
from shoal.train.recipe import Recipe

LEAST_SHARE = 0.25
"""The smallest share that is drawn, as a part of an even one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Boards with these shares of the rows hand one another rows in this codec."""

    shares: tuple[float, ...]
    codec: Codec


def draw(recipe: Recipe, number: int, units: int) -> Draw:
    """Return draw `number` for a model that has `units` rows to divide.

    No more boards are drawn than there are units.
    """
    random = np.random.default_rng([recipe.seed, 1, number])
    fewest, most = (min(boards, units) for boards in recipe.boards)
    counts = np.arange(fewest, most + 1)
    often = (counts / most) ** recipe.many
    count = int(random.choice(counts, p=often / often.sum()))
    shares = np.full(count, 1 / count)
    if random.random() < recipe.uneven:
        free = random.dirichlet(np.ones(count)) * (1 - LEAST_SHARE)
        shares = free + LEAST_SHARE / count
    exact = random.random() < recipe.exact
    codec = PLAIN if exact else recipe.codecs[int(random.integers(len(recipe.codecs)))]
    return Draw(shares=tuple(float(share) for share in shares / shares.sum()), codec=codec)


def rows_of(recipe: Recipe, step: int, rows: int) -> NDArray[np.intp]:
    """Return which of `rows` rows of data are asked in `step`.

    Each pass takes every row once, in an order of its own; a last batch that is not full is left out.
    """
    batch = min(recipe.batch, rows)
    per_pass = rows // batch
    turn, place = divmod(step, per_pass)
    order = np.random.default_rng([recipe.seed, 2, turn]).permutation(rows).astype(np.intp)
    return order[place * batch : (place + 1) * batch]
