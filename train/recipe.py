"""How a model is trained: the settings, and those of the two published ways.

prism   segment means (arXiv 2507.12145)
astra   codes of vectors, with noise (arXiv 2505.19342)
both    one set of weights for either
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Final

from shoal.codec import Codec, codec_of
from shoal.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained.  Raises ConfigError, with the setting, if one is out of range."""

    codecs: tuple[Codec, ...]
    """How rows cross between boards; each draw is of one of them."""
    boards: tuple[int, int]
    """The fewest and the most boards that are drawn."""
    many: float
    """A number of boards is drawn as often as itself to this power: many lose most, and so learn most."""
    uneven: float
    """The part of the draws in which boards have uneven shares."""
    exact: float
    """The part of the draws in which rows cross as they are, so that the model stays good by itself."""
    steps: int
    batch: int
    """Rows in a step."""
    draws: int
    """So many parts of these are asked of boards, shares and a codec of their own."""
    learning_rate: float
    """The highest; it rises to it in the first tenth of the steps and falls to nothing by a cosine."""
    weight_decay: float
    smoothing: float
    """Of labels: the part of the weight that all classes share."""
    taught: float
    """The part of what is wanted that is what the teacher answers, unsplit, and no label."""
    commitment: float
    """Weight of how far rows are from their codes (ASTRA's beta; 1e-4 to 5e-4 in the paper)."""
    decay: float
    """What codebooks keep of themselves in a step, where moving averages follow the rows."""
    noise: float
    """How much of what codes lose is drawn anew and added to them (ASTRA's lambda), 0 to 1."""
    seed: int

    def __post_init__(self) -> None:
        if not self.codecs:
            raise ConfigError("train: expected one codec or more, got none")
        if not 2 <= self.boards[0] <= self.boards[1]:
            raise ConfigError(f"train: expected 2 boards or more, fewest first, got {self.boards}")
        for name, value in (("steps", self.steps), ("batch", self.batch), ("draws", self.draws)):
            if value < 1:
                raise ConfigError(f"train: expected {name} of 1 or more, got {value}")
        for name in ("uneven", "exact", "smoothing", "taught", "decay", "noise"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"train: expected {name} of 0 to 1, got {value}")
        for name in ("many", "learning_rate", "weight_decay", "commitment"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigError(f"train: expected {name} of 0 or more, got {value}")

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        rise = max(1, self.steps // 10)
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (1 + cos(pi * (step - rise) / max(1, self.steps - rise))) / 2


RECIPES: Final[Mapping[str, tuple[str, ...]]] = {
    "prism": ("means3", "means10"),
    "astra": ("vq8x256", "vq16x256"),
    "both": ("means3", "means10", "vq8x256"),
}
"""What crosses in each of the published ways."""


def codecs_of(recipe: str, words: tuple[str, ...]) -> tuple[Codec, ...]:
    """Return the codecs named `words`, or those of a recipe if there are none.

    Raises ConfigError if a word is no codec.
    """
    try:
        return tuple(codec_of(word) for word in words or RECIPES[recipe])
    except ValueError as error:
        raise ConfigError(f"train: {error}") from error
