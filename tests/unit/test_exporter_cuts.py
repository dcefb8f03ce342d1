"""Where graphs of known families are cut."""

from collections.abc import Sequence

import pytest

from shoal.exporter.cuts import Costs, choose_cuts, pieces
from shoal.exporter.graph import Graph, each


class Sketch:
    """A graph drawn node by node; each method returns the name of the tensor that its node makes."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.inputs: list[str] = []
        self.reads: list[tuple[str, ...]] = []
        self.makes: list[tuple[str, ...]] = []
        self.flops: list[int] = []
        self.weights: list[int] = []

    def input(self, name: str, size: int) -> str:
        self.inputs.append(name)
        self.sizes[name] = size
        return name

    def node(self, name: str, *reads: str, size: int, flops: int = 0, weights: int = 0) -> str:
        self.reads.append(reads)
        self.makes.append((name,))
        self.sizes[name] = size
        self.flops.append(flops or size)
        self.weights.append(weights)
        return name

    def block(self, name: str, x: str, tokens: int, hidden: int) -> str:
        """Add a pre-norm Transformer block, whose ends are `NAME.attended` and `NAME`."""
        wide = tokens * hidden
        square = {"flops": 2 * wide * hidden, "weights": hidden * hidden}
        h = self.node(f"{name}.norm", x, size=wide)
        q, k, v = (self.node(f"{name}.{part}", h, size=wide, **square) for part in "qkv")
        scores = self.node(f"{name}.scores", q, k, size=4 * tokens**2, flops=2 * tokens * wide)
        mixed = self.node(f"{name}.mixed", scores, v, size=wide, flops=2 * tokens * wide)
        x = self.node(f"{name}.attended", x, self.node(f"{name}.o", mixed, size=wide, **square), size=wide)
        h = self.node(f"{name}.norm2", x, size=wide)
        large = {"flops": 8 * wide * hidden, "weights": 4 * hidden * hidden}
        up = self.node(f"{name}.up", h, size=4 * wide, **large)
        return self.node(name, x, self.node(f"{name}.down", up, size=wide, **large), size=wide)

    def cut(self, *outputs: str, most: int = 48, order: Sequence[int] = ()) -> list[set[str]]:
        """Return what crosses each of the chosen cuts; `order` is another order of the nodes."""
        order = order or range(len(self.reads))
        graph = Graph(
            inputs=tuple(self.inputs),
            outputs=outputs,
            reads=tuple(self.reads[node] for node in order),
            makes=tuple(self.makes[node] for node in order),
            measuring=0,
            copied=0,
        )
        costs = Costs(
            flops=[self.flops[node] for node in order],
            weight_bytes=[self.weights[node] for node in order],
            tensor_bytes=self.sizes,
        )
        cuts = choose_cuts(graph, costs, most)
        assert all(any(self.flops[node] for node in each(nodes)) for nodes in pieces(graph, cuts))
        return [set(graph.crossing(nodes)) for nodes in cuts]


def transformer(layers: int, hidden: int = 64) -> tuple[Sketch, str]:
    sketch = Sketch()
    x = sketch.input("x", 128 * hidden)
    for layer in range(layers):
        x = sketch.block(f"block{layer}", x, tokens=128, hidden=hidden)
    return sketch, x


@pytest.mark.parametrize("layers", [3, 6, 12, 24])
def test_a_transformer_is_cut_behind_each_attention_and_each_mlp(layers: int) -> None:
    sketch, last = transformer(layers)
    ends = [{name} for layer in range(layers) for name in (f"block{layer}.attended", f"block{layer}")]
    assert sketch.cut(last) == ends[:-1]


def test_a_transformer_with_more_blocks_than_segments_is_cut_between_blocks() -> None:
    sketch, last = transformer(60)
    cuts = sketch.cut(last)
    assert 30 <= len(cuts) <= 47
    assert all(len(names) == 1 and names.pop().startswith("block") for names in cuts)


def test_equal_blocks_are_cut_at_the_same_spot() -> None:
    sketch = Sketch()
    x = sketch.input("x", 128 * 64)
    for layer in range(7):
        x = sketch.node(
            f"norm{layer}", sketch.block(f"block{layer}", x, tokens=128, hidden=64), size=128 * 64
        )
    ends = [names for names in sketch.cut(x) if not names & {f"block{layer}.attended" for layer in range(7)}]
    assert ends == [{f"norm{layer}"} for layer in range(6)]


def test_the_order_of_nodes_in_the_file_does_not_matter() -> None:
    sketch, last = transformer(4)
    side = sketch.input("ids", 8)
    sketch.node("copied", side, size=8)
    latest_first: list[int] = []
    waiting = list(range(len(sketch.reads)))
    known = set(sketch.inputs)
    while waiting:  # always the last node that can run
        node = next(n for n in reversed(waiting) if known.issuperset(sketch.reads[n]))
        waiting.remove(node)
        latest_first.append(node)
        known.update(sketch.makes[node])
    assert latest_first != sorted(latest_first)
    cuts = sketch.cut(last, "copied")
    assert len(cuts) == 7
    assert sketch.cut(last, "copied", order=latest_first) == cuts


def test_two_towers_are_both_cut() -> None:
    sketch = Sketch()
    image, text = sketch.input("image", 60_000), sketch.input("ids", 100)
    for layer in range(4):
        image = sketch.block(f"image{layer}", image, tokens=128, hidden=64)
    image = sketch.node("pooled", image, size=64)
    text = sketch.node("words", text, size=32 * 64, weights=200_000)
    for layer in range(4):
        text = sketch.block(f"text{layer}", text, tokens=32, hidden=64)
    cuts = sketch.cut(sketch.node("likeness", image, text, size=1))
    assert {"image1", "ids"} in cuts
    assert {"pooled", "ids"} in cuts
    assert {"pooled", "words"} in cuts
    assert {"pooled", "text1"} in cuts


def test_a_branch_that_ends_in_an_output_runs_as_soon_as_it_can() -> None:
    sketch = Sketch()
    x = sketch.input("image", 4096)
    outputs = []
    for level in range(5):
        x = sketch.node(f"level{level}", x, size=2048, flops=100_000)
        branch = sketch.node(f"head{level}", x, size=8192, flops=50_000)
        outputs.append(sketch.node(f"out{level}", branch, size=128))
    assert sketch.cut(*outputs) == [{f"level{level}"} for level in range(5)]


def test_a_branch_that_is_needed_later_is_not_run_early() -> None:
    sketch, last = transformer(4)
    late = sketch.node("late", sketch.input("hint", 10), size=100_000)
    cuts = sketch.cut(sketch.node("y", last, late, size=1))
    assert cuts[:2] == [{"hint", "block0.attended"}, {"hint", "block0"}]


def test_a_narrow_place_is_cut_and_a_wide_one_beside_it_is_not() -> None:
    sketch = Sketch()
    x = sketch.input("x", 1000)
    for number in range(20):
        size = {5: 8000, 12: 100}.get(number, 1000)
        x = sketch.node(f"layer{number}", x, size=size, flops=10_000)
    cuts = [names.pop() for names in sketch.cut(x)]
    assert "layer12" in cuts
    assert "layer5" not in cuts
    assert "layer11" not in cuts
    assert {"layer1", "layer4", "layer6", "layer18"} <= set(cuts)


def test_a_big_table_is_worth_a_segment_although_it_costs_no_time() -> None:
    sketch = Sketch()
    x = sketch.node("words", sketch.input("ids", 100), size=128 * 64, weights=1_000_000)
    for layer in range(3):
        x = sketch.block(f"block{layer}", x, tokens=128, hidden=64)
    assert sketch.cut(x)[0] == {"words"}


def test_what_cannot_cross_is_not_cut() -> None:
    sketch, last = transformer(3)
    del sketch.sizes["block1"]
    cuts = sketch.cut(last)
    assert {"block0"} in cuts
    assert {"block1"} not in cuts


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_there_are_no_more_segments_than_asked(most: int) -> None:
    sketch, last = transformer(6)
    assert len(sketch.cut(last, most=most)) == most - 1
