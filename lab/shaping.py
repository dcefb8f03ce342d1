"""The arithmetic of shaping: from what is asked of the network to what `tc` and `iptables` are told.

Learned by measuring: a token bucket must hold little, or a short message passes as if there were no limit,
but a bucket of one packet under-delivers, since the tokens of a late timer are lost.  Large packets that the
card would cut (GSO) keep the machine able to carry the traffic, if none is longer than a slot of the rate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from shoal.lab.scenario import Scenario, Shape, over
from shoal.records import BoardId

DESK: Final = BoardId("desk")
"""The host of broker, coordinator and clients; its cable has no limits."""
SLOT_S: Final = 500e-6
"""Everything is paced to so much time."""
QUEUE_S: Final = 0.05
"""A queue holds so much of its rate before it drops."""
LEAST_BURST: Final = 3100
"""Two packets of an Ethernet."""
LARGEST_PACKET: Final = 65536
PAYLOAD_SHARE: Final = 1448 / 1514
"""Of what `tc` counts, what TCP carries: 66 bytes of each full packet are headers."""
UNLIMITED: Final = 10e9
"""Rate of a class without a limit of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What is asked of the network as a whole; hosts are known by their number, from 1."""

    numbers: Mapping[BoardId, int]
    cables: Mapping[BoardId, Shape]
    links: Mapping[frozenset[BoardId], Shape] = field(default_factory=dict)
    air_bits_per_s: float | None = None
    apart: frozenset[BoardId] = frozenset()
    """These reach only each other."""

    def pairs(self) -> Iterator[tuple[BoardId, BoardId]]:
        """Yield all ordered pairs of hosts."""
        for source in self.numbers:
            for target in self.numbers:
                if source != target:
                    yield source, target

    def rate(self, source: BoardId, target: BoardId) -> float | None:
        """Return the narrowest rate on the way in bits/s; None if nothing limits it."""
        link = self.links.get(frozenset((source, target)), Shape())
        cables = (self.cables[source].rate_bits_per_s, self.cables[target].rate_bits_per_s)
        known = [r for r in (link.rate_bits_per_s, *cables, self.air_bits_per_s) if r is not None]
        return min(known, default=None)

    def delay_s(self, source: BoardId, target: BoardId) -> float:
        """Return the one-way delay: that of the link, else those of both cables together."""
        link = self.links.get(frozenset((source, target)), Shape())
        if link.delay_s is not None:
            return link.delay_s
        return (self.cables[source].delay_s or 0.0) + (self.cables[target].delay_s or 0.0)

    def loss(self, source: BoardId, target: BoardId) -> float:
        """Return the share of packets lost: that of the link, else that of both cables together."""
        link = self.links.get(frozenset((source, target)), Shape())
        if link.loss is not None:
            return link.loss
        return 1 - (1 - (self.cables[source].loss or 0.0)) * (1 - (self.cables[target].loss or 0.0))

    def connected(self, source: BoardId, target: BoardId) -> bool:
        """Say whether packets get through at all."""
        return (source in self.apart) == (target in self.apart)

    def shaped(self, boards: tuple[BoardId, ...], shape: Shape) -> "Wiring":
        """Return it with another cable (one board), link (two) or air (none)."""
        if len(boards) == 1:
            return replace(self, cables={**self.cables, boards[0]: over(self.cables[boards[0]], shape)})
        if boards:
            pair = frozenset(boards)
            return replace(self, links={**self.links, pair: over(self.links.get(pair, Shape()), shape)})
        return replace(self, air_bits_per_s=shape.rate_bits_per_s)

    def address(self, host: BoardId) -> str:
        """Return the host's address in the lab's own network."""
        return f"10.77.{self.numbers[host] >> 8}.{self.numbers[host] & 255}"

    def queue(self, source: BoardId, target: BoardId) -> int:
        """Return the number of the delay line's queue for packets of an ordered pair."""
        return self.numbers[source] << 8 | self.numbers[target]


def wiring_of(scenario: Scenario) -> Wiring:
    """Return what the scenario asks of the network, the desk included."""
    names = [board.name for board in scenario.boards]
    return Wiring(
        numbers={name: number for number, name in enumerate([*names, DESK], start=1)},
        cables={board.name: board.cable for board in scenario.boards} | {DESK: Shape()},
        links={frozenset(link.between): link.shape for link in scenario.links},
        air_bits_per_s=scenario.air_bits_per_s,
    )


def slot_bytes(rate_bits_per_s: float) -> int:
    """Return the bytes of one slot."""
    return int(rate_bits_per_s / 8 * SLOT_S)


def burst_bytes(rate_bits_per_s: float) -> int:
    """Return what a token bucket may hold: a large packet, half a slot for a late timer, one more packet."""
    return max(LEAST_BURST, int(1.5 * slot_bytes(rate_bits_per_s)) + 1600)


def bucket(rate_bits_per_s: float) -> list[str]:
    """Return the queue of a rate, in words of `tc`."""
    rate, burst = f"{rate_bits_per_s:.0f}bit", str(burst_bytes(rate_bits_per_s))
    return ["tbf", "rate", rate, "burst", burst, "latency", f"{QUEUE_S * 1e3:.0f}ms"]


def largest_packet(wiring: Wiring, host: BoardId) -> int:
    """Return how long a packet may be that leaves `host`; 0: as long as one of Ethernet.

    Where packets are lost, each must be one that a real network could lose.
    """
    others = [other for other in wiring.numbers if other != host]
    if any(wiring.loss(host, other) for other in others):
        return 0
    rates = [rate for other in others if (rate := wiring.rate(host, other)) is not None]
    size = min(LARGEST_PACKET, *(slot_bytes(rate) for rate in rates)) if rates else LARGEST_PACKET
    return size if size >= LEAST_BURST else 0


def uplink(wiring: Wiring, host: BoardId) -> list[list[str]]:
    """Return what `tc` is told of the host's end of its cable, each as the words after OBJECT add dev DEV."""
    cable = wiring.cables[host].rate_bits_per_s
    narrow = {
        other: shape.rate_bits_per_s
        for other in wiring.numbers
        if other != host
        and (shape := wiring.links.get(frozenset((host, other)))) is not None
        and shape.rate_bits_per_s is not None
    }
    if not narrow:
        return [["qdisc", "root", *bucket(cable)]] if cable is not None else []
    whole = cable if cable is not None else UNLIMITED
    orders = [
        ["qdisc", "root", "handle", "1:", "htb", "default", "1"],
        ["class", "parent", "1:", "classid", "1:ffff", "htb", *_htb(whole, whole)],
        ["class", "parent", "1:ffff", "classid", "1:1", "htb", *_htb(whole / 2, whole)],
        ["qdisc", "parent", "1:1", "bfifo", "limit", str(_queue_bytes(whole))],
    ]
    for other, rate in narrow.items():
        number = f"1:{0x100 + wiring.numbers[other]:x}"
        ceiling = min(rate, whole)
        orders += [
            ["class", "parent", "1:ffff", "classid", number, "htb", *_htb(ceiling, ceiling)],
            ["qdisc", "parent", number, "bfifo", "limit", str(_queue_bytes(ceiling))],
            [*_TO, f"{wiring.address(other)}/32", "flowid", number],
        ]
    return orders


_TO: Final = ("filter", "parent", "1:", "protocol", "ip", "u32", "match", "ip", "dst")


def _htb(rate: float, ceiling: float) -> list[str]:
    burst = str(burst_bytes(ceiling))
    rates = ("rate", f"{rate:.0f}bit", "ceil", f"{ceiling:.0f}bit")
    return [*rates, "burst", burst, "cburst", burst, "quantum", str(LEAST_BURST)]


def _queue_bytes(rate: float) -> int:
    return max(2 * burst_bytes(rate), int(rate / 8 * QUEUE_S))


def rules(wiring: Wiring) -> str:
    """Return the filter table of the hub: who is cut off, what is lost, what goes through the delay line."""
    lines = ["*filter", ":INPUT ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]"]
    lines += [f":from{number} - [0:0]" for number in wiring.numbers.values()]
    for host, number in wiring.numbers.items():
        lines.append(f"-A FORWARD -s {wiring.address(host)} -j from{number}")
    for source, target in wiring.pairs():
        match = f"-A from{wiring.numbers[source]} -d {wiring.address(target)}"
        if not wiring.connected(source, target):
            lines.append(f"{match} -j DROP")
            continue
        loss = wiring.loss(source, target)
        if loss:
            lines.append(f"{match} -m statistic --mode random --probability {loss:.6f} -j DROP")
        if wiring.delay_s(source, target):
            queue = wiring.queue(source, target)
            lines.append(f"{match} -j NFQUEUE --queue-num {queue} --queue-bypass")
    return "\n".join([*lines, "COMMIT", ""])


def counters(wiring: Wiring) -> str:
    """Return the table of the hub that counts the bytes of each ordered pair."""
    lines = ["*mangle", ":FORWARD ACCEPT [0:0]"]
    lines += [f":sent{number} - [0:0]" for number in wiring.numbers.values()]
    for host, number in wiring.numbers.items():
        lines.append(f"-A FORWARD -s {wiring.address(host)} -j sent{number}")
    for source, target in wiring.pairs():
        lines.append(f"-A sent{wiring.numbers[source]} -d {wiring.address(target)}")
    return "\n".join([*lines, "COMMIT", ""])


def counted(wiring: Wiring, saved: str) -> dict[tuple[BoardId, BoardId], int]:
    """Return the bytes of each ordered pair, from what `iptables-save -c` prints."""
    hosts = {f"{wiring.address(host)}/32": host for host in wiring.numbers}
    sources = {f"sent{number}": host for host, number in wiring.numbers.items()}
    found: dict[tuple[BoardId, BoardId], int] = {}
    for line in saved.splitlines():
        words = line.split()
        if len(words) >= 5 and words[1] == "-A" and words[2] in sources and words[3] == "-d":
            size = int(words[0].strip("[]").split(":")[1])
            found[sources[words[2]], hosts[words[4]]] = size
    return found
