"""Trains the weights of one sharding, step by step, while its boards hand one another less than they have."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from shoal.errors import ModelError, PlanError
from shoal.exporter.data import Data
from shoal.exporter.judge import LABELS
from shoal.exporter.learnt import Place, key_of, place_of
from shoal.manifest import Sharding
from shoal.records import Array, BoardId
from shoal.sharding import programs
from shoal.train.crossing import Crossing
from shoal.train.draws import Draw, draw
from shoal.train.files import same_answers
from shoal.train.network import Network
from shoal.train.objective import from_answers, from_labels
from shoal.train.playing import play
from shoal.train.quantiser import Quantiser
from shoal.train.recipe import Recipe
from shoal.train.together import ANY_MEANS, Together

LARGEST_GRADIENT = 1.0
"""The length to which the gradient of all weights together is cut."""
TOLERANCE = 1e-4
"""How far boards played at once may be from each played by itself, as a part of the largest number."""
State = dict[str, object]


class Tuning:
    """A model in training.  Everything that is drawn follows from the recipe's seed and the step."""

    def __init__(
        self,
        sharding: Sharding,
        network: Network,
        outputs: Sequence[str],
        recipe: Recipe,
        books: Mapping[Place, Array],
    ) -> None:
        """Take the network of a sharding, and codebooks for all places that the recipe's codecs code at."""
        self._sharding, self._network, self._outputs, self._recipe = sharding, network, outputs, recipe
        self._quantisers = {place: Quantiser(book, decay=recipe.decay) for place, book in books.items()}
        wide = [tensor for tensor in network.trained.values() if tensor.ndim > 1]
        narrow = [tensor for tensor in network.trained.values() if tensor.ndim <= 1]
        self._optimiser = torch.optim.AdamW(
            [
                {"params": wide, "weight_decay": recipe.weight_decay},
                {"params": narrow, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
        )
        self._together: Together | None = None
        self.step = 0
        """How many steps were made."""

    def quicken(self, inputs: Mapping[str, Array]) -> bool:
        """Play all boards at once from now on, if that answers `inputs` as each by itself does; say so."""
        chosen = Draw(shares=(0.5, 0.2, 0.3)[: self._sharding.units], codec=ANY_MEANS)
        try:
            together = Together(self._sharding, self._network)
            apart = self.answer(inputs, chosen)
            self._together = together
            wrong = same_answers(apart, self.answer(inputs, chosen), TOLERANCE)
        except (PlanError, ModelError) as error:
            wrong = str(error)
        if wrong:
            self._together = None
        return not wrong

    def learn(self, data: Data, before: Mapping[str, Array]) -> float:
        """Make one step on some rows and return the loss; `before` is what the model answered to them once.

        Raises ModelError if the loss is not a finite number.
        """
        recipe, step = self._recipe, self.step
        random = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        self._optimiser.zero_grad()
        found = 0.0
        for number, rows in enumerate(np.array_split(np.arange(data.rows), min(recipe.draws, data.rows))):
            chosen = draw(recipe, step * recipe.draws + number, self._sharding.units)
            part = len(rows) / data.rows
            answered = {name: array[rows] for name, array in before.items()}
            loss = self._loss(data.some(rows), answered, chosen, random)
            found += part * float(loss.detach())
            if not np.isfinite(found):
                raise ModelError(
                    f"train: step {step}: expected a finite loss, got {found}; lower --learning-rate"
                )
            drawn = [quantiser.commitment() for quantiser in self._quantisers.values()]
            if drawn:
                loss = loss + recipe.commitment * torch.stack(drawn).sum()
            (part * loss).backward()
        for group in self._optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        torch.nn.utils.clip_grad_norm_(list(self._network.trained.values()), LARGEST_GRADIENT)
        self._optimiser.step()
        with torch.no_grad():
            for quantiser in self._quantisers.values():
                quantiser.follow(random)
        self.step += 1
        return found

    def _loss(
        self, data: Data, before: Mapping[str, Array], chosen: Draw, random: torch.Generator
    ) -> torch.Tensor:
        answers = self._answers(data.inputs, chosen, random, self._recipe.noise)
        if LABELS not in data.truth:
            return from_answers(answers, before)
        recipe = self._recipe
        return from_labels(answers, data.truth[LABELS], recipe.smoothing, before, recipe.taught)

    def answer(self, inputs: Mapping[str, Array], chosen: Draw) -> dict[str, Array]:
        """Return what the boards of a draw answer with the weights as they are now."""
        with torch.no_grad():
            found = self._answers(inputs, chosen, torch.Generator(), 0.0)
        for quantiser in self._quantisers.values():
            quantiser.forget()
        return {name: np.array(tensor.numpy()) for name, tensor in found.items()}

    def books(self) -> dict[Place, Array]:
        """Return the codebooks as they are now."""
        return {place: quantiser.books() for place, quantiser in self._quantisers.items()}

    def state(self) -> State:
        """Return what has to be kept to go on later."""
        return {
            "step": self.step,
            "weights": {name: tensor.detach() for name, tensor in self._network.trained.items()},
            "optimiser": self._optimiser.state_dict(),
            "codes": {key_of(place): one.state() for place, one in self._quantisers.items()},
        }

    def restore(self, state: State) -> None:
        """Go on from what `state` returned for the same model, recipe and codebooks."""
        weights, codes = state["weights"], state["codes"]
        assert isinstance(weights, dict)
        assert isinstance(codes, dict)
        with torch.no_grad():
            for name, tensor in self._network.trained.items():
                tensor.copy_(weights[name])
        self._optimiser.load_state_dict(state["optimiser"])
        for place, quantiser in self._quantisers.items():
            quantiser.restore(codes[key_of(place)])
        step = state["step"]
        assert isinstance(step, int)
        self.step = step

    def _answers(
        self, inputs: Mapping[str, Array], chosen: Draw, random: torch.Generator, noise: float
    ) -> dict[str, torch.Tensor]:
        crossing = Crossing(self._sharding.name, self._quantisers, random, noise)
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if self._together is not None:
            found = self._together.play(tensors, chosen.shares, chosen.codec, crossing)
        else:
            boards = names(len(chosen.shares))
            steps = programs(self._sharding, boards, boards[0], chosen.shares, chosen.codec)
            found = play(self._network, steps, boards[0], tensors, crossing)
        return {name: found[name] for name in self._outputs}


def books_in(state: State) -> dict[Place, Array]:
    """Return the codebooks in what `Tuning.state` returned."""
    codes = state["codes"]
    assert isinstance(codes, dict)
    return {
        place_of(key, "training"): np.stack([one[f"codes{stage}"].numpy() for stage in range(len(one) // 3)])
        for key, one in codes.items()
    }


def names(count: int) -> tuple[BoardId, ...]:
    """Return names for so many boards; the first is the lead."""
    return tuple(BoardId(f"board-{index}") for index in range(count))
