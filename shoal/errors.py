"""Every error that shoal raises on purpose, sorted by who has to act.

    ShoalError 1
    |- ConfigError   2   the operator corrects a setting, a file or an argument
    |- ModelError    3   whoever exports corrects the model, the bundle or the request's tensors
    |- PlanError     4   whoever sizes the cluster adds memory or boards, or relaxes a limit
    |- BoardError    5   someone looks at that board
    '- WireError     6   two versions of shoal, or something that is not shoal, are talking

The number is the exit code of the command line.  A message names the place, the thing, what was
expected and what came.
"""


class ShoalError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(ShoalError):
    """A setting, an argument or a file of the operator is missing or wrong."""

    exit_code = 2


class ModelError(ShoalError):
    """A model, a bundle, or the tensors of a request do not fit."""

    exit_code = 3


class PlanError(ShoalError):
    """No plan meets the limits; the message says which limit binds."""

    exit_code = 4


class BoardError(ShoalError):
    """A board cannot do what it was told: memory, disk, name taken, peer gone."""

    exit_code = 5


class WireError(ShoalError):
    """Bytes that came over the network are not what the protocol says."""

    exit_code = 6
