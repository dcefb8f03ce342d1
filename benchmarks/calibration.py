"""What it takes to calibrate a small vision transformer: `python -m benchmarks.calibration [PICTURES]`.

`shoal export --calibrate` of the model of the tests with pictures of Fashion-MNIST and the standard codecs,
in processor time, by what it is spent on.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.accuracy import SMALL
from benchmarks.datasets import fashion
from benchmarks.record import write
from shoal.errors import ConfigError
from shoal.exporter.export import export

PICTURES = 600
ALLOWED_S = 120.0
KINDS = {
    "codebooks": "making codebooks",
    "sensitivity": "sensitivity of each exchange",
    "boards,": "answers of divided models",
    "hand one another": "collecting rows",
}
"""What the words of a report stand for, by what is in them."""
OTHER = "export itself"


class Clock:
    """A report that adds up what each kind of step takes."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*KINDS.values(), OTHER), 0.0)
        self.runs = dict.fromkeys(self.seconds, 0)
        self._kind, self._since_s = OTHER, time.process_time()

    def __call__(self, step: str, /) -> None:
        """Count what comes now as the export's own, whichever `step` it is."""
        self.detail(step)

    def detail(self, words: str, /) -> None:
        """Count what comes now as that of which these are the words."""
        self._begin(next((kind for part, kind in KINDS.items() if part in words), OTHER))

    def _begin(self, kind: str) -> None:
        now_s = time.process_time()
        self.seconds[self._kind] += now_s - self._since_s
        self._kind, self._since_s = kind, now_s
        self.runs[kind] += 1


def main() -> None:
    """Calibrate once, and write what it took."""
    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    try:
        given = fashion("train")
    except ConfigError as error:
        print(f"left out: {error}")
        return
    clock = Clock()
    with TemporaryDirectory() as name, threadpool_limits(1):
        data = Path(name) / "data.npz"
        np.savez(data, pixel_values=given.pixels[:pictures], labels=given.labels[:pictures])
        export(SMALL, Path(name) / "bundle", calibration=data, report=clock)
    clock(OTHER)
    rows = [
        {"what": kind, "seconds": clock.seconds[kind], "runs": clock.runs[kind], "pictures": pictures}
        for kind in clock.seconds
    ]
    total_s = sum(clock.seconds.values())
    for row in rows:
        print(f"{row['what']}: {row['seconds']:.1f} s in {row['runs']}")
    print(f"all: {total_s:.0f} s of {ALLOWED_S:.0f} s allowed, {pictures} pictures")
    rows.append({"what": "all", "seconds": total_s, "allowed_s": ALLOWED_S, "pictures": pictures})
    print(write("calibration", rows))


if __name__ == "__main__":
    main()
