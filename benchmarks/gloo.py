"""One rank of the published baseline, for `benchmarks.peers`: torch.distributed with Gloo, eager, one thread.

    python -m benchmarks.gloo SCHEME RANK RANKS HOST PORT WEIGHTS TOKENS REQUESTS

positions  Voltage: each rank has its rows of tokens; before each layer all ranks gather all hidden rows, and
           each projects keys and values of all of them (Hu and Li, ICDCS 2024)
heads      Megatron-LM: each rank has its heads and its columns of the feed-forward network; all add up
           their parts twice a layer (Shoeybi et al., arXiv 1909.08053, section 3)

WEIGHTS are the arrays of the model, in the order of the graph.  Rank 0 has the token ids; it writes a line of
JSON with the seconds of each request and the logits of the last to standard output.
"""

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional

from benchmarks.question import question

HEAD = 64
"""Values of a head."""
WARM_UP = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The weights of a pre-norm layer; matrices are [in, out]."""

    norms: Sequence[tuple[Tensor, Tensor]]
    q: tuple[Tensor, Tensor]
    k: tuple[Tensor, Tensor]
    v: tuple[Tensor, Tensor]
    joined: tuple[Tensor, Tensor]
    wide: tuple[Tensor, Tensor]
    narrow: tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The weights of tests.models.tiny_transformer."""

    embedding: Tensor
    layers: Sequence[Layer]
    norm: tuple[Tensor, Tensor]
    head: tuple[Tensor, Tensor]


def load(path: Path) -> Model:
    """Return the model whose float arrays are in `path`, in the order of the graph."""
    with np.load(path) as arrays:
        found = iter([torch.from_numpy(arrays[f"arr_{number}"]) for number in range(len(arrays.files))])
        count = (len(arrays.files) - 6) // 16

    def pair(source: Iterator[Tensor] = found) -> tuple[Tensor, Tensor]:
        return next(source), next(source)

    embedding, layers = next(found), []
    for _ in range(count):
        first, q, k, v, joined, second, wide, narrow = (pair() for _ in range(8))
        layers.append(Layer(norms=(first, second), q=q, k=k, v=v, joined=joined, wide=wide, narrow=narrow))
    norm, (weight, bias) = pair(), pair()
    return Model(embedding=embedding, layers=layers, norm=norm, head=(weight, bias + next(found)))


def cut(layer: Layer, rank: int, ranks: int) -> Layer:
    """Return the part of a rank: its heads, and its columns; biases of sums are the first rank's."""

    def columns(pair: tuple[Tensor, Tensor], unit: int = HEAD) -> tuple[Tensor, Tensor]:
        size = pair[0].shape[1] // unit // ranks * unit
        mine = slice(rank * size, (rank + 1) * size)
        return pair[0][:, mine].contiguous(), pair[1][mine].contiguous()

    def rows(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        size = pair[0].shape[0] // ranks
        bias = pair[1] if rank == 0 else torch.zeros_like(pair[1])
        return pair[0][rank * size : (rank + 1) * size].contiguous(), bias

    return Layer(
        norms=layer.norms,
        q=columns(layer.q),
        k=columns(layer.k),
        v=columns(layer.v),
        joined=rows(layer.joined),
        wide=columns(layer.wide, 1),
        narrow=rows(layer.narrow),
    )


def linear(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    return torch.addmm(pair[1], x, pair[0])


def normed(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], *pair)


def attention(x: Tensor, whole: Tensor, layer: Layer) -> Tensor:
    """Return what rows `x` [rows, hidden] get from all rows `whole`, both normed."""
    q, k, v = (
        linear(rows, pair).unflatten(1, (-1, HEAD)).transpose(0, 1)
        for rows, pair in ((x, layer.q), (whole, layer.k), (whole, layer.v))
    )
    mixed = functional.scaled_dot_product_attention(q, k, v)
    return linear(mixed.transpose(0, 1).flatten(1), layer.joined)


def feed_forward(x: Tensor, layer: Layer) -> Tensor:
    return linear(functional.gelu(linear(x, layer.wide)), layer.narrow)


def positions(model: Model, ids: Tensor, rank: int, ranks: int) -> Tensor:
    """Return the logits, each rank having its rows of tokens; Gloo gathers pieces of one size only."""
    most = math.ceil(len(ids) / ranks)
    sizes = [min(most, len(ids) - most * number) for number in range(ranks)]
    x = model.embedding[ids[rank * most : rank * most + sizes[rank]]]
    for layer in model.layers:
        pieces = [torch.empty(most, x.shape[1]) for _ in range(ranks)]
        distributed.all_gather(pieces, functional.pad(x, (0, 0, 0, most - len(x))))
        whole = torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])
        x = x + attention(normed(x, layer.norms[0]), normed(whole, layer.norms[0]), layer)
        x = x + feed_forward(normed(x, layer.norms[1]), layer)
    total = normed(x, model.norm).sum(0)
    distributed.all_reduce(total)
    return linear((total / len(ids))[None], model.head)


def heads(model: Model, ids: Tensor, rank: int, ranks: int) -> Tensor:  # noqa: ARG001  those of `positions`
    """Return the logits, each rank having its heads and columns of a model that was cut."""
    x = model.embedding[ids]
    for layer in model.layers:
        rows = normed(x, layer.norms[0])
        part = attention(rows, rows, layer)
        distributed.all_reduce(part)
        x = x + part
        part = feed_forward(normed(x, layer.norms[1]), layer)
        distributed.all_reduce(part)
        x = x + part
    return linear(normed(x, model.norm).mean(0, keepdim=True), model.head)


def main() -> None:
    """Be a rank."""
    scheme, *numbers = sys.argv[1:]
    rank, ranks, host, port, weights, tokens, requests = numbers
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://{host}:{port}", rank=int(rank), world_size=int(ranks)
    )
    model = load(Path(weights))
    if scheme == "heads":
        layers = [cut(layer, int(rank), int(ranks)) for layer in model.layers]
        model = Model(embedding=model.embedding, layers=layers, norm=model.norm, head=model.head)
    answer = {"positions": positions, "heads": heads}[scheme]
    ids = torch.from_numpy(question(int(tokens))[0])
    seconds = []
    with torch.inference_mode():
        for number in range(WARM_UP + int(requests)):
            begun_s = time.perf_counter()
            asked = ids.clone() if rank == "0" else torch.empty_like(ids)
            distributed.broadcast(asked, 0)
            logits = answer(model, asked, int(rank), int(ranks))
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - begun_s)
    if rank == "0":
        print(json.dumps({"seconds": seconds, "logits": logits.tolist()}))


if __name__ == "__main__":
    main()
