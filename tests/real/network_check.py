"""Measures a network of the lab with plain sockets and prints what it found; run in a user namespace."""

import json
import sys

from shoal.lab import meter
from shoal.lab.network import Network
from shoal.lab.scenario import Shape
from shoal.lab.shaping import DESK, Wiring
from shoal.records import BoardId

A, B, C = BoardId("a"), BoardId("b"), BoardId("c")


def main() -> None:
    wiring = Wiring(
        numbers={A: 1, B: 2, C: 3, DESK: 4},
        cables={
            A: Shape(rate_bits_per_s=40e6, delay_s=5e-3),
            B: Shape(rate_bits_per_s=20e6, loss=0.02),
            C: Shape(rate_bits_per_s=40e6),
            DESK: Shape(),
        },
        links={frozenset((A, C)): Shape(rate_bits_per_s=8e6, delay_s=10e-3)},
    )
    found: dict[str, object] = {}
    with Network(wiring) as network:
        readings = meter.measure(network)
        found["readings"] = {f"{r.source} {r.target} {r.what}": [r.asked, r.got] for r in readings}
        before = network.sent_bytes()
        found["to the desk"] = _rate(network, A, DESK)
        after = network.sent_bytes()
        found["counted"] = after[A, DESK] - before[A, DESK]
        network.shape((A,), Shape(rate_bits_per_s=4e6))
        found["slowed"] = _rate(network, A, DESK)
        found["not slowed"] = _rate(network, C, DESK)
        network.shape((A, C), Shape(delay_s=30e-3))
        found["round trip after"] = _round_trip(network, A, C)
        network.part(frozenset((A, C)))
        found["within"], found["across"] = _round_trip(network, A, C), _round_trip(network, A, DESK)
        network.part(frozenset())
        found["healed"] = _round_trip(network, A, DESK)
    wiring = Wiring(
        numbers={A: 1, B: 2, C: 3, DESK: 4},
        cables={host: Shape() for host in (A, B, C, DESK)},
        air_bits_per_s=20e6,
    )
    with Network(wiring) as network:
        found["alone in the air"] = _rate(network, A, B)
        works = [lambda: _rate(network, A, B), lambda: _rate(network, C, DESK)]
        found["shared air"] = meter.at_once(works)
    sys.stdout.write(json.dumps(found) + "\n")


def _rate(network: Network, source: BoardId, target: BoardId) -> float:
    return meter.goodput(network.hosts[source], network.hosts[target], network.address(target), 0.6)


def _round_trip(network: Network, source: BoardId, target: BoardId) -> float | None:
    ends = network.hosts[source], network.hosts[target]
    seconds = meter.round_trip_s(*ends, network.address(target), probes=3, patience_s=0.3)
    return seconds if seconds < float("inf") else None


if __name__ == "__main__":
    main()
