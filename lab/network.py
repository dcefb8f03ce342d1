"""A small network of namespaces on this machine, its cables, links and air shaped, changed while it runs.

    [hub: bridge] --+-- cable -- [board a]
                    +-- cable -- [board b]
                    +-- cable -- [desk: broker, coordinator, clients]

Rates are token buckets at both ends of a cable, one class for each link that is narrower, and for Wi-Fi one
bucket that all packets cross; loss is `iptables`, delay the delay line.  Nothing has a name outside of our
own process, so it all vanishes with us, however we end.
"""

import array
import contextlib
import fcntl
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

from shoal.lab import shaping
from shoal.lab.namespaces import Namespace, NamespaceError, find
from shoal.lab.scenario import Scenario, Shape
from shoal.lab.shaping import Wiring
from shoal.records import BoardId

MAX_HOSTS: Final = 61
NETWORK: Final = "10.77.0.0/16"
CONGESTION: Final = "cubic"
"""What TCP does on the boards, as on those that people have, whatever this machine is tuned to."""
SETTINGS: Final = {
    # What distributions ship, whatever this machine is tuned to.
    "net/ipv4/tcp_rmem": "4096 131072 6291456",
    "net/ipv4/tcp_wmem": "4096 16384 4194304",
    "net/ipv4/tcp_no_metrics_save": "1",
}


def network_of(scenario: Scenario) -> "Network":
    """Return the network that the scenario asks for.  Raises NamespaceError if it is too large for one."""
    names = [board.name for board in scenario.boards]
    if len(names) >= MAX_HOSTS or shaping.DESK in names:
        what = f"at most {MAX_HOSTS - 1} boards, none called {shaping.DESK}"
        raise NamespaceError(f"{scenario.lines.where(('board',))}: a network of namespaces takes {what}")
    return Network(shaping.wiring_of(scenario))


class Network:
    """The network of a lab; use it as a context manager."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.hosts: dict[BoardId, Namespace] = {}
        self._hub: Namespace
        self._line: subprocess.Popen[bytes]
        self._held = contextlib.ExitStack()
        self._air: float | None = None

    def __enter__(self) -> "Network":
        try:
            self._build()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def address(self, host: BoardId) -> str:
        """Return the address of a host."""
        return self.wiring.address(host)

    def shape(self, boards: tuple[BoardId, ...], shape: Shape) -> None:
        """Change a cable (one board), a link (two) or the air (none), at once."""
        self.wire(self.wiring.shaped(boards, shape))

    def part(self, boards: frozenset[BoardId]) -> None:
        """Let these reach each other only; none: everybody reaches everybody."""
        self.wire(replace(self.wiring, apart=boards))

    def wire(self, wiring: Wiring) -> None:
        """Make the network what `wiring` says, leaving alone what stays as it is."""
        old, self.wiring = self.wiring, wiring
        for host in wiring.numbers:
            if shaping.uplink(old, host) != shaping.uplink(wiring, host) or (
                shaping.largest_packet(old, host) != shaping.largest_packet(wiring, host)
            ):
                self._bound(host)
        if self._air != wiring.air_bits_per_s:
            self._breathe()
        self._rule()

    def sent_bytes(self) -> dict[tuple[BoardId, BoardId], int]:
        """Return the bytes, headers of IP included, that each host has sent to each other one."""
        saved = self._hub.command(find("iptables-save"), "-c", "-t", "mangle")
        return shaping.counted(self.wiring, saved)

    def _build(self) -> None:
        self._hub = self._space()
        self._hub.command(
            *("ip", "link", "add", "br0", "type", "bridge", "stp_state", "0"),
            *("forward_delay", "0", "mcast_snooping", "0"),
        )
        lines = ["link set lo up", "link set br0 up"]
        for host in self.wiring.numbers:
            space = self.hosts[host] = self._space()
            end = self._port(host)
            lines.append(f"link add {end} type veth peer name eth0 netns {space.path}")
            lines.append(f"link set {end} master br0 up")
        self._hub.command("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
        self._hub.inside(lambda: _set({"net/bridge/bridge-nf-call-iptables": "1"}))
        for host, space in self.hosts.items():
            address = f"addr add {self.address(host)}/16 dev eth0"
            # By the route: only root of the machine may set the default of a namespace.
            route = f"route change {NETWORK} dev eth0 src {self.address(host)} congctl {CONGESTION}"
            orders = ("link set lo up", address, "link set eth0 up", route)
            space.command("ip", "-batch", "-", stdin="\n".join(orders) + "\n")
            space.inside(lambda: _set(SETTINGS))
        self._hub.command(find("iptables-restore"), stdin=shaping.counters(self.wiring))
        self._line = self._held.enter_context(self._delaying())
        for host in self.wiring.numbers:
            self._bound(host)
        self._breathe()
        self._rule()

    def _space(self) -> Namespace:
        space = Namespace.new()
        self._held.callback(space.close)
        return space

    def _port(self, host: BoardId) -> str:
        return f"p{self.wiring.numbers[host]}"

    @contextlib.contextmanager
    def _delaying(self) -> Iterator["subprocess.Popen[bytes]"]:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal.lab.delayline"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=self._hub.enter,
        )
        with process:  # it ends when its stdin does
            yield process

    def _bound(self, host: BoardId) -> None:
        """Set the rates of a host's cable, and how long its packets may be."""
        space, end = self.hosts[host], self._port(host)
        size = shaping.largest_packet(self.wiring, host)
        space.inside(lambda: _offload("eth0", on=size > 0))
        if size:
            space.command("ip", "link", "set", "eth0", "gso_max_size", str(size))
        # Not `replace`: it keeps the queue, and a packet larger than the new bucket blocks that for ever.
        with contextlib.suppress(NamespaceError):
            space.command("tc", "qdisc", "del", "dev", "eth0", "root")
        with contextlib.suppress(NamespaceError):
            self._hub.command("tc", "qdisc", "del", "dev", end, "root")
        orders = [_order("eth0", order) for order in shaping.uplink(self.wiring, host)]
        if orders:
            space.command("tc", "-batch", "-", stdin="\n".join(orders) + "\n")
        rate = self.wiring.cables[host].rate_bits_per_s
        if rate is not None:
            self._hub.command("tc", *_order(end, ["qdisc", "root", *shaping.bucket(rate)]).split())

    def _breathe(self) -> None:
        """Let all packets cross one bucket, if the boards share the air."""
        rate = self._air = self.wiring.air_bits_per_s
        with contextlib.suppress(NamespaceError):
            self._hub.command("ip", "link", "del", "air")
        if rate is None:
            return
        self._hub.command("ip", "link", "add", "air", "type", "ifb")
        self._hub.command("ip", "link", "set", "air", "up")
        self._hub.command("tc", *_order("air", ["qdisc", "root", *shaping.bucket(rate)]).split())
        for host in self.wiring.numbers:
            end = self._port(host)
            with contextlib.suppress(NamespaceError):
                self._hub.command("tc", "qdisc", "del", "dev", end, "ingress")
            self._hub.command("tc", "qdisc", "add", "dev", end, "ingress")
            everything = "parent ffff: protocol all u32 match u32 0 0"
            action = "action mirred egress redirect dev air"
            self._hub.command("tc", "filter", "add", "dev", end, *everything.split(), *action.split())

    def _rule(self) -> None:
        """Say what is lost and delayed; the delay line knows it first, so that nothing passes it by."""
        delays = {
            str(self.wiring.queue(source, target)): self.wiring.delay_s(source, target)
            for source, target in self.wiring.pairs()
            if self.wiring.delay_s(source, target)
        }
        assert self._line.stdin is not None
        assert self._line.stdout is not None
        self._line.stdin.write(json.dumps(delays).encode() + b"\n")
        self._line.stdin.flush()
        if not self._line.stdout.readline():
            raise NamespaceError("the delay line ended; does this kernel have NFQUEUE?")
        self._hub.command(find("iptables-restore"), stdin=shaping.rules(self.wiring))


def _order(device: str, order: list[str]) -> str:
    """Return an order of `shaping.uplink` as `tc` takes it."""
    return " ".join([order[0], "add", "dev", device, *order[1:]])


def _set(settings: dict[str, str]) -> None:
    """Write settings of the kernel that belong to the namespace."""
    for name, value in settings.items():
        Path(f"/proc/sys/{name}").write_text(value)


def _offload(device: str, *, on: bool) -> None:
    """Let the card cut large packets, or have each packet be one of the wire; never put them together."""
    request_of = {0x1F: on, 0x24: on, 0x2C: False}  # ETHTOOL_STSO, _SGSO, _SGRO of <linux/ethtool.h>
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command, value in request_of.items():
            data = array.array("B", struct.pack("II", command, int(value)))
            request = struct.pack("16sP", device.encode(), data.buffer_info()[0]) + bytes(16)
            fcntl.ioctl(sock, 0x8946, request)  # SIOCETHTOOL
