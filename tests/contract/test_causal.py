"""Causal prefill over real sockets: a board waits for those before it, and hands those before it nothing."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from shoal.codec import codec_of
from shoal.exporter.export import export
from shoal.frames import Kind
from shoal.manifest import Manifest
from shoal.program import Collective
from shoal.records import BoardId
from shoal.session import open_session
from shoal.sharding import programs
from shoal.store import Store
from tests.connections import Counted, Sent
from tests.contract.conftest import TOKENS
from tests.contract.test_shardings import Cluster
from tests.unit.test_exporter_shardings import Style, Writer

Bundled = tuple[Path, Path, Manifest]
BOARDS = tuple(BoardId(name) for name in ("a", "b", "c"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundled]:
    """Export a decoder that gives the logits of all tokens or of the last one, once."""

    @cache
    def write(answers: str) -> Bundled:
        folder = tmp_path_factory.mktemp("causal")
        style = Style(
            causal=True,
            rotary=True,
            kv_heads=2,
            norm="rms",
            bias=False,
            picks=-1 if answers == "last token" else (),
        )
        onnx.save(Writer(style).model(), folder / "model.onnx")
        manifest = export(folder / "model.onnx", folder / "bundle", sizes={"tokens": TOKENS})
        store = Store(folder / "depot")
        for path in (*(folder / "bundle").glob("*.onnx"), *(folder / "bundle" / "blobs").iterdir()):
            store.put(path.read_bytes())
        return folder / "model.onnx", folder / "depot", manifest

    return write


@pytest.mark.parametrize(
    ("answers", "name", "words", "lead", "within"),
    [
        ("all tokens", "sequence", "f32", 0, 1e-5),
        ("all tokens", "sequence", "i8", 1, 3e-2),
        ("all tokens", "sequence-hidden", "f16", 2, 3e-3),
        ("all tokens", "tensor", "i8", 1, 3e-2),
        ("last token", "sequence", "f32", 1, 1e-5),
        ("last token", "sequence", "i8", 0, 3e-2),
        ("last token", "sequence", "means1.0001", 2, 1e-5),
    ],
)
def test_a_decoder_is_divided_over_sockets(
    answers: str,
    name: str,
    words: str,
    lead: int,
    within: float,
    written: Callable[[str], Bundled],
    tmp_path: Path,
) -> None:
    model, depot, manifest = written(answers)
    sharding = next(each for each in manifest.shardings if each.name == name)
    shares = (0.5, 0.2, 0.3) if sharding.strategy == "sequence" else (0.5, 0.25, 0.25)
    told = programs(sharding, BOARDS, BOARDS[lead], shares, codec_of(words))
    told = {BOARDS[lead]: told[BOARDS[lead]], **told}  # the cluster's lead is its first
    found: list[Sent] = []
    cluster = Cluster(tmp_path, depot, manifest, told, lambda board: partial(Counted, found, board))
    original = open_session(model)
    try:
        for batch, tokens in ((1, 23), (3, 17)):
            ids = np.random.default_rng(tokens).integers(0, 50, (batch, tokens))
            want = original.run({"input_ids": ids})["logits"]
            got = cluster.ask({"input_ids": ids}, ["logits"])["logits"]
            assert got.shape == want.shape
            assert np.abs(np.subtract(got, want)).max() <= within * np.abs(want).max()
        assert cluster.settled()
    finally:
        cluster.stop()
    steps = [step for step in told[BOARDS[lead]].steps if isinstance(step, Collective)]
    assert any(step.causal for step in steps) == (sharding.strategy == "sequence")
    assert handed(found, steps, causal=True) <= {("a", "b"), ("a", "c"), ("b", "c")}
    if sharding.strategy == "sequence":
        assert handed(found, steps, causal=True) == {("a", "b"), ("a", "c"), ("b", "c")}
        assert all(BOARDS[lead] in way for way in handed(found, steps, causal=False))


def handed(
    found: Sequence[Sent], steps: Sequence[Collective], *, causal: bool
) -> set[tuple[str, str | None]]:
    """Return who sent whom tensors in the exchanges that are causal, or in all others."""
    tags = {step.tag for step in steps if step.causal == causal}
    return {sent.way for sent in found if sent.header.kind is Kind.TENSORS and sent.header.tag in tags}
