"""What the controller knows, and what it can do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.coordinator.ahead import Ahead, Outlook
from shoal.coordinator.crowd import Crowd
from shoal.coordinator.experience import Experience, Record, Trial, Who
from shoal.coordinator.fleet import Fleet
from shoal.coordinator.weigh import Ranking, Settings
from shoal.manifest import Manifest
from shoal.messages import Decision, Deployment, Desired
from shoal.program import Plan
from shoal.records import BoardId, Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A plan on its way in."""

    plan: Plan
    since_s: float
    cleared: bool
    """The boards may load: nothing of the old plan is in the way."""
    proving: bool = False
    """All boards are ready, and the lead is to prove the plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """All that the controller knows."""

    incarnation: int
    settings: Settings
    calendar_s: float = 0.0
    """What to add to a time of the coordinator's clock for seconds since 1970."""
    connected: bool = False
    fleet: Fleet = field(default_factory=Fleet)
    deployment: Deployment | None = None
    deployed_s: float = 0.0
    manifest: Manifest | None = None
    """Of the deployed bundle; None until the bundle is here."""
    unreadable: str = ""
    """Why the manifest that is here cannot be read, if it cannot."""
    serving: Plan | None = None
    draining: Plan | None = None
    pending: Pending | None = None
    epoch: int = 0
    """The highest ever seen."""
    switched_s: float | None = None
    dwell_s: float = 0.0
    lost_s: float | None = None
    """Since when the plan in force is not what it was (see `dwell`); None: it is."""
    left: Mapping[Who, float] = field(default_factory=dict)
    """When plans were left for that."""
    given_up: Mapping[tuple[object, ...], float] = field(default_factory=dict)
    """When a plan of that shape could not be prepared."""
    wrong: frozenset[tuple[object, ...]] = frozenset()
    """Shapes of plans that answered the golden request wrongly."""
    trial: Trial | None = None
    """What the plan in force has shown so far."""
    experience: Experience = field(default_factory=dict)
    """What strategies turned out to be worth."""
    record: Record = field(default_factory=dict)
    """What plans took when they ran, over what was predicted of them."""
    crowd: Crowd = field(default_factory=Crowd)
    """Whether requests wait for one another under the plan in force."""
    cause: str = "start"
    """What happened last that could call for another plan."""
    ranking: Ranking | None = None
    outlook: Outlook | None = None
    """What was worked out so far of plans to come."""
    ahead: Ahead = field(default_factory=dict)
    """What boards are to have on their disks for plans to come."""
    decision: Decision | None = None
    desired: Mapping[BoardId, Desired] = field(default_factory=dict)
    """What was last said to each board."""

    @property
    def bundle(self) -> Sha256 | None:
        """Return the digest of the deployed bundle's manifest; None: nothing is deployed."""
        return self.deployment.bundle.manifest if self.deployment else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Say:
    """Publish what is desired of a board."""

    board: BoardId
    message: Desired


@dataclass(frozen=True, slots=True, kw_only=True)
class Tell:
    """Publish the plan in force or the decision, for whoever listens."""

    message: Plan | Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Retract:
    """Clear the published plan: none is in force."""


Effect = Say | Tell | Retract
