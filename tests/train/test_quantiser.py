"""Codes that follow what they stand for: nearest, straight through, moving, never dead."""

import numpy as np
import pytest
from numpy.typing import NDArray

from shoal import coding
from shoal.book import book_of
from shoal.codec import codec_of

torch = pytest.importorskip("torch", reason="torch is not installed: make test-train")

from shoal.train.quantiser import Quantiser  # noqa: E402

pytestmark = pytest.mark.train
ROWS = np.random.default_rng(1).standard_normal((2, 9, 12)).astype(np.float32)


def books(stages: int = 1, groups: int = 3, codes: int = 8) -> NDArray[np.float32]:
    return np.random.default_rng(2).standard_normal((stages, groups, codes, 12 // groups)).astype(np.float32)


@pytest.mark.parametrize("word", ["vq3x64", "vq2x16x2"])
def test_codes_are_those_that_cross_the_wire(word: str) -> None:
    """Where each is compared; one that is looked up in a grid may be the second nearest (`shoal.search`)."""
    codec = codec_of(word)
    table = books(codec.stages, codec.groups, codec.codes)
    want = np.empty_like(ROWS)
    book = book_of(codec, table)
    coding.decode(codec, coding.encode(codec, ROWS, 1, 0, book), 1, want, 0, book)
    got = Quantiser(table, decay=0.9)(torch.from_numpy(ROWS), 0.0, torch.Generator())
    np.testing.assert_allclose(got.numpy(), want, atol=1e-6)


def test_the_gradient_goes_straight_through() -> None:
    rows = torch.from_numpy(ROWS).requires_grad_()
    quantiser = Quantiser(books(), decay=0.9)
    (quantiser(rows, 1.0, torch.Generator()) * 3).sum().backward()
    assert rows.grad is not None
    assert bool((rows.grad == 3).all())


def test_commitment_draws_rows_to_their_codes() -> None:
    rows = torch.from_numpy(ROWS).requires_grad_()
    quantiser = Quantiser(books(), decay=0.9)
    made = quantiser(rows, 0.0, torch.Generator())
    quantiser.commitment().backward()
    want = 2 * (rows - made).detach() / 18
    np.testing.assert_allclose(rows.grad.numpy(), want.numpy(), atol=1e-6)


def test_codes_come_to_lie_where_rows_are() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 12, generator=random)
    quantiser = Quantiser(books(groups=1, codes=32), decay=0.8)
    for _ in range(60):
        chosen = torch.randint(8, (64,), generator=random)
        quantiser(centres[chosen] + 0.01 * torch.randn(64, 12, generator=random), 0.0, random)
        quantiser.follow(random)
    distances = torch.cdist(centres, torch.from_numpy(quantiser.books()[0, 0])).min(1).values
    assert float(distances.max()) < 0.1


def test_noise_is_like_what_was_lost() -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 12, generator=random) + 1
    quantiser = Quantiser(books() * 0.1, decay=0.5)
    plain = quantiser(rows, 1.0, random)
    quantiser.follow(random)
    table = quantiser.books()
    quantiser = Quantiser(table, decay=0.0)
    quantiser(rows, 1.0, random)
    lost = rows - quantiser(rows, 0.0, random)
    quantiser.follow(random)
    again = Quantiser(quantiser.books(), decay=0.0)
    again.restore(quantiser.state())
    noise = again(rows, 1.0, random) - again(rows, 0.0, random)
    assert plain.shape == noise.shape
    np.testing.assert_allclose(noise.mean(0), lost.mean(0), atol=0.1)
    np.testing.assert_allclose(noise.std(0), lost.std(0), rtol=0.1)


def test_what_is_looked_at_only_moves_nothing() -> None:
    quantiser = Quantiser(books(), decay=0.5)
    before = quantiser.books()
    quantiser(torch.from_numpy(ROWS), 0.0, torch.Generator())
    quantiser.forget()
    quantiser.follow(torch.Generator())
    np.testing.assert_array_equal(quantiser.books(), before)
    assert float(quantiser.commitment()) == 0
