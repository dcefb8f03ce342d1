"""How true links are: estimates against shaped rates, time until a drop is noticed, false alarms.

    python -m benchmarks.links [--steady SECONDS] [--left 'CMD' --right 'CMD' --address HOST --shape 'CMD']

Two hosts of the lab's network, which takes no root, stand at the ends of a cable.  To run through another
network, give the commands that start a program at its two ends, the right end's address, and a command that
shapes it, in which {rate} (Mbit/s) and {delay} (ms, one way) are filled in.
"""

import argparse
import asyncio
import json
import secrets
import shlex
import subprocess
import sys
import threading
import time
from typing import Protocol

import numpy as np

from benchmarks.record import write
from shoal import frames
from shoal.agent.inbox import Inbox
from shoal.agent.link_watch import LinkWatch
from shoal.agent.peers import Peers
from shoal.frames import Header
from shoal.lab.namespaces import rerun_in_user_namespace
from shoal.lab.network import Network
from shoal.lab.scenario import Shape
from shoal.lab.shaping import DESK, Wiring
from shoal.messages import Airtime
from shoal.records import Address, BoardId

LEFT, RIGHT = BoardId("left"), BoardId("right")
PORT = 7077
SIZES = (65_536, 131_072, 262_144, 600_000)
SETTLE_S = 3.0
BUSY_S = 8.0
DELAYS_MS = (2.0, 10.0)
"""One way."""


def serve(host: str) -> None:
    """Take tensors at the right end, for ever."""

    def begin(header: Header, peer: BoardId) -> Inbox:
        awaited = frozenset({(header.tag, peer, header.chunk)})
        inbox, _ = peers.inboxes.open(header.attempt, frozenset({peer}), awaited)
        threading.Timer(0.5, peers.inboxes.close, (header.attempt,)).start()
        return inbox

    peers = Peers("bench", RIGHT, begin)
    peers.listen(host, PORT)
    print("up", flush=True)
    threading.Event().wait()


def drive(host: str, seconds: float, pause_s: float) -> None:
    """Send tensors from the left end, none if the pause is below 0, and print estimates as JSON."""

    def refuse(header: Header, peer: BoardId) -> Inbox:
        raise AssertionError(f"{peer} began {header}")

    peers = Peers("bench", LEFT, refuse)
    peers.know({RIGHT: Address(host=host, data_port=PORT, http_port=PORT)})

    def told() -> None:
        found = watch.links.get(RIGHT)
        if found is not None:
            line = {
                "at_s": time.monotonic(),
                "mbit_per_s": found.goodput_bytes_per_s * 8e-6,
                "rtt_ms": found.rtt_s * 1e3,
            }
            print(json.dumps(line), flush=True)

    def say(message: Airtime) -> bool:
        watch.air(LEFT, message)
        return True

    watch = LinkWatch(LEFT, 1, peers, told, say)
    until_s = time.monotonic() + seconds

    def load() -> None:
        random = np.random.default_rng(0)
        while not watch.links:
            time.sleep(0.01)
        while time.monotonic() < until_s:
            tensor = np.zeros(int(random.choice(SIZES)), dtype=np.uint8)
            attempt = secrets.token_bytes(16)  # the right end knows those of trials before, and drops them
            peers.send(RIGHT, frames.tensors([tensor], attempt=attempt, epoch=1, lane=0, tag=0))
            time.sleep(pause_s)

    if pause_s >= 0:
        threading.Thread(target=load, daemon=True).start()

    async def life() -> None:
        task = asyncio.ensure_future(watch.run(lambda: frozenset({RIGHT})))
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(life())


class Ends(Protocol):
    """The two ends of a link that can be shaped."""

    address: str
    """Of the right end."""

    def start(self, end: BoardId, *words: str) -> "subprocess.Popen[str]":
        """Start this program at an end."""
        ...

    def shape(self, rate: float, delay_ms: float) -> None:
        """Let so many Mbit/s through, each way that much later."""
        ...


class Lab:
    """Two hosts of the lab."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.address = network.address(RIGHT)

    def start(self, end: BoardId, *words: str) -> "subprocess.Popen[str]":
        """Start this program in the end's namespace."""
        command = [sys.executable, "-m", "benchmarks.links", *words]
        enter = self._network.hosts[end].enter
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=enter)

    def shape(self, rate: float, delay_ms: float) -> None:
        """Shape both cables; each has half of the delay."""
        for end in (LEFT, RIGHT):
            self._network.shape((end,), Shape(rate_bits_per_s=rate * 1e6, delay_s=delay_ms / 2e3))


class Elsewhere:
    """Two ends that others made."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._prefixes = {LEFT: chosen.left, RIGHT: chosen.right}
        self._command = chosen.shape
        self.address = chosen.address

    def start(self, end: BoardId, *words: str) -> "subprocess.Popen[str]":
        """Start this program behind the end's command."""
        command = [*shlex.split(self._prefixes[end]), sys.executable, "-m", "benchmarks.links", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def shape(self, rate: float, delay_ms: float) -> None:
        """Run the command that shapes."""
        burst = max(16, round(0.75e-3 * rate * 1e6 / 8 / 1024) + 2)  # less under-delivers, more lets pass
        command = self._command.format(rate=f"{rate:g}", delay=f"{delay_ms:g}", burst=burst)
        subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)


def lines(process: "subprocess.Popen[str]") -> list[dict[str, float]]:
    assert process.stdout is not None
    return [json.loads(line) for line in process.stdout]


class Trial:
    """One network and what was found on it."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.rows: list[object] = []

    def drive(self, seconds: float, pause_s: float) -> "subprocess.Popen[str]":
        """Send tensors from the left end for a while."""
        return self.ends.start(LEFT, "drive", self.ends.address, str(seconds), str(pause_s))

    def estimate(self, rate: float, delay_ms: float, pause_s: float) -> None:
        """Compare what is known after three seconds with how the link is shaped."""
        self.ends.shape(rate, delay_ms)
        found = lines(self.drive(SETTLE_S, pause_s))
        row: dict[str, object] = {
            "what": "estimate after 3 s",
            "carries": "tensors" if pause_s >= 0 else "nothing",
            "shaped_mbit_per_s": rate,
            "shaped_rtt_ms": 2 * delay_ms,
            **({k: found[-1][k] for k in ("mbit_per_s", "rtt_ms")} if found else {}),
        }
        if found:
            ratio = found[-1]["mbit_per_s"] / rate
            row["rate_ratio"] = ratio
            row["met"] = abs(ratio - 1) <= 0.1 and (
                not delay_ms or abs(found[-1]["rtt_ms"] / (2 * delay_ms) - 1) <= 0.1
            )
        self.add(row)

    def drop(self, delay_ms: float) -> None:
        """See how long it takes until a drop from 100 to 10 Mbit/s is told."""
        self.ends.shape(100, delay_ms)
        process = self.drive(BUSY_S + 5, 0.02)
        time.sleep(BUSY_S)
        dropped_s = time.monotonic()
        self.ends.shape(10, delay_ms)
        found = [line for line in lines(process) if line["at_s"] > dropped_s and line["mbit_per_s"] < 50]
        self.add(
            {
                "what": "drop from 100 to 10 Mbit/s under load",
                "shaped_rtt_ms": 2 * delay_ms,
                "noticed_after_s": found[0]["at_s"] - dropped_s if found else None,
                "told_mbit_per_s": found[0]["mbit_per_s"] if found else None,
                "met": bool(found) and found[0]["at_s"] - dropped_s <= 1.0,
            }
        )

    def steady(self, seconds: float, delay_ms: float) -> None:
        """Count what is told of a link that stays as it is, under load."""
        self.ends.shape(100, delay_ms)
        found = lines(self.drive(seconds, 0.05))
        self.add(
            {
                "what": "steady load at 100 Mbit/s",
                "seconds": seconds,
                "told": len(found),
                "told_after_settling": max(0, len([f for f in found if f["at_s"] > found[0]["at_s"] + 5])),
                "estimates_mbit_per_s": [round(f["mbit_per_s"], 1) for f in found],
                "met": all(f["at_s"] <= found[0]["at_s"] + 5 for f in found),
            }
        )

    def add(self, row: dict[str, object]) -> None:
        """Keep a row."""
        print(row, flush=True)
        self.rows.append(row)


def run(ends: Ends, steady_s: float) -> list[object]:
    """Make all trials between two ends."""
    trial = Trial(ends)
    served = ends.start(RIGHT, "serve", ends.address)
    assert served.stdout is not None
    served.stdout.readline()
    try:
        for delay_ms in DELAYS_MS:
            for rate in (10, 50, 100, 250):
                for pause_s in (-1.0, 0.02):
                    trial.estimate(rate, delay_ms, pause_s)
        if steady_s:
            for _ in range(5):
                trial.drop(DELAYS_MS[0])
            trial.steady(steady_s, DELAYS_MS[0])
    finally:
        served.terminate()
        served.wait()
    return trial.rows


def main() -> None:
    """Run all and write the rows."""
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2])
    if sys.argv[1:2] == ["drive"]:
        drive(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--steady", type=float, default=60.0, help="Seconds without a change; 0: only estimates are compared."
    )
    parser.add_argument("--name", default="links", help="Of the file of results.")
    for name in ("left", "right", "address", "shape"):
        parser.add_argument(f"--{name}")
    chosen = parser.parse_args()
    if chosen.shape:
        rows = run(Elsewhere(chosen), chosen.steady)
    else:
        rerun_in_user_namespace(sys.argv[1:], module="benchmarks.links")
        cables = {LEFT: Shape(), RIGHT: Shape(), DESK: Shape()}
        with Network(Wiring(numbers={LEFT: 1, RIGHT: 2, DESK: 3}, cables=cables)) as network:
            rows = run(Lab(network), chosen.steady)
    print(write(chosen.name, rows))


if __name__ == "__main__":
    main()
