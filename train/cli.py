"""`shoal train`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from shoal.errors import ConfigError
from shoal.train.recipe import RECIPES, Recipe, codecs_of

if TYPE_CHECKING:
    from shoal.train.run import Point, Report

LINES = 20
"""So many lines tell where no terminal shows a bar."""


@click.command()
@click.argument("model", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.argument("data", metavar="DATA.npz", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "target", metavar="TRAINED.onnx", required=True, type=click.Path(path_type=Path)
)
@click.option(
    "--recipe",
    type=click.Choice(list(RECIPES)),
    default="both",
    show_default=True,
    help="What boards hand one another: segment means (prism), codes (astra), or now one and now the other.",
)
@click.option(
    "--codec",
    "words",
    metavar="CODEC",
    multiple=True,
    help="In place of those of the recipe; may be repeated.",
)
@click.option("--boards", metavar="N-M", default="2-8", show_default=True, help="How many share a request.")
@click.option(
    "--point",
    type=click.Choice(["kv", "hidden"]),
    default="kv",
    show_default=True,
    help="What is gathered: keys and values, or the rows that they are made of.",
)
@click.option(
    "--teacher",
    metavar="OTHER.onnx",
    type=click.Path(path_type=Path),
    help="A model whose answers are taught, such as MODEL before a training.  [default: MODEL itself]",
)
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=64, show_default=True, help="Rows in a step.")
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Into so many parts these are divided, each for boards of its own.",
)
@click.option("--learning-rate", type=float, default=5e-4, show_default=True)
@click.option("--weight-decay", type=float, default=0.05, show_default=True)
@click.option("--smoothing", type=float, default=0.05, show_default=True, help="Of labels.")
@click.option(
    "--taught",
    type=float,
    default=0.5,
    show_default=True,
    help="Part of what is wanted that is the answer of the teacher, unsplit, and no label.",
)
@click.option(
    "--many",
    type=float,
    default=1.0,
    show_default=True,
    help="How much more often many boards are drawn: as often as their number to this power.",
)
@click.option(
    "--uneven", type=float, default=0.5, show_default=True, help="Part of draws with uneven shares."
)
@click.option("--exact", type=float, default=0.1, show_default=True, help="Part of draws that lose nothing.")
@click.option("--commitment", type=float, default=5e-4, show_default=True, help="Draws rows to their codes.")
@click.option(
    "--decay", type=float, default=0.99, show_default=True, help="Of the averages that codes follow."
)
@click.option(
    "--noise", type=float, default=1.0, show_default=True, help="Added to codes, of what they lose."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Of torch.  [default: as many as there are cores]"
)
@click.option("--save-every", type=click.IntRange(1), default=100, show_default=True, help="Steps.")
@click.option(
    "--resume", is_flag=True, help="Go on with a training that was stopped; --steps may be another."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def train(
    model: Path,
    data: Path,
    target: Path,
    recipe: str,
    words: Sequence[str],
    boards: str,
    point: "Point",
    teacher: Path | None,
    steps: int,
    batch: int,
    draws: int,
    learning_rate: float,
    weight_decay: float,
    smoothing: float,
    taught: float,
    many: float,
    uneven: float,
    exact: float,
    commitment: float,
    decay: float,
    noise: float,
    seed: int,
    threads: int,
    save_every: int,
    *,
    resume: bool,
    force: bool,
) -> None:
    """Fine-tune an ONNX model so that it stays right when its boards hand one another less than they have.

    DATA.npz has its inputs, stacked along the batch, and perhaps `labels` as `shoal export --calibrate`
    takes them; without these it learns to answer as it did.  Each step plays requests on numbers of boards
    with shares of their own, so one trained model serves them all.  TRAINED.onnx has the same graph
    and other weights: `shoal export --calibrate` takes it.  Needs torch; small models train on a processor.

    Exits 0; 2 if an argument or the data is wrong; 3 if the model cannot be trained; 4 if it does not take
    what a codec makes.
    """
    try:
        import torch

        from shoal.train import run
    except ImportError as error:
        raise ConfigError(
            f"train needs torch: in a clone of shoal, pip install '.[train]' ({error})"
        ) from error
    run.check_target(target, force=force)
    settings = Recipe(
        codecs=codecs_of(recipe, tuple(words)),
        boards=_boards(boards),
        many=many,
        uneven=uneven,
        exact=exact,
        steps=steps,
        batch=batch,
        draws=draws,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        smoothing=smoothing,
        taught=taught,
        commitment=commitment,
        decay=decay,
        noise=noise,
        seed=seed,
    )
    if threads:
        torch.set_num_threads(threads)
    order = run.Order(
        model=model,
        data=data,
        target=target,
        recipe=settings,
        point=point,
        teacher=teacher,
        resume=resume,
        save_every=save_every,
    )
    with _shown(sys.stderr, steps) as report:
        outcome = run.train(order, report)
    click.echo(f"{target}: {outcome.steps} steps, loss {outcome.first_loss:.4f} to {outcome.last_loss:.4f}")
    if outcome.books is not None:
        click.echo(f"{outcome.books}: the codebooks that go with it")


def _boards(words: str) -> tuple[int, int]:
    """Return the fewest and the most of `N-M`, or of `N`.  Raises ConfigError."""
    fewest, _, most = words.partition("-")
    try:
        return int(fewest), int(most or fewest)
    except ValueError as error:
        raise ConfigError(f"--boards: expected N-M or N, got {words!r}") from error


@contextmanager
def _shown(stream: TextIO, steps: int) -> "Iterator[Report]":
    """Hand out what shows how far training is: a bar on a terminal, some lines elsewhere."""
    if not stream.isatty():
        every = max(1, steps // LINES)

        def tell(step: int, loss: float) -> None:
            if step % every == 0 or step == steps:
                click.echo(f"[{step}/{steps}] loss {loss:.4f}", file=stream)

        yield tell
        return
    with click.progressbar(length=steps, file=stream, item_show_func=lambda loss: loss) as bar:
        yield lambda step, loss: bar.update(step - bar.pos, f"loss {loss:.4f}")
