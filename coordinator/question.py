"""All that the choice of a plan depends on: what is asked of the planner, and of all its parts.  Pure."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from shoal.coordinator.accuracy import EXACT, Recipe
from shoal.coordinator.cost import Barred, Profiles, link, predict
from shoal.coordinator.goals import Goal
from shoal.coordinator.grades import Grade, manifest_in, plain, precision_of, profile_in
from shoal.coordinator.watts import Powers
from shoal.coordinator.wires import Cells, cells_of
from shoal.manifest import Manifest, Precision
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
    grades: tuple[Grade, ...] = ()
    """Other precisions of the weights that may be used."""
    margin: float = 0.0
    """Several boards must be better than one by this share, for predictions err, and no plan is to be slower
    than one board; so must weights in another precision than given be better than those."""
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

    @cached_property
    def _others(self) -> dict[Precision | None, "Question"]:
        return {}

    def in_precision(self, precision: Precision | None) -> "Question":
        """Return the question about a bundle that has this precision only; None: what was given.

        There all segments have the names that they have as given.
        """
        if not self.manifest.variants:
            return self
        if precision not in self._others:
            grade = next((each for each in self.grades if each.precision == precision), None)
            self._others[precision] = replace(
                self,
                manifest=manifest_in(self.manifest, precision),
                profiles={b: profile_in(self.manifest, precision, p) for b, p in self.profiles.items()},
                recipes=self.recipes if grade is None else grade.recipes,
                grades=(),
            )
        return self._others[precision]

    def predict(self, lead: BoardId, lanes: tuple[Lane, ...]) -> Prediction:
        """Return what a request costs in a plan of these lanes; errors as `cost.predict`."""
        asked = self.in_precision(precision_of(self.manifest, lanes))
        return predict(
            asked.manifest,
            asked.profiles,
            asked.barred,
            lead,
            plain(self.manifest, lanes),
            self.cells,
            self.powers,
        )
