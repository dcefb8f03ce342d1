"""Asks the firmware of a Raspberry Pi, by the device that its `vcgencmd` uses and without that program.

The layout of the message is that of raspberrypi/utils, vcgencmd.c: 32-bit words `[size, 0, tag, 4096, 0,
status, text ..., 0]`, in and out through the same buffer.
"""

import fcntl
import os
import re
import struct
from collections.abc import Callable
from typing import Final

from shoal.firmware_configs.schema import BoardConfig, PowerSource
from shoal.firmware_configs.sysfs import Tree, Unreadable, Why
from shoal.profiler.energy import Power, Reading

DEVICES: Final = ("/dev/vcio_gencmd", "/dev/vcio")
REQUEST: Final = 0xC0006400 | struct.calcsize("P") << 16
"""_IOWR(100, 0, char *), which holds the size of a pointer."""
TAG: Final = 0x00030080
TEXT_BYTES: Final = 4096
_HEAD: Final = struct.Struct("<6I")
_STATUS_WORD: Final = 5

Ask = Callable[[str], str]
"""Gives the firmware a command and returns its reply.  Raises Unreadable."""
Control = Callable[[int, int, bytearray], object]
"""As fcntl.ioctl: file descriptor, request, buffer that is changed in place."""


class Mailbox:
    """The firmware, by one open device and one buffer."""

    def __init__(self, tree: Tree, control: Control = fcntl.ioctl) -> None:
        self._control = control
        self._buffer = bytearray(_HEAD.size + TEXT_BYTES + 4)
        self._path = next((path for path in DEVICES if tree.exists(path)), DEVICES[-1])
        try:
            self._device = os.open(tree.at(self._path), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Unreadable(self._path, Why.MISSING) from error
        except PermissionError as error:
            raise Unreadable(self._path, Why.DENIED) from error
        except OSError as error:
            raise Unreadable(self._path, Why.BROKEN, error.strerror or "") from error

    def ask(self, command: str) -> str:
        """Return the reply to `command`.  Raises Unreadable if the firmware refuses or does not know it."""
        text = command.encode().ljust(TEXT_BYTES, b"\0")
        _HEAD.pack_into(self._buffer, 0, len(self._buffer), 0, TAG, TEXT_BYTES, 0, 0)
        self._buffer[_HEAD.size :] = text + bytes(4)
        try:
            self._control(self._device, REQUEST, self._buffer)
        except OSError as error:
            why = Why.DENIED if isinstance(error, PermissionError) else Why.BROKEN
            raise Unreadable(self._path, why, error.strerror or "") from error
        status = _HEAD.unpack_from(self._buffer)[_STATUS_WORD]
        reply = bytes(self._buffer[_HEAD.size :]).split(b"\0")[0].decode(errors="replace")
        if status or reply.startswith("error="):
            raise Unreadable(self._path, Why.BROKEN, f"{command}: {reply or f'status {status:#x}'}"[:120])
        return reply

    def close(self) -> None:
        """Close the device."""
        os.close(self._device)


_LINE: Final = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(-?[\d.]+)[AV]$", re.MULTILINE)


def rails_in(reply: str) -> dict[str, float]:
    """Return the power of each rail in the reply to `pmic_read_adc`, of those with volts and amperes.

    >>> rails_in("VDD_CORE_A current(7)=2.0A" + chr(10) + " VDD_CORE_V volt(15)=0.9V")
    {'VDD_CORE': 1.8}
    """
    amperes: dict[str, float] = {}
    volts: dict[str, float] = {}
    for name, kind, figure in _LINE.findall(reply):
        try:
            found = float(figure)
        except ValueError as error:
            raise Unreadable("pmic_read_adc", Why.BROKEN, f"{name}: {figure}") from error
        if found < 0:
            raise Unreadable("pmic_read_adc", Why.NEGATIVE, f"{name}: {figure}")
        (amperes if kind == "A" else volts)[name] = found
    return {name: amperes[name] * volts[name] for name in amperes if name in volts}


class Pmic:
    """The rails that the power chip of a Raspberry Pi 5 measures."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._names: frozenset[str] | None = None

    def read(self) -> Reading:
        """Return the sum of all rails, uncorrected: `PowerSource` says by what to correct it."""
        rails = rails_in(self._ask("pmic_read_adc"))
        if not rails:
            raise Unreadable("pmic_read_adc", Why.EMPTY)
        if self._names is None:
            self._names = frozenset(rails)
        elif self._names != rails.keys():
            lacking = sorted(self._names - rails.keys())
            raise Unreadable("pmic_read_adc", Why.BROKEN, f"without {lacking}")
        return Power(watts=sum(rails.values()), rails=rails)


def open_pmic(tree: Tree, _source: PowerSource) -> Pmic:
    """Return the power chip of this Raspberry Pi.  Raises Unreadable."""
    return Pmic(Mailbox(tree).ask)


def firmware(config: BoardConfig, tree: Tree) -> Ask | None:
    """Return the way to ask this board's firmware; None if it is no Raspberry Pi, or not to be reached."""
    if config.heat.flags != "raspberry":
        return None
    try:
        return Mailbox(tree).ask
    except Unreadable:
        return None
