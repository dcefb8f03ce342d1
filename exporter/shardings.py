"""Finds the ways to run a model on several boards at once, and proves each against the original.

    sequence         tokens divided, keys and values gathered after their projection
    sequence-hidden  tokens divided, gathered before the projection, where that is fewer bytes
    tensor           heads and columns divided, parts of sums added up

What is found has to answer as the original does (`prove`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import onnx

from shoal.errors import ModelError, PlanError
from shoal.exporter.annotate import Layout, layout_of
from shoal.exporter.apart import write_in_parts
from shoal.exporter.axes import Dim
from shoal.exporter.costs import flops
from shoal.exporter.decompose import decompose
from shoal.exporter.divide import divide
from shoal.exporter.division import Division, NotDivisibleError, Seam, Work, model_of
from shoal.exporter.lean import lean
from shoal.exporter.prove import Proof
from shoal.exporter.rewriting import Original
from shoal.exporter.samples import Sample, Use
from shoal.exporter.seek import LEAST, Root, find_root, whole_roots
from shoal.exporter.shapes import find_apart, find_tensors
from shoal.exporter.shard import MixedUnitsError, ShardWriter
from shoal.exporter.slices import Slices, find_slices
from shoal.exporter.stages import stage
from shoal.exporter.verify import Answer, refused
from shoal.exporter.view import initializers
from shoal.manifest import Sharding, ShardRun, Verification
from shoal.memory import give_back


@dataclass(frozen=True, kw_only=True)
class Shardings:
    """What was found."""

    shardings: tuple[Sharding, ...]
    verification: tuple[Verification, ...]
    layouts: Mapping[str, Layout]
    """Where the boards' units lie in the model's tensors, for each of the shardings."""


class ShardingSearch:
    """Finds the ways to run a normalised model on several boards."""

    def __init__(
        self,
        model: onnx.ModelProto,
        folder: Path,
        uses: Mapping[str, Use],
        sizes: Mapping[str, int],
        sample: Sample,
        questions: Sequence[Sample],
        wanted: Sequence[Answer],
    ) -> None:
        """Take the model, whose weights lie in `folder`, in which the segments are written too.

        `sizes` are those at which costs are counted, `questions` are inputs to which the original answered
        `wanted`.
        """
        self._folder = folder
        self._plain = onnx.ModelProto()
        self._plain.CopyFrom(model)
        decompose(self._plain, find_tensors(model, folder, uses, sizes, sample))
        if _operators(model) - _operators(self._plain) - {"Identity"}:  # rows can be followed through more
            original = Original(folder=folder, uses=uses, sizes=sizes, samples=questions, wanted=wanted)
            self._plain = lean(self._plain, original)
        self._tensors = find_tensors(self._plain, folder, uses, sizes, sample)
        try:
            apart = find_apart(self._plain, folder, uses, sizes)
        except ModelError:
            apart = self._tensors
        self._model = model_of(self._plain, apart)
        self._graph = self._model.graph
        self._proof = Proof(folder, self._model.outputs, questions, wanted)
        self._shardings: list[Sharding] = []
        self._verification: list[Verification] = []
        self._layouts: dict[str, Layout] = {}

    def run(self) -> Shardings:
        """Return those that answer as the original does; any other is refused with the reason."""
        try:
            root = find_root(self._model)
        except NotDivisibleError as error:
            reason = str(error)
            self._verification += [refused("sequence", reason), refused("tensor", reason)]
        else:
            self._sequence(root)
            self._tensor(root)
        return Shardings(
            shardings=tuple(self._shardings),
            verification=tuple(self._verification),
            layouts={sharding.name: self._layouts[sharding.name] for sharding in self._shardings},
        )

    def _sequence(self, root: Root) -> None:
        """Try to divide the tokens, causally if the model is that, and gather earlier where that is less."""
        roots = {root.tensor: root.dim, **dict.fromkeys(root.whole)}
        causal = self._divide(roots, causal=True)
        found = None
        if any(value.rows and value.columns and not value.divided for value in causal.values.values()):
            found = self._attempt("sequence", lambda n: self._write_sequence(n, roots, causal, causal=True))
        if found is None or not found.verified:
            plain = self._divide(roots, causal=False)
            found = self._attempt("sequence", lambda n: self._write_sequence(n, roots, plain, causal=False))
        self._verification.append(found)
        if not found.verified:
            return
        is_causal = self._shardings[-1].causal
        self._means(roots, causal=is_causal)
        if not is_causal:
            self._parts(roots)
        points = self._hidden_points(self._divide(roots, causal=is_causal))
        if not points:
            return
        try:
            hidden = self._divide(roots, causal=is_causal, points=points)
        except NotDivisibleError as error:  # these points can be too early for what comes between
            self._verification.append(refused("sequence-hidden", str(error)))
            return
        found = self._attempt(
            "sequence-hidden", lambda n: self._write_sequence(n, roots, hidden, causal=is_causal)
        )
        self._verification.append(found)
        if found.verified:
            self._means(roots, causal=is_causal, points=points)

    def _means(
        self, roots: Mapping[str, Dim | None], *, causal: bool, points: Mapping[str, str] | None = None
    ) -> None:
        """Give the sequence that was found last segments for means too, if they answer as it does.

        They are played once, on rows that all stand for themselves.
        """
        plain = self._shardings[-1]

        def make(_name: str) -> Sharding:
            division = self._divide(roots, causal=causal, points=points, means=True)
            writer = self._sequence_writer(plain.name, plain.units)
            stages = stage(division, self._model.outputs)
            steps = writer.for_means(plain.steps, division, stages, self._model.outputs)
            return replace(plain, steps=tuple(steps), segments=(*plain.segments, *writer.segments))

        self._shardings.pop()
        found = self._attempt(f"{plain.name}-means", make, self._proof.for_means)
        if not found.verified:
            self._shardings.append(plain)
        self._verification.append(found)

    def _parts(self, roots: Mapping[str, Dim | None]) -> None:
        """Give the sequence that was found last segments to attend to parts of rows, and those for means."""
        plain = self._shardings[-1]
        steps = [step for step in plain.steps if isinstance(step, ShardRun)]
        for means in (False, True) if any(step.for_means for step in steps) else (False,):
            found = self._attempt(
                f"{plain.name}{'-means' if means else ''}-parts",
                partial(self._in_parts, self._shardings.pop(), roots, means=means),
                partial(self._proof.for_parts, means=means),
            )
            if not found.verified:
                self._shardings.append(plain)
            plain = self._shardings[-1]
            self._verification.append(found)

    def _in_parts(
        self, plain: Sharding, roots: Mapping[str, Dim | None], _name: str, *, means: bool
    ) -> Sharding:
        division = self._divide(roots, causal=False, means=means)
        writer = self._sequence_writer(plain.name, plain.units)
        outputs = self._model.outputs
        stages = stage(division, outputs)
        steps = write_in_parts(writer, plain.steps, division, stages, outputs, self._model.opset, means=means)
        return replace(plain, steps=tuple(steps), segments=(*plain.segments, *writer.segments))

    def _attempt(
        self,
        name: str,
        make: Callable[[str], Sharding],
        prove: Callable[[str, Sharding], Verification] | None = None,
    ) -> Verification:
        """Make a sharding, play it, and keep it if it answers as the original does."""
        before = set(self._folder.iterdir())
        try:
            sharding = make(name)
            found = (prove or self._proof.of)(name, sharding)
        except MixedUnitsError:
            raise
        except (ModelError, PlanError) as error:
            found = refused(name, str(error))
        give_back()  # what sessions held, which the next ones need
        if found.verified:
            self._shardings.append(sharding)
        else:
            for path in set(self._folder.iterdir()) - before:
                path.unlink()
        return found

    def _divide(
        self,
        roots: Mapping[str, Dim | None],
        *,
        causal: bool,
        points: Mapping[str, str] | None = None,
        means: bool = False,
    ) -> Division:
        return divide(self._model, roots=roots, causal=causal, points=points, means=means)

    def _write_sequence(
        self, name: str, roots: Mapping[str, Dim | None], division: Division, *, causal: bool
    ) -> Sharding:
        tensor, dim = next((n, d) for n, d in roots.items() if d is not None)
        units = self._tensors[tensor].sizes[dim.axis]
        writer = self._sequence_writer(name, units)
        point = "hidden" if name == "sequence-hidden" else "kv"
        return self._sharding(writer, division, roots, name, "sequence", point, units, causal=causal)

    def _sequence_writer(self, name: str, units: int) -> ShardWriter:
        return ShardWriter(self._plain, self._graph, self._tensors, units, self._folder, name)

    def _hidden_points(self, division: Division) -> dict[str, str]:
        """Return, for what is gathered at each meeting, a smaller tensor of which all that is made."""
        order = stage(division, self._model.outputs)
        found: dict[str, str] = {}
        for one in order.stages:
            sources = [
                seam.source for seam in (division.items[i] for i in one.meeting) if isinstance(seam, Seam)
            ]
            if not sources:
                continue
            ways = [list(division.narrows(source)) for source in sources]
            common = [name for name in ways[0] if all(name in way for way in ways)]
            size_bytes = sum(self._tensors[source].size_bytes for source in sources)
            alone = [name for name in common if division.parts[name][1:] == (1, 1)]
            least = min(alone, key=lambda name: self._tensors[name].size_bytes, default=sources[0])
            if least not in sources and self._tensors[least].size_bytes < size_bytes:
                found |= dict.fromkeys(sources, least)
        return found

    def _tensor(self, root: Root) -> None:
        """Try to divide heads and columns, with as many units of each as can be, or the fewest of all."""
        weights = list(initializers(self._plain.graph))
        roots: dict[str, Dim | None] = dict.fromkeys((root.tensor, *root.whole))
        slices = find_slices(self._model, weights)
        try:
            found = self._attempt("tensor", lambda n: self._write_tensor(n, roots, slices))
        except MixedUnitsError as error:
            same = find_slices(self._model, weights, error.fewest)
            found = self._attempt("tensor", lambda n: self._write_tensor(n, roots, same))
        self._verification.append(found)

    def _write_tensor(self, name: str, roots: Mapping[str, Dim | None], slices: Slices) -> Sharding:
        model = self._model
        division = divide(model, roots=roots, slices=slices.dims, covers=slices.covers)
        more = whole_roots(model, division, "")
        if more:
            roots = {**roots, **dict.fromkeys(more)}
            division = divide(model, roots=roots, slices=slices.dims, covers=slices.covers)
        whole = max(1, sum(flops(node, model.tensors) for node in model.nodes))
        divided = sum(item.flops for item in division.items if isinstance(item, Work) and item.divided)
        if divided < LEAST * whole:
            reason = max(slices.refusals, key=lambda r: r[1], default=("no weights can be held in ranges", 0))
            raise NotDivisibleError(reason[0])
        covering = {u // t for u in slices.units.values() for t in slices.covers.values() if u % t == 0}
        writer = ShardWriter(self._plain, self._graph, self._tensors, 0, self._folder, name, covering)
        units = min(slices.units.values())
        return self._sharding(writer, division, roots, name, "tensor", "", units, causal=False)

    def _sharding(
        self,
        writer: ShardWriter,
        division: Division,
        roots: Mapping[str, Dim | None],
        name: str,
        strategy: Literal["sequence", "tensor"],
        point: str,
        units: int,
        *,
        causal: bool,
    ) -> Sharding:
        outputs = self._model.outputs
        stages = stage(division, outputs)
        self._layouts[name] = layout_of(division, stages)
        before = [n for n in outputs if n not in division.values]
        steps = [
            *writer.ahead(list(roots), before),
            *writer.handing_out(roots),
            *writer.stages(division, stages, outputs),
        ]
        return Sharding(
            name=name,
            strategy=strategy,
            point=point,
            units=units,
            causal=causal,
            sizes=writer.sizes,
            steps=tuple(steps),
            segments=tuple(writer.segments),
        )


def _operators(model: onnx.ModelProto) -> frozenset[str]:
    return frozenset(node.op_type for node in model.graph.node)
