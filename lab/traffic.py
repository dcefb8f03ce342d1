"""Messages between boards in virtual time: what each waits for, and when it arrives."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from shoal.lab.shaping import PAYLOAD_SHARE, Wiring
from shoal.profiler.goodput import SHARED_BELOW
from shoal.records import BoardId, LinkProfile

MESSAGE_S: Final = 0.3e-3
"""What software of both ends and the kernel take for one message; measured in the lab."""
FRAME_BYTES: Final = 80
"""Header and sizes of a frame with one tensor."""
WIRE_BITS_PER_S: Final = 8e9
"""Of a link that nothing limits, between two processes of this machine."""
SEGMENT_BITS: Final = 8 * 1448
MATHIS: Final = 1.22
"""TCP with a share p of packets lost carries about 1.22 segments per round trip and sqrt(p) (Mathis 1997)."""


@dataclass(frozen=True, slots=True)
class _Way:
    """What one ordered pair of hosts has between them."""

    bits_per_s: float
    delay_s: float
    shared: tuple[tuple[object, float], ...]
    """Cables, link and air on the way, in this order, each with its own rate: they carry one message at a
    time, and hand it on while it comes in."""


class Traffic:
    """All that is on its way."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self._ways: dict[tuple[BoardId, BoardId], _Way] = {}
        self._profiles: dict[object, LinkProfile | None] = {}
        self._free_s: dict[object, float] = defaultdict(float)
        self.sent_bytes: dict[tuple[BoardId, BoardId], int] = defaultdict(int)

    def rewire(self, wiring: Wiring) -> None:
        """Have another network from now on; what is on its way arrives as it would have."""
        self.wiring = wiring
        self._ways.clear()
        self._profiles.clear()

    def send(self, source: BoardId, target: BoardId, size_bytes: int, now_s: float) -> float:
        """Return when a message arrives that is sent now; infinite if it cannot get through."""
        way = self._ways.get((source, target)) or self._way(source, target)
        if math.isinf(way.delay_s):
            return math.inf
        bits = 8 * (size_bytes + FRAME_BYTES)
        free_s = self._free_s
        begin_s = end_s = now_s
        for resource, rate in way.shared:
            begin_s = max(begin_s, free_s[resource])
            free_s[resource] = begin_s + bits / rate
            end_s = max(end_s, free_s[resource])
        self.sent_bytes[source, target] += int(size_bytes / PAYLOAD_SHARE) + FRAME_BYTES
        return max(end_s, begin_s + bits / way.bits_per_s) + way.delay_s + MESSAGE_S

    def profile(self, source: BoardId, target: BoardId) -> LinkProfile | None:
        """Return what `source` would measure towards `target`; None if nothing comes back."""
        wiring = self.wiring
        alike: object = (source, target)
        if not wiring.links and not wiring.apart:  # all pairs with such cables have the same
            alike = (wiring.cables[source], wiring.cables[target])
        if alike not in self._profiles:
            there, back = self._way(source, target), self._way(target, source)
            rtt_s = there.delay_s + back.delay_s + 2 * MESSAGE_S
            self._profiles[alike] = (
                None
                if math.isinf(rtt_s)
                else LinkProfile(
                    rtt_s=rtt_s, goodput_bytes_per_s=there.bits_per_s / 8, shared=self._shares_air(there)
                )
            )
        return self._profiles[alike]

    def _shares_air(self, way: _Way) -> bool:
        """Say whether the air would slow down as much again the other way at the same time."""
        air_bits_per_s = self.wiring.air_bits_per_s
        if air_bits_per_s is None:
            return False
        return air_bits_per_s * PAYLOAD_SHARE / 2 < SHARED_BELOW * way.bits_per_s

    def _way(self, source: BoardId, target: BoardId) -> _Way:
        found = self._ways.get((source, target))
        if found is None:
            found = self._ways[source, target] = self._look(source, target)
        return found

    def _look(self, source: BoardId, target: BoardId) -> _Way:
        wiring = self.wiring
        if not wiring.connected(source, target):
            return _Way(bits_per_s=WIRE_BITS_PER_S, delay_s=math.inf, shared=())
        link = wiring.links.get(frozenset((source, target)))
        rates = {
            ("out", source): wiring.cables[source].rate_bits_per_s,
            ("in", target): wiring.cables[target].rate_bits_per_s,
            ("link", source, target): link.rate_bits_per_s if link else None,
            ("air",): wiring.air_bits_per_s,
        }
        shared = tuple((what, rate * PAYLOAD_SHARE) for what, rate in rates.items() if rate is not None)
        narrow = min((rate for _, rate in shared), default=WIRE_BITS_PER_S)
        delay_s, loss = wiring.delay_s(source, target), wiring.loss(source, target)
        if loss:
            rtt_s = delay_s + wiring.delay_s(target, source) + 2 * MESSAGE_S
            narrow = min(narrow, MATHIS * SEGMENT_BITS / (rtt_s * math.sqrt(loss)))
        return _Way(bits_per_s=narrow, delay_s=delay_s, shared=shared)
