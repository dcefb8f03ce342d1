"""`shoal train` from one end to the other: a model gets better at what its boards hand one another."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

from shoal.cli import cli
from shoal.codec import Codec, codec_of
from shoal.errors import ConfigError, ModelError
from shoal.exporter.export import export
from shoal.exporter.learnt import beside, digest_of, read_learnt
from shoal.exporter.prove import Segments
from shoal.exporter.together import play
from shoal.records import Array, BoardId
from shoal.session import open_session
from shoal.sharding import programs
from tests import models

torch = pytest.importorskip("torch", reason="torch is not installed: make test-train")

pytestmark = pytest.mark.train
DATA = Path(__file__).parents[1] / "data"
MODEL = DATA / "vit-fashion-mnist.onnx"
BOARDS = tuple(BoardId(name) for name in "abcd")


def pictures() -> tuple[Array, Array]:
    with np.load(DATA / "fashion-mnist-64.npz") as found:
        return ((found["images"] / 255 - 0.286) / 0.353).astype(np.float32), found["labels"].astype(np.int64)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    images, labels = pictures()
    path = tmp_path / "data.npz"
    np.savez(path, pixel_values=images, labels=labels)
    return path


def trained(model: Path, data: Path, target: Path, *words: str) -> Result:
    found = CliRunner().invoke(cli, ["train", str(model), str(data), "-o", str(target), *words])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


def loss(model: Path, folder: Path, shares: Sequence[float], codec: Codec) -> float:
    """Return the cross-entropy of what the bundle's own programs answer in onnxruntime."""
    manifest = export(model, folder) if not folder.exists() else None
    from shoal.exporter.bundle import read_manifest

    sharding = next(s for s in (manifest or read_manifest(folder)).shardings if s.name == "sequence")
    boards = BOARDS[: len(shares)]
    opened = Segments(folder, {segment.name: segment for segment in sharding.segments})
    images, labels = pictures()
    steps = programs(sharding, boards, boards[0], shares, codec)
    logits = play(steps, boards[0], {"pixel_values": images}, opened)["logits"].astype(np.float64)
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -float(logs[np.arange(len(labels)), labels].mean())


def weights(model: Path) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(model)).graph.initializer}


def test_training_makes_boards_answer_better(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "trained.onnx"
    words = ["--recipe", "prism", "--steps", "40", "--batch", "32", "--boards", "2-4", "--threads", "1"]
    said = trained(MODEL, data, target, *words)
    assert "40 steps, loss" in said.output
    assert not list(tmp_path.glob("*.training"))
    for shares in ((0.5, 0.5), (0.4, 0.1, 0.3, 0.2)):
        before = loss(MODEL, tmp_path / "before", shares, codec_of("means10"))
        after = loss(target, tmp_path / "after", shares, codec_of("means10"))
        assert after < 0.8 * before
    assert open_session(target).inputs == open_session(MODEL).inputs


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    from shoal.train import run

    words = ["--codec", "vq8x16", "--codec", "means4", "--steps", "6", "--batch", "16", "--threads", "1"]
    words += ["--save-every", "2", "--boards", "2-3"]
    trained(MODEL, data, tmp_path / "straight.onnx", *words)

    class Stop(Exception):  # noqa: N818  not an error
        pass

    steps, real = [], run._steps

    def stopping(*given: object) -> list[float]:
        *others, report = given

        def tell(step: int, loss: float) -> None:
            steps.append(step)
            if step == 3:
                raise Stop
            report(step, loss)  # type: ignore[operator]

        return real(*others, tell)  # type: ignore[arg-type, call-arg]

    target = tmp_path / "resumed.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_steps", stopping)
        with pytest.raises(Stop):
            trained(MODEL, data, target, *words)
    assert not target.exists()
    trained(MODEL, data, target, *words, "--resume")
    assert steps == [1, 2, 3]
    straight, resumed = weights(tmp_path / "straight.onnx"), weights(target)
    for name, array in straight.items():
        np.testing.assert_array_equal(resumed[name], array)
    assert any(not np.array_equal(array, weights(MODEL)[name]) for name, array in straight.items())
    sources = [digest_of(path) for path in (tmp_path / "straight.onnx", target)]
    learnt = [
        read_learnt(beside(p), s) for p, s in zip((tmp_path / "straight.onnx", target), sources, strict=True)
    ]
    assert learnt[0].keys() == learnt[1].keys()
    assert len(learnt[0]) == 12
    for place, book in learnt[0].items():
        np.testing.assert_array_equal(learnt[1][place], book)


def test_without_labels_it_learns_to_answer_as_it_did(tmp_path: Path) -> None:
    model, target = tmp_path / "bert.onnx", tmp_path / "trained.onnx"
    model.write_bytes(models.tiny_bert().SerializeToString())
    ids = np.random.default_rng(1).integers(0, 100, (64, 12))
    data = tmp_path / "data.npz"
    np.savez(data, input_ids=ids, attention_mask=np.ones((64, 12), np.int64))
    words = ["--codec", "means4", "--steps", "60", "--batch", "32", "--learning-rate", "1e-3"]
    said = trained(model, data, target, *words, "--threads", "1")
    first, last = said.output.split("loss ")[-1].split()[0], said.output.split("to ")[-1].split()[0]
    assert float(last) < 0.8 * float(first)


def test_what_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "trained.onnx"
    with pytest.raises(
        ConfigError, match=r"trained.onnx.training: expected a training to go on with, found none"
    ):
        trained(MODEL, data, target, "--resume")
    with pytest.raises(ConfigError, match=r"expected a codec .*got 'zip'"):
        trained(MODEL, data, target, "--codec", "zip")
    with pytest.raises(ConfigError, match=r"--codec vq7x16: expected groups that divide the 64 values"):
        trained(MODEL, data, target, "--codec", "vq7x16")
    target.with_name("trained.onnx.training").write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"trained.onnx.training: expected a training to go on with, got"):
        trained(MODEL, data, target, "--resume")
    target.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"trained.onnx: expected a free name, or --force"):
        trained(MODEL, data, target)
    undivided = tmp_path / "cnn.onnx"
    undivided.write_bytes(models.tiny_cnn().SerializeToString())
    images = tmp_path / "images.npz"
    np.savez(images, image=np.zeros((40, 3, 16, 16), np.float32))
    with pytest.raises(ModelError, match=r"cnn.onnx: cannot divide its tokens: "):
        trained(undivided, images, tmp_path / "other.onnx")
