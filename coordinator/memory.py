"""What a coordinator would miss if the broker forgot it while both were down, in a file."""

import logging
from dataclasses import dataclass
from pathlib import Path

from shoal.encoding import from_json, to_json
from shoal.errors import WireError
from shoal.messages import Deployment
from shoal.program import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remembered:
    incarnation: int
    deployment: Deployment | None
    plan: Plan | None


def file_of(folder: Path, cluster: str) -> Path:
    """Return the file in `folder` in which the coordinator of `cluster` remembers."""
    return folder / f"memory-{cluster}.json"


class Memory:
    """What this coordinator would miss if the broker forgot it while both were down, in a file."""

    def __init__(self, file: Path) -> None:
        """Read `file`; one that is missing or spoilt is as good as none."""
        self._file = file
        self._kept = _Remembered(incarnation=0, deployment=None, plan=None)
        try:
            self._kept = from_json(_Remembered, file.read_bytes(), str(file))
        except FileNotFoundError:
            log.debug("%s: nothing to remember", file)
        except (OSError, WireError) as error:
            log.warning("nothing is remembered: %s", error)

    @property
    def incarnation(self) -> int:
        """Return that of the last life; 0 if there was none."""
        return self._kept.incarnation

    @property
    def deployment(self) -> Deployment | None:
        """Return what was deployed."""
        return self._kept.deployment

    @property
    def plan(self) -> Plan | None:
        """Return the plan that was in force."""
        return self._kept.plan

    def keep(self, incarnation: int, deployment: Deployment | None, plan: Plan | None) -> None:
        """Remember these, if they are not what is remembered already."""
        now = _Remembered(incarnation=incarnation, deployment=deployment, plan=plan)
        if now == self._kept:
            return
        self._kept = now
        fresh = self._file.with_suffix(".new")
        try:
            fresh.write_bytes(to_json(now))
            fresh.replace(self._file)
        except OSError as error:
            log.warning("%s: not remembered: %s", self._file, error.strerror)
