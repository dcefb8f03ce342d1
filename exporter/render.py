"""What `shoal export` and `shoal inspect` print: for a person, or for a program."""

import json
from collections.abc import Iterable, Iterator

from shoal.encoding import to_json
from shoal.manifest import Manifest, ShardCollective, Sharding, Verification
from shoal.records import TensorSpec
from shoal.text import table


def summary(manifest: Manifest) -> str:
    """Return what the bundle is, what it takes and gives, and what was proved of it."""
    proofs = [*_proofs(manifest.verification), *_variants(manifest), *_accuracy(manifest)]
    return "\n".join([*_facts(manifest), "", *proofs])


def details(manifest: Manifest) -> str:
    """Return the summary with a line for each segment."""
    proofs = [*_proofs(manifest.verification), *_variants(manifest), *_accuracy(manifest)]
    return "\n".join([*_facts(manifest), "", *_segments(manifest), "", *proofs])


def as_json(manifest: Manifest) -> str:
    """Return the manifest as one JSON object, with what was proved by strategy, and measured by precision."""
    exchanges = {sharding.name: sharding.exchanges for sharding in manifest.shardings}
    proved = {
        proof.strategy: {
            "verified": proof.verified,
            "max_abs_err": proof.max_abs_err,
            "exchanges": exchanges.get(proof.strategy, 0),
            "reason": proof.reason,
        }
        for proof in manifest.verification
    }
    precisions = {
        variant.precision: {
            deviation.strategy: {
                "max_abs_err": deviation.max_abs_err,
                "max_rel_err": deviation.max_rel_err,
                "top1": deviation.top1,
                "reason": deviation.reason,
            }
            for deviation in variant.deviations
        }
        for variant in manifest.variants
    }
    found = {**json.loads(to_json(manifest)), "strategies": proved, "precisions": precisions}
    return json.dumps(found, sort_keys=True)


def _facts(manifest: Manifest) -> Iterator[str]:
    whole = manifest.whole
    sizes = ", ".join(f"{name}={size}" for name, size in sorted(manifest.sample_sizes.items()))
    source = manifest.source_sha256[:12]
    yield f"{manifest.name}: opset {manifest.opset}, from {source} by {manifest.producer}"
    for port in manifest.inputs:
        yield f"  input     {_port(port)}"
    for port in manifest.outputs:
        yield f"  output    {_port(port)}"
    yield f"  weights   {whole.weight_bytes / 1e6:.1f} MB"
    yield f"  a run     {whole.flops / 1e6:.1f} MFLOP and {whole.work_bytes / 1e6:.1f} MB of work memory"
    yield f"  counted   {f'at {sizes}' if sizes else 'at the sizes above'}"
    yield f"  batch     {manifest.batch or 'cannot be divided'}"
    yield f"  segments  {len(manifest.segments)} of {len({s.kind for s in manifest.segments})} kinds"
    if manifest.cuts:
        crossing = [cut.size_bytes / 1e3 for cut in manifest.cuts]
        yield f"  cuts      {min(crossing):.1f} to {max(crossing):.1f} kB"
    if manifest.annotated is None:
        yield "  annotated no: needs onnx 1.18 or newer where it is exported"
    else:
        yield "  annotated device configurations in annotated.onnx"
    for sharding in manifest.shardings:
        yield f"  {_divided(sharding, manifest)}"


def _divided(sharding: Sharding, manifest: Manifest) -> str:
    """Say what a sharding divides, and what each of its exchanges carries from all boards together."""
    what = "tokens" if sharding.strategy == "sequence" else "heads"
    meetings = [
        sum(spec.size_bytes(manifest.sizes) for spec in step.made)
        for step in sharding.steps
        if isinstance(step, ShardCollective) and not step.to_lead and step.kind in ("gather", "reduce")
    ]
    bytes_each = f" of {max(meetings) / 1e3:.1f} kB" if meetings else ""
    causal = ", each board needs those before its own" if sharding.causal else ""
    return f"{sharding.name:<15} {sharding.units} {what}{causal}; {len(meetings)} exchanges{bytes_each}"


def _segments(manifest: Manifest) -> Iterator[str]:
    head = ("SEGMENT", "KIND", "WEIGHTS MB", "MFLOP", "WORK MB", "CUT BEFORE kB")
    crossing = ["", *(f"{cut.size_bytes / 1e3:.1f}" for cut in manifest.cuts)]
    rows = [
        (
            segment.name,
            segment.kind[:8],
            f"{segment.weight_bytes / 1e6:.2f}",
            f"{segment.flops / 1e6:.1f}",
            f"{segment.work_bytes / 1e6:.2f}",
            size,
        )
        for segment, size in zip(manifest.segments, crossing, strict=True)
    ]
    yield table(head, rows, numbers_from=2)


def _proofs(verification: Iterable[Verification]) -> Iterator[str]:
    head = ("STRATEGY", "VERIFIED", "WORST ERROR", "RELATIVE", "REASON")
    rows = [
        (
            proof.strategy,
            "yes" if proof.verified else "no",
            f"{proof.max_abs_err:.1e}" if proof.samples else "",
            f"{proof.max_rel_err:.1e}" if proof.samples else "",
            proof.reason,
        )
        for proof in verification
    ]
    yield table(head, rows)


def _variants(manifest: Manifest) -> Iterator[str]:
    """Yield what other precisions weigh and how far their answers are from the original's."""
    for variant in manifest.variants:
        weight_bytes = manifest.in_precision(variant.precision).whole.weight_bytes
        yield ""
        yield (
            f"{variant.precision}: {weight_bytes / 1e6:.1f} MB of weights, {len(variant.segments)} of "
            f"{len(manifest.given)} segments"
        )
        rows = [
            (
                one.strategy,
                f"{one.max_abs_err:.1e}" if one.samples else "",
                f"{one.max_rel_err:.1e}" if one.samples else "",
                "" if one.top1 is None else f"{one.top1:.1%}",
                one.reason,
            )
            for one in variant.deviations
        ]
        yield table(("STRATEGY", "WORST ERROR", "RELATIVE", "SAME TOP-1", "REASON"), rows)
        if variant.lost is not None:
            yield f"accuracy lost in one piece, on the data: {variant.lost:+.2%}"
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(variant.left_out.items()):
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            yield f"as given: {', '.join(names)}: {reason}"


def _accuracy(manifest: Manifest) -> Iterator[str]:
    """Yield what was measured of the ways for rows to cross the wire, on the user's data."""
    found = manifest.calibration
    if found is None:
        return
    books = {book.blob.sha256: book.blob.size_bytes for book in manifest.codebooks}
    yield ""
    yield (
        f"accuracy: {found.metric} {found.unsplit:.4f} unsplit, on {found.samples} inputs; "
        f"{sum(books.values()) / 1e6:.1f} MB of codebooks"
    )
    rows = [
        (
            one.sharding,
            one.recipe,
            str(one.parts),
            f"{one.bytes_per_token:.1f}",
            f"{one.value:.4f}",
            f"{one.lost:+.2%}",
            "" if one.agreement is None else f"{one.agreement:.1%}",
        )
        for one in found.outcomes
    ]
    head = ("SHARDING", "RECIPE", "BOARDS", "BYTES/TOKEN", found.metric.upper(), "LOST", "SAME TOP-1")
    yield table(head, rows, numbers_from=2)


def _port(port: TensorSpec) -> str:
    return f"{port.name}  {port.dtype} [{', '.join(str(dim) for dim in port.shape)}]"
