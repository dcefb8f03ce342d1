"""What a model answers in one piece, untrained: what is taught besides labels, or where there are none."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shoal.exporter.data import Data
from shoal.records import Array
from shoal.session import Session

REMEMBERED_BYTES: Final = 1 << 28
"""Answers to all rows are remembered if they take no more."""


class Unsplit:
    """A model in one piece and the data that it is asked."""

    def __init__(self, session: Session, data: Data) -> None:
        """Take a session of the model, which has to answer row by row."""
        self._session, self._data = session, data
        self._known: NDArray[np.bool_] = np.zeros(data.rows, np.bool_)
        self._remembered: dict[str, Array] | None = None

    def answers(self, rows: NDArray[np.intp]) -> dict[str, Array]:
        """Return the outputs for these rows of the data, stacked along the batch."""
        unknown = rows[~self._known[rows]]
        if not len(unknown):
            assert self._remembered is not None
            return {name: array[rows] for name, array in self._remembered.items()}
        made = self._session.run(self._data.some(unknown).inputs)
        if self._remembered is None:
            sizes = [array.nbytes for array in made.values()]
            if sum(sizes) * self._data.rows > REMEMBERED_BYTES * len(unknown):
                return made
            many = self._data.rows
            self._remembered = {
                name: np.empty((many, *array.shape[1:]), array.dtype) for name, array in made.items()
            }
        for name, array in made.items():
            self._remembered[name][unknown] = array
        self._known[unknown] = True
        return {name: array[rows] for name, array in self._remembered.items()}
