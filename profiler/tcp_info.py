"""Reads what Linux knows of a TCP connection (TCP_INFO), of which older kernels tell less.

Offsets are those of include/uapi/linux/tcp.h for little-endian machines, checked on kernel 6.18; a kernel
returns as much as it has, and emulated ones only a few bytes, so each figure is read only if it is there.
"""

import socket
import struct
from dataclasses import dataclass
from typing import Final

TCP_INFO: Final = 11
"""socket.TCP_INFO, which Python has on Linux only."""
MOST_BYTES: Final = 256

_OFFSETS: Final = {
    "rtt_us": (68, "<I"),
    "total_retrans": (100, "<I"),
    "bytes_acked": (120, "<Q"),
    "min_rtt_us": (148, "<I"),
    "delivery_rate": (160, "<Q"),
    "busy_us": (168, "<Q"),
    "rwnd_limited_us": (176, "<Q"),
    "sndbuf_limited_us": (184, "<Q"),
    "bytes_sent": (200, "<Q"),
    "bytes_retrans": (208, "<Q"),
}
_APP_LIMITED: Final = 7
RECEIVER_BOUND: Final = 0.5
"""If a connection has waited for the receiver's program for more of the time, that was not the link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpInfo:
    """State of a connection; None: this kernel does not tell."""

    rtt_us: int | None
    """Smoothed round trip."""
    total_retrans: int | None
    """Segments sent again so far."""
    bytes_acked: int | None
    min_rtt_us: int | None
    """Least round trip of the last minutes."""
    delivery_rate: int | None
    """Bytes a second, as measured last."""
    app_limited: bool
    """The rate was measured while there was nothing more to send: it only bounds the link from below."""
    busy_us: int | None
    """Time so far in which something was on its way."""
    rwnd_limited_us: int | None
    """Of that, waiting for the receiver's program."""
    sndbuf_limited_us: int | None
    bytes_sent: int | None
    bytes_retrans: int | None


def parse(buffer: bytes) -> TcpInfo:
    """Return what the kernel's answer tells."""

    def figure(name: str) -> int | None:
        offset, form = _OFFSETS[name]
        if len(buffer) < offset + struct.calcsize(form):
            return None
        return int(struct.unpack_from(form, buffer, offset)[0])

    return TcpInfo(
        app_limited=len(buffer) <= _APP_LIMITED or bool(buffer[_APP_LIMITED] & 1),
        **{name: figure(name) for name in _OFFSETS},
    )


def read(sock: socket.socket) -> TcpInfo | None:
    """Return the state of a connection; None if the system does not tell, or the connection is gone."""
    try:
        return parse(sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, MOST_BYTES))
    except OSError:
        return None


def receiver_bound(before: TcpInfo | None, now: TcpInfo) -> bool:
    """Say whether the connection has mostly waited for the receiver's program since `before`."""
    if before is None:
        return False
    figures = (before.busy_us, now.busy_us, before.rwnd_limited_us, now.rwnd_limited_us)
    if any(figure is None for figure in figures):
        return False
    busy_before, busy, limited_before, limited = (figure or 0 for figure in figures)
    return busy > busy_before and (limited - limited_before) / (busy - busy_before) > RECEIVER_BOUND
