"""Installs the agent as a service of this board, and takes it away again.

What is to be done is worked out first, as records that can be shown (`--dry-run`); then only what is not so
already is done.  Nothing outside the listed files, the user and the service is touched.
"""

import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from shoal.errors import ConfigError
from shoal.firmware_configs.schema import BoardConfig

UNIT: Final = "shoal-agent.service"
UNIT_FILE: Final = f"/etc/systemd/system/{UNIT}"
DROP_IN: Final = f"/etc/systemd/system/{UNIT}.d/board.conf"
RULES: Final = "60-shoal.rules"
RULES_FILE: Final = f"/etc/udev/rules.d/{RULES}"
STATE_DIR: Final = "/var/lib/shoal"
USER: Final = "shoal"
PROGRAM: Final = "/opt/shoal/bin/shoal"
"""Where the shipped unit expects the command."""
HIDDEN: Final = (("home",), ("root",), ("tmp",), ("run", "user"))
"""Below these folders of the root the service does not see files (ProtectHome, PrivateTmp)."""

Run = Callable[[Sequence[str]], int]
"""Runs a program and returns its exit code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that is to have this content."""

    path: str
    content: str
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program that is to be run, unless `unless` says that there is no need to."""

    words: tuple[str, ...]
    unless: tuple[str, ...]
    """There is no need to run it if this program succeeds; empty: that cannot be told."""
    may_fail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the operator wants installed."""

    config: BoardConfig
    broker: str
    cluster: str
    name: str | None
    """None: the host's."""
    program: str
    """Path of the command `shoal`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What installing takes, in this order."""

    before: tuple[Command, ...]
    files: tuple[File, ...]
    after: tuple[Command, ...]
    """Run if one of the files has changed, or if their `unless` says that it is not so yet."""


def plan(wanted: Wanted, groups: Iterable[str], *, running: bool = True) -> Steps:
    """Return what installing takes on a machine that has these system groups.  Raises ConfigError.

    Where systemd is not `running`, as while the image of a card is made, the service starts at the next boot.
    """
    parts = Path(wanted.program).parts
    if any(parts[: 1 + len(folders)] == ("/", *folders) for folders in HIDDEN):
        raise ConfigError(
            f"{wanted.program}: the service cannot see it there; install shoal for all users: "
            "python3 -m venv /opt/shoal && /opt/shoal/bin/pip install ., then run /opt/shoal/bin/shoal agent "
            "install"
        )
    for what, text in (("--broker", wanted.broker), ("the path of shoal", wanted.program)):
        if any(letter.isspace() or letter in "\"'\\" for letter in text):
            raise ConfigError(f"{what}: expected no spaces, quotes or backslashes, got {text!r}")
    joined = [group for group in wanted.config.groups if group in set(groups)]
    return Steps(
        before=(
            Command(
                words=(
                    "useradd",
                    "--system",
                    "--user-group",
                    "--home-dir",
                    STATE_DIR,
                    "--shell",
                    "/usr/sbin/nologin",
                    USER,
                ),
                unless=("id", "-u", USER),
            ),
            Command(
                words=("install", "-d", "-o", USER, "-g", USER, "-m", "0750", STATE_DIR),
                unless=("test", "-d", STATE_DIR),
            ),
        ),
        files=(
            File(path=UNIT_FILE, content=unit(wanted.program), mode=0o644),
            # It may hold the password of the broker.
            File(path=DROP_IN, content=drop_in(wanted, joined), mode=0o600),
            File(path=RULES_FILE, content=rules(wanted.config), mode=0o644),
        ),
        after=(
            Command(words=("udevadm", "control", "--reload"), unless=(), may_fail=True),
            Command(words=("udevadm", "trigger", "--action=add"), unless=(), may_fail=True),
            Command(words=("systemctl", "enable", UNIT), unless=("systemctl", "is-enabled", "--quiet", UNIT)),
            *(
                (
                    Command(words=("systemctl", "daemon-reload"), unless=()),
                    Command(
                        words=("systemctl", "restart", UNIT),
                        unless=("systemctl", "is-active", "--quiet", UNIT),
                    ),
                )
                if running
                else ()
            ),
        ),
    )


def unit(program: str) -> str:
    """Return the unit, with the command at `program`."""
    return _shipped(UNIT).replace(PROGRAM, program.replace("%", "%%"))


def drop_in(wanted: Wanted, groups: Sequence[str]) -> str:
    """Return what this board and this operator add to the unit."""
    lines = [
        f"# Written by `shoal agent install` for a {wanted.config.title}; the next one overwrites it.",
        "[Service]",
        f"Environment=SHOAL_BROKER={wanted.broker.replace('%', '%%')} SHOAL_CLUSTER={wanted.cluster}",
    ]
    if wanted.name is not None:
        start = next(line for line in unit(wanted.program).splitlines() if line.startswith("ExecStart="))
        lines += ["ExecStart=", start.replace("--name %H", f"--name {wanted.name}")]
    if groups:
        lines.append(f"SupplementaryGroups={' '.join(groups)}")
    lines += [f"DeviceAllow={device} rw" for device in wanted.config.devices]
    return "\n".join(lines) + "\n"


def rules(config: BoardConfig) -> str:
    """Return the udev rules that this board needs; a comment alone if it needs none."""
    wanted = {config.heat.flags, *(source.kind for source in config.power)}
    head, *sections = _shipped(RULES).split("\n\n")
    kept = [s for s in sections if s.removeprefix("# ").partition(":")[0] in wanted]
    text = [head.splitlines()[0], f"# Written by `shoal agent install` for a {config.title}."]
    return "\n\n".join(["\n".join(text), *(section.strip() for section in kept)]) + "\n"


def _shipped(name: str) -> str:
    return files("shoal.firmware_configs").joinpath(name).read_text("utf-8")


def apply(steps: Steps, root: Path, run: Run, tell: Callable[[str], None]) -> bool:
    """Do what is not so already, and return whether anything was.  Raises ConfigError.

    Files are written below `root`; `tell` hears what is done.
    """
    changed = False
    for command in steps.before:
        if run(command.unless):
            _run(command, run, tell)
            changed = True
    for file in steps.files:
        where = root / file.path.lstrip("/")
        try:
            if where.is_file() and where.read_text("utf-8") == file.content:
                continue
            where.parent.mkdir(parents=True, exist_ok=True)
            where.write_text(file.content, "utf-8")
            where.chmod(file.mode)
        except OSError as error:
            raise ConfigError(f"{where}: cannot be written: {error.strerror}; are you root?") from error
        tell(f"wrote {file.path}")
        changed = True
    for command in steps.after:
        if changed or (command.unless and run(command.unless)):
            _run(command, run, tell)
            changed = True
    return changed


def remove(root: Path, run: Run, tell: Callable[[str], None]) -> bool:
    """Take the service, its files and its user away; what it kept in its state directory stays."""
    found = [
        root / path.lstrip("/")
        for path in (UNIT_FILE, DROP_IN, RULES_FILE)
        if (root / path.lstrip("/")).exists()
    ]
    if not found and run(("id", "-u", USER)):
        return False
    if any(path.name == UNIT for path in found):
        _run(Command(words=("systemctl", "disable", "--now", UNIT), unless=(), may_fail=True), run, tell)
    for path in found:
        path.unlink()
        tell(f"removed /{path.relative_to(root)}")
    folder = (root / DROP_IN.lstrip("/")).parent
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    _run(Command(words=("systemctl", "daemon-reload"), unless=(), may_fail=True), run, tell)
    if run(("id", "-u", USER)) == 0:
        _run(Command(words=("userdel", USER), unless=()), run, tell)
    return True


def _run(command: Command, run: Run, tell: Callable[[str], None]) -> None:
    words = " ".join(command.words)
    code = run(command.words)
    if code and not command.may_fail:
        raise ConfigError(f"{words}: expected it to succeed, it ended with exit code {code}")
    tell(words + (f" (exit code {code}, which is no harm)" if code else ""))


def show(steps: Steps, root: Path) -> str:
    """Return what would be done, with the content of files that would change."""
    lines = [f"would run: {' '.join(command.words)}" for command in steps.before]
    for file in steps.files:
        where = root / file.path.lstrip("/")
        same = where.is_file() and where.read_text("utf-8") == file.content
        lines.append(f"{'is as wanted' if same else 'would write'}: {file.path}")
        if not same:
            lines += [f"    {line}" for line in file.content.splitlines()]
    lines += [f"would run, if a file changes: {' '.join(command.words)}" for command in steps.after]
    return "\n".join(lines)


def run_program(words: Sequence[str]) -> int:
    """Run a program of the system, its output dropped, and return its exit code; 127 if there is none."""
    try:
        return subprocess.run(list(words), capture_output=True, check=False).returncode
    except OSError:
        return 127
