"""Lets boards of the lab measure their links in the air and on a switch, and prints what they found."""

import json
import sys
from functools import partial

from shoal.agent.inbox import Inbox
from shoal.agent.link_watch import LinkWatch
from shoal.agent.peers import Peers
from shoal.frames import Header
from shoal.lab.network import Network
from shoal.lab.scenario import Shape
from shoal.lab.shaping import DESK, Wiring
from shoal.messages import Airtime
from shoal.records import Address, BoardId

A, B, C = BoardId("a"), BoardId("b"), BoardId("c")
PORT = 7077


def nothing_begins(header: Header, peer: BoardId) -> Inbox:
    raise AssertionError(f"{peer} began {header}")


def main() -> None:
    rate = 20e6
    cable = Shape(rate_bits_per_s=rate, delay_s=1e-3)
    numbers = {A: 1, B: 2, C: 3, DESK: 4}
    switch = Wiring(numbers=numbers, cables={A: cable, B: cable, C: cable, DESK: Shape()})
    slow = Shape(delay_s=1e-3)
    cell = Wiring(numbers=numbers, cables={A: slow, B: slow, C: slow, DESK: Shape()}, air_bits_per_s=rate)
    found = {name: _links(wiring) for name, wiring in (("switch", switch), ("cell", cell))}
    sys.stdout.write(json.dumps(found) + "\n")


def _links(wiring: Wiring) -> dict[str, list[float | bool | None]]:
    """Return goodput in bits/s and whether the medium is shared, as each board sees it towards each other."""
    found: dict[str, list[float | bool | None]] = {}
    with Network(wiring) as network:
        addresses = {
            board: Address(host=network.address(board), data_port=PORT, http_port=PORT) for board in (A, B, C)
        }
        all_peers = {}
        for board, space in network.hosts.items():
            if board in addresses:
                peers = all_peers[board] = Peers("check", board, nothing_begins)
                peers.know(addresses)
                space.inside(partial(peers.listen, addresses[board].host, PORT))
        for board, peers in all_peers.items():
            watch = LinkWatch(board, 1, peers, lambda: None, _heard)
            for peer in addresses.keys() - {board}:
                for _ in range(3):  # first how fast, and whether that is true, then whether shared
                    network.hosts[board].inside(partial(watch.probe, peer))
                link = watch.links[peer]
                found[f"{board} {peer}"] = [8 * link.goodput_bytes_per_s, link.shared]
    return found


def _heard(_message: Airtime) -> bool:
    return True


if __name__ == "__main__":
    main()
