"""What is made small: labels, and what a teacher answered."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal.errors import ModelError
from shoal.exporter.data import Data
from shoal.records import Array
from shoal.train import unsplit

torch = pytest.importorskip("torch", reason="torch is not installed: make test-train")

from shoal.train.objective import from_labels  # noqa: E402

pytestmark = pytest.mark.train
RANDOM = np.random.default_rng(1)
LOGITS = RANDOM.standard_normal((6, 4)).astype(np.float32)
TEACHER = RANDOM.standard_normal((6, 4)).astype(np.float32)
LABELS = np.array([0, 3, -1, 2, 1, -1])


def slope(taught: float, before: Array, labels: Array = LABELS) -> NDArray[np.float32]:
    logits = torch.from_numpy(LOGITS).requires_grad_()
    from_labels({"logits": logits}, labels, 0.0, {"logits": before}, taught).backward()
    assert logits.grad is not None
    return np.array(logits.grad.numpy(), np.float32)


def test_a_teacher_that_agrees_teaches_nothing() -> None:
    assert np.abs(slope(1.0, LOGITS)).max() < 1e-6
    np.testing.assert_allclose(slope(0.25, LOGITS), 0.75 * slope(0.0, LOGITS), atol=1e-6)


def test_the_slope_leads_to_the_teacher() -> None:
    """Where logits differ by little, it is about that of half the squares of the differences."""
    near = LOGITS + 1e-3 * TEACHER
    moved = slope(1.0, near)
    assert float((moved * (LOGITS - near)).sum()) > 0
    assert np.abs(moved[LABELS < 0]).max() == 0  # what has no label is not taught either


def test_an_output_that_is_no_classification_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected an output \[6, 'classes'\] for labels"):
        from_labels({"hidden": torch.zeros(3, 4)}, LABELS, 0.0, {}, 0.5)


class Counting:
    """A model that doubles, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Sequence[int]] = []

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.asked.append(inputs["x"][:, 0].astype(int).tolist())
        return {"y": inputs["x"] * 2}


@pytest.mark.parametrize("room_bytes", [32, 31])
def test_a_teacher_is_asked_once_where_its_answers_can_be_remembered(
    room_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsplit, "REMEMBERED_BYTES", room_bytes)
    data = Data(inputs={"x": np.arange(8, dtype=np.float32)[:, None]}, truth={}, rows=8)
    model = Counting()
    teacher = unsplit.Unsplit(model, data)  # type: ignore[arg-type]  # all of a session that it needs
    first = teacher.answers(np.array([1, 5]))
    again = teacher.answers(np.array([5, 2, 1]))
    assert first["y"][:, 0].tolist() == [2, 10]
    assert again["y"][:, 0].tolist() == [10, 4, 2]
    assert model.asked == ([[1, 5], [2]] if room_bytes == 32 else [[1, 5], [5, 2, 1]])
