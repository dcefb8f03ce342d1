"""All that the choice of a plan depends on: what is asked of the planner, and of all its parts.  Pure."""

from dataclasses import dataclass, field
from functools import cached_property

from shoal.coordinator.accuracy import EXACT, Recipe
from shoal.coordinator.cost import Barred, Profiles, link, predict
from shoal.coordinator.goals import Goal
from shoal.coordinator.watts import Powers
from shoal.coordinator.wires import Cells, cells_of
from shoal.manifest import Manifest
from shoal.messages import NO_LIMITS, Limits, Objective
from shoal.program import Lane, Plan, Prediction
from shoal.records import BoardId, LinkProfile


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a plan is for, and what there is to make it of; equal questions have the same answer."""

    manifest: Manifest
    profiles: Profiles
    barred: Barred
    objective: Objective
    max_boards: int
    """0: all."""
    recipes: tuple[Recipe, ...] = EXACT
    """Those that may be used where boards exchange rows."""
    margin: float = 0.0
    """Several boards must be better than one by this share: predictions err, and no plan is to be slower
    than one board."""
    limits: Limits = NO_LIMITS
    powers: Powers = field(default_factory=dict)
    """What all boards take; nothing if that does not matter."""
    priced: dict[int, tuple[Plan, Prediction]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )
    """What plans in force cost, by epoch, as far as it has been worked out: it is asked again and again."""

    @cached_property
    def goal(self) -> Goal:
        """Return by what plans are compared."""
        return Goal(objective=self.objective, limits=self.limits, powers=self.powers)

    @cached_property
    def cells(self) -> Cells:
        """Return which boards share a medium."""
        return cells_of(self.profiles)

    @property
    def limit(self) -> int:
        """Return how many boards a plan may have at most."""
        return self.max_boards or len(self.profiles)

    def link(self, source: BoardId, target: BoardId) -> LinkProfile | None:
        """Return what is known of a link; None if it cannot be used."""
        return link(self.profiles, self.barred, source, target)

    def cost(self, predicted: Prediction) -> float:
        """Return the figure that is to be low, see `goals.cost`."""
        return self.goal.cost(predicted)

    def predict(self, lead: BoardId, lanes: tuple[Lane, ...]) -> Prediction:
        """Return what a request costs in a plan of these lanes; errors as `cost.predict`."""
        return predict(self.manifest, self.profiles, self.barred, lead, lanes, self.cells, self.powers)
