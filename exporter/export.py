"""The way from an ONNX file to a bundle, each step in order."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx

from shoal.errors import ConfigError, ModelError
from shoal.exporter.annotate import annotate, can_annotate, write_annotated
from shoal.exporter.bundle import new_bundle, store, write_manifest
from shoal.exporter.calibrate import Tables, calibrate
from shoal.exporter.copies import choose_copies
from shoal.exporter.costs import costs_of
from shoal.exporter.cuts import MAX_SEGMENTS, choose_cuts, pieces
from shoal.exporter.data import read_data
from shoal.exporter.graph import Graph, Nodes, each
from shoal.exporter.lean import lean
from shoal.exporter.load import Source, load
from shoal.exporter.normalise import normalise
from shoal.exporter.precision import check_precisions, make_variant
from shoal.exporter.progress import Report, silent
from shoal.exporter.projections import split_projections
from shoal.exporter.rewriting import Original
from shoal.exporter.samples import (
    Sample,
    choose_sizes,
    lead_of,
    make_sample,
    read_sample,
    split_rows,
    uses_of,
)
from shoal.exporter.segments import PRODUCER, SegmentWriter
from shoal.exporter.shapes import Tensor, find_tensors, input_specs, unify_sizes
from shoal.exporter.shardings import Shardings, ShardingSearch
from shoal.exporter.verify import Answer, Run, compare_runs, refused, run_chain, run_file, stack
from shoal.exporter.view import view
from shoal.exporter.weights import lift_weights
from shoal.golden import Golden, pack
from shoal.manifest import FORMAT, VERSION, WHOLE, Manifest, Precision, Segment, Verification
from shoal.records import Blob, check_name

SAMPLES: Final = 2
"""Inputs on which the answers are compared."""
LEAST_SIZE: Final = 8
"""Guessed sizes are halved down to this if the model does not take them."""
STEPS: Final = ("read the model", "ask the original", "cut", "compare the segments", "divide")
"""What is reported; a step for each further precision comes behind these."""
CALIBRATE: Final = "calibrate"
"""The last step, if there is data for it."""
ROWS: Final = 3
"""Rows of the batch that is compared with its rows one by one."""


def export(
    model: Path,
    bundle: Path,
    *,
    name: str = "",
    sizes: Mapping[str, int] | None = None,
    sample: Path | None = None,
    max_segments: int = MAX_SEGMENTS,
    precisions: Sequence[str] = (),
    calibration: Path | None = None,
    codecs: Sequence[str] = (),
    tables: Tables | None = None,
    seal: Callable[[Path], None] | None = None,
    report: Report = silent,
    force: bool = False,
) -> Manifest:
    """Write the ONNX file `model` as the bundle `bundle`, verified, and return its manifest.

    `name` is the file's if empty; `sizes` are those of named dimensions, and `sample` is a .npz file of
    real inputs, both guessed if missing.  `precisions` are those in which the segments are written
    besides the one that they have.  `calibration` is a .npz file of data on which `codecs`, or standard
    ones, are measured, with the codebooks in `tables` where it has them (see `calibrate`).  `seal` is
    called with the folder when all else is in it, `report`
    with each of the steps as it begins.  Raises ModelError if the model cannot be exported or does not
    survive it, ConfigError if an argument is wrong or the bundle cannot be written; then nothing is left.
    """
    name = bundle_name(name, model)
    asked = check_precisions(precisions)
    with new_bundle(bundle, force=force) as folder:
        report(STEPS[0])
        source, light = _load(model, folder)
        with _about(model):
            work = _Export(source, light, folder, sizes or {}, sample, report)
            data = read_data(calibration, work.inputs) if calibration else None
            manifest = work.run(name, max_segments, asked)
        if data is not None:
            report(CALIBRATE)
            manifest = calibrate(manifest, folder, data, codecs, report, tables)
        write_manifest(manifest, folder)
        if seal is not None:
            seal(folder)
    return manifest


class _Export:
    """One model, in normal form and without weights, on its way into the folder where these lie."""

    def __init__(
        self,
        source: Source,
        model: onnx.ModelProto,
        folder: Path,
        asked: Mapping[str, int],
        sample: Path | None,
        report: Report,
    ) -> None:
        self._report = report
        self._source, self._model, self._folder, self._asked = source, model, folder, asked
        self._uses = uses_of(model.graph)
        unify_sizes(model, folder, self._uses)
        self.inputs = input_specs(model.graph)
        given = read_sample(sample, self.inputs) if sample else None
        self._sizes = choose_sizes(self.inputs, asked, given)
        self._given = split_rows(given, self.inputs, self._sizes) if given else []
        if self._given and (lead := lead_of(self.inputs)):
            self._sizes[lead] = 1

    def run(self, name: str, max_segments: int, precisions: Sequence[Precision]) -> Manifest:
        """Do everything that is left, and return the manifest."""
        self._report(STEPS[1])
        samples, wanted = self._questions()
        self._report(STEPS[2])
        original = Original(
            folder=self._folder, uses=self._uses, sizes=self._sizes, samples=samples, wanted=wanted
        )
        self._model = lean(split_projections(self._model, original), original)
        tensors = find_tensors(self._model, self._folder, self._uses, self._sizes, samples[0])
        nodes, graph = self._model.graph.node, view(self._model.graph)
        graph = replace(graph, copied=choose_copies(graph, costs_of(nodes, graph, tensors)))
        cuts = choose_cuts(graph, costs_of(nodes, graph, tensors), max_segments)
        writer = SegmentWriter(self._model, graph, tensors, self._folder)
        whole, segments = writer.whole(), writer.segments(pieces(graph, cuts))
        self._report(STEPS[3])
        verification = self._verify(whole, segments, samples, wanted)
        replicates = verification[-1].verified
        self._report(STEPS[4])
        sharded = self._shard(samples, wanted, batched=replicates)
        manifest = Manifest(
            format=FORMAT,
            version=VERSION,
            name=name,
            producer=PRODUCER,
            source_sha256=self._source.sha256,
            opset=self._source.opset,
            inputs=whole.inputs,
            outputs=whole.outputs,
            sample_sizes=self._sizes,
            batch=lead_of(whole.inputs) if replicates else None,
            whole=whole,
            segments=segments,
            cuts=writer.cuts(cuts),
            shardings=sharded.shardings,
            verification=(*verification, *sharded.verification),
        )
        golden = store(pack(Golden(inputs=samples[0], outputs=wanted[0])), self._folder)
        annotated = self._annotate(sharded, graph, pieces(graph, cuts), tensors)
        variants = []
        for precision in precisions:
            self._report(f"write {precision}")
            variants.append(make_variant(manifest, precision, self._folder, samples, wanted))
        return replace(manifest, variants=tuple(variants), golden=golden, annotated=annotated)

    def _shard(self, samples: Sequence[Sample], wanted: Sequence[Answer], *, batched: bool) -> Shardings:
        """Return the ways to run the model on several boards at once, proved on a batch too if it has one."""
        questions, answers = list(samples), list(wanted)
        lead = lead_of(self.inputs)
        if batched and lead is not None:
            batch = stack(
                [*self._given, *(self._random(seed, {**self._sizes, lead: 1}) for seed in range(ROWS))][:ROWS]
            )
            questions.append(batch)
            answers += run_file(self._folder / f"{WHOLE}.onnx")([batch])
        return ShardingSearch(
            self._model, self._folder, self._uses, self._sizes, samples[0], questions, answers
        ).run()

    def _annotate(
        self, sharded: Shardings, graph: Graph, stages: Sequence[Nodes], tensors: Mapping[str, Tensor]
    ) -> Blob | None:
        """Write the model with ONNX's own device annotations, if the onnx here has these."""
        if not can_annotate():
            return None
        made = {n: i for i, nodes in enumerate(stages) for node in each(nodes) for n in graph.makes[node]}
        batch = lead_of(self.inputs)
        return write_annotated(annotate(self._model, sharded.layouts, made, tensors, batch), self._folder)

    def _rows(self) -> list[Sample]:
        """Return the rows of the batch that is compared with its rows one by one."""
        one_row = {**self._sizes, str(lead_of(self.inputs)): 1}
        return [*self._given, *(self._random(seed, one_row) for seed in range(ROWS))][:ROWS]

    def _random(self, seed: int, sizes: Mapping[str, int]) -> Sample:
        return make_sample(self.inputs, self._uses, sizes, seed)

    def _questions(self) -> tuple[list[Sample], list[Answer]]:
        """Return samples and what the file as it was answers; it is closed again, to have its memory back.

        A model may take no tensors of a size that was only guessed: then smaller ones are tried.
        """
        run = run_file(self._source.path)
        while True:
            samples = self._given[:SAMPLES] or [self._random(seed, self._sizes) for seed in range(SAMPLES)]
            try:
                return samples, run(samples)
            except ModelError as error:
                guessed = {n: s for n, s in self._sizes.items() if n not in self._asked and s > LEAST_SIZE}
                if self._given or not guessed:
                    hint = "" if self._given else "; give sizes with --size or inputs with --sample"
                    raise ModelError(f"{error} (sizes {self._sizes}){hint}") from error
                self._sizes |= {name: size // 2 for name, size in guessed.items()}

    def _verify(
        self, whole: Segment, segments: Sequence[Segment], samples: Sequence[Sample], wanted: Sequence[Answer]
    ) -> tuple[Verification, ...]:
        """Compare every way of running the bundle with the original.  Raises ModelError if none is right."""
        run = run_file(self._folder / f"{whole.name}.onnx")
        local = compare_runs("local", run, samples, wanted)
        if not local.verified:
            raise ModelError(f"the exported model does not answer like the original: {local.reason}")
        replicate, batch = self._replicate(whole, run)
        if replicate.verified:
            samples, wanted = [*samples, batch], [*wanted, *run([batch])]
        del run
        chain = run_chain(self._folder, segments, whole.outputs)
        return local, compare_runs("pipeline", chain, samples, wanted), replicate

    def _replicate(self, whole: Segment, run: Run) -> tuple[Verification, Sample]:
        """Compare a batch with its rows one by one; return also that batch."""
        lead = lead_of(whole.inputs)
        if lead is None or lead != lead_of(whole.outputs):
            return refused("replicate", _no_lead(whole)), {}
        rows = self._rows()
        batch = stack(rows)
        try:
            singles = run(rows)
        except ModelError as error:
            return refused("replicate", str(error)), batch
        return compare_runs("replicate", run, [batch], [stack(singles)]), batch


def _load(path: Path, folder: Path) -> tuple[Source, onnx.ModelProto]:
    """Return the model in `path` in normal form and without its weights, which go to `folder`."""
    source, model = load(path)
    with _about(path):
        return source, lift_weights(normalise(model), path, folder)


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Put the file in front of what is said against a model."""
    try:
        yield
    except ModelError as error:
        if str(error).startswith(str(path)):
            raise
        raise ModelError(f"{path}: {error}") from error


def _no_lead(whole: Segment) -> str:
    """Say which tensor has no batch in front."""
    leads = [spec.shape[0] for spec in whole.inputs if spec.shape and isinstance(spec.shape[0], str)]
    if not leads:
        return "no input has a named dimension in front"
    ports = [*(("input", spec) for spec in whole.inputs), *(("output", spec) for spec in whole.outputs)]
    kind, spec = next((kind, spec) for kind, spec in ports if spec.shape[:1] != (leads[0],))
    return (
        f"expected {leads[0]!r} in front of every input and output, got {kind} {spec.name} {list(spec.shape)}"
    )


def bundle_name(name: str, model: Path) -> str:
    """Return `name` if it can be one, else the file's name made to fit.  Raises ConfigError."""
    fitting = re.sub(r"[^A-Za-z0-9._-]+", "-", model.stem).lstrip("._-")[:64] or "model"
    try:
        return check_name("bundle name", name or fitting)
    except ValueError as error:
        raise ConfigError(str(error)) from error
