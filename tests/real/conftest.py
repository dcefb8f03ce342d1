"""Real processes: a broker, a coordinator, boards, and a small trained ViT with real pictures."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shoal.coordinator.broker import Kind, find_mosquitto
from shoal.coordinator.cost import memory_bytes
from shoal.exporter.bundle import write_manifest
from shoal.exporter.cuts import MAX_SEGMENTS
from shoal.exporter.export import export
from shoal.lab.processes import Cluster
from shoal.manifest import WHOLE, Manifest
from shoal.records import BoardId
from shoal.session import open_session
from tests.real.client import MODEL, Pictures, Trial, slow_board

DATA = Path(__file__).parents[1] / "data"
BOARDS = tuple(BoardId(f"board-{number}") for number in (1, 2, 3))
WHOLE_S = 0.1
"""What all segments together take: so long that clients who ask without pause leave the machine idle."""


def exported(folder: Path, max_segments: int = MAX_SEGMENTS) -> Manifest:
    """Export the model so that boards can share it by segments, and in no other way.

    What would be quickest else depends on the machine, and its boards have much more to time.
    """
    made = export(DATA / "vit-fashion-mnist.onnx", folder, name=MODEL, max_segments=max_segments)
    plain = replace(made, shardings=())
    write_manifest(plain, folder)
    return plain


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("bundle") / "vit"
    return folder, exported(folder)


@pytest.fixture(scope="session")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in one segment: it can be replicated, and nothing else."""
    folder = tmp_path_factory.mktemp("undivided") / "vit"
    exported(folder, max_segments=1)
    return folder


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    """Sixteen pictures of the test set, and what the unsplit model says of them."""
    with np.load(DATA / "fashion-mnist-64.npz") as found:
        images, labels = found["images"][:16], found["labels"][:16]
    inputs = [((image[None] / 255 - 0.286) / 0.353).astype(np.float32) for image in images]
    session = open_session(DATA / "vit-fashion-mnist.onnx")
    expected = [session.run({"pixel_values": picture}) for picture in inputs]
    right = sum(int(e["logits"].argmax() == label) for e, label in zip(expected, labels, strict=True))
    assert right >= 12, "the model of the tests no longer knows its pictures"
    return Pictures(inputs=[{"pixel_values": picture} for picture in inputs], expected=expected)


@pytest.fixture(scope="session")
def budget(bundle: tuple[Path, Manifest]) -> int:
    """Memory that holds a part of the model but not all of it."""
    return int(0.7 * memory_bytes(bundle[1], (WHOLE,)))


def installed(kind: Kind) -> None:
    if kind == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")


@pytest.fixture(scope="module", params=["mosquitto", "embedded"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    installed(found)
    return found


@pytest.fixture(scope="module")
def trial(
    kind: Kind,
    tmp_path_factory: pytest.TempPathFactory,
    bundle: tuple[Path, Manifest],
    pictures: Pictures,
    budget: int,
) -> Iterator[Trial]:
    """Three boards that together hold the model, which is deployed; no board holds it alone."""
    folder = tmp_path_factory.mktemp(f"cluster-{kind}")
    slow = slow_board(folder / "slow.json", bundle[0], WHOLE_S)
    with Cluster(folder, kind, margin=0.9) as cluster:  # the noise of a test machine switches nothing
        found = Trial(
            cluster=cluster,
            bundle=bundle[0],
            pictures=pictures,
            budget=budget,
            boards=BOARDS,
            emulation=slow,
        )
        found.start()
        found.deploy("latency")
        yield found
