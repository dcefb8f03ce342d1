"""`shoal export` and `shoal inspect`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import get_args

import click

from shoal.errors import ConfigError
from shoal.exporter import progress, render
from shoal.exporter.bundle import check_bundle, check_free, read_manifest
from shoal.exporter.cuts import MAX_SEGMENTS
from shoal.manifest import Manifest, Precision


@click.command()
@click.argument("model", metavar="[MODEL.onnx]", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", "bundle", metavar="BUNDLE", required=True, type=click.Path(path_type=Path))
@click.option("--name", default="", help="Name of the bundle.  [default: the file's]")
@click.option(
    "--from-hf",
    "source",
    metavar="CONFIG_OR_DIR",
    type=click.Path(path_type=Path),
    help="Instead of an ONNX file, take a local model folder of transformers, or a configuration alone and "
    "random weights.",
)
@click.option(
    "--size",
    "sizes",
    metavar="NAME=N",
    multiple=True,
    help="Value of a named dimension when costs are counted.  [default: 1 for the batch, 128 for others]",
)
@click.option(
    "--sample",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="Real inputs, by name.  [default: random]",
)
@click.option("--max-segments", type=click.IntRange(1, MAX_SEGMENTS), default=MAX_SEGMENTS, show_default=True)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["fp32", *get_args(Precision)]),
    multiple=True,
    help="Also write weights of this precision, and measure the error: fp16 halves what is stored and sent, "
    "int8 quantises the products too.  May be given again; fp32 is always there.",
)
@click.option(
    "--calibrate",
    "data",
    metavar="DATA.npz",
    type=click.Path(path_type=Path),
    help="Measure on these inputs, stacked by name, what accuracy each codec costs, and make codebooks.  "
    "Labels under `labels` (of rows, or the next tokens), or likenesses under `scores`, say what accuracy "
    "is; without them it is the cosine of the answers to the unsplit model's.",
)
@click.option(
    "--codec",
    "codecs",
    metavar="WORDS",
    multiple=True,
    help="With --calibrate: try this codec, like i4 or vq16x256 or means4-i8, in place of the standard "
    "ones.  May be given again.",
)
@click.option(
    "--codebooks",
    metavar="FILE.npz",
    type=click.Path(path_type=Path),
    help="With --calibrate: codebooks that `shoal train` learnt with this model; others are made of data.",
)
@click.option(
    "--sign",
    "key",
    metavar="KEY.pem",
    type=click.Path(path_type=Path),
    help="Sign the manifest with this Ed25519 private key.",
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a summary.")
def export(
    model: Path | None,
    bundle: Path,
    name: str,
    source: Path | None,
    sizes: Sequence[str],
    sample: Path | None,
    max_segments: int,
    precisions: Sequence[str],
    data: Path | None,
    codecs: Sequence[str],
    codebooks: Path | None,
    key: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write an ONNX model as a bundle: cut into segments, weights apart, compared with the original.

    How far it is shows on stderr, the summary comes on stdout.

    Does not fuse, and changes precision only if asked to.  Exits 0; 2 if an argument is wrong or the
    bundle cannot be written; 3 if the model cannot be exported or would not answer as before.
    """
    try:
        import onnx  # noqa: F401  only this command needs it, and boards do not have it
    except ImportError as error:
        raise ConfigError(
            f"export needs the package onnx: in a clone of shoal, pip install '.[export]' ({error})"
        ) from error
    from shoal.exporter.export import STEPS
    from shoal.exporter.export import export as run
    from shoal.exporter.learnt import digest_of, read_learnt

    for word, given in (("--codec", codecs), ("--codebooks", codebooks)):
        if given and data is None:
            raise ConfigError(f"{word}: expected --calibrate DATA.npz with it, got none")

    if (model is None) == (source is None):
        raise ConfigError("export: expected either MODEL.onnx or --from-hf CONFIG_OR_DIR")
    seal = _signing().signer(key) if key else None
    chosen = dict(_size(text) for text in sizes)
    steps = len(STEPS) + len({*precisions} - {"fp32"}) + (source is not None) + (data is not None)
    with progress.shown(sys.stderr, steps) as report, ExitStack() as stack:
        if source is not None:
            check_free(bundle, force=force)
            report("export to ONNX")
            model = stack.enter_context(_from_transformers(source, bundle))
        assert model is not None
        learnt = read_learnt(codebooks, digest_of(model)) if codebooks else {}
        tables = {(*place,): book for place, book in learnt.items()}
        manifest = run(
            model,
            bundle,
            name=name,
            sizes=chosen,
            sample=sample,
            max_segments=max_segments,
            precisions=precisions,
            calibration=data,
            codecs=codecs,
            tables=tables,
            seal=seal,
            report=report,
            force=force,
        )
    click.echo(render.as_json(manifest) if as_json else render.summary(manifest))


@click.command()
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--check", is_flag=True, help="Compare every file with its digest first.")
@click.option(
    "--verify",
    "public",
    metavar="PUBLIC.pem",
    type=click.Path(path_type=Path),
    help="Refuse the bundle unless the owner of this Ed25519 key signed it; implies --check.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def inspect(bundle: Path, public: Path | None, *, check: bool, as_json: bool) -> None:
    """Print what is in a bundle: segments, bytes at each cut, and what export proved.

    Exits 0; 2 if an argument is wrong; 3 if the bundle is damaged, of another version, or not signed by
    the one who should have.
    """
    if public:
        _signing().check_signature(bundle, public)
    manifest: Manifest = check_bundle(bundle) if check or public else read_manifest(bundle)
    click.echo(render.as_json(manifest) if as_json else render.details(manifest))


@contextmanager
def _from_transformers(source: Path, bundle: Path) -> Iterator[Path]:
    """Hand out the ONNX file that a model of transformers becomes, which is removed again.

    Raises ConfigError if torch or transformers is not there.
    """
    try:
        from shoal.exporter.huggingface import to_onnx
    except ImportError as error:
        raise ConfigError(
            f"--from-hf needs torch and transformers: in a clone of shoal, pip install '.[hf]' ({error})"
        ) from error
    name = source.resolve().parent.name if source.name == "config.json" else source.resolve().stem
    try:
        folder = TemporaryDirectory(prefix=f".{bundle.name}.", dir=bundle.parent)
    except OSError as error:
        raise ConfigError(f"{bundle}: expected a place to write a bundle, got {error.strerror}") from error
    with folder as place:
        path = Path(place) / f"{name}.onnx"
        to_onnx(source, path)
        yield path


def _signing() -> ModuleType:
    """Return the module that signs and verifies.  Raises ConfigError if what it needs is not there."""
    try:
        from shoal.exporter import sign
    except ImportError as error:
        raise ConfigError(
            f"signatures need the package cryptography: in a clone of shoal, pip install '.[sign]' ({error})"
        ) from error
    return sign


def _size(text: str) -> tuple[str, int]:
    """Return the parts of `NAME=N`."""
    name, _, number = text.rpartition("=")
    if not name or not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"--size: expected NAME=N with a whole number above 0, got {text!r}")
    return name, int(number)
