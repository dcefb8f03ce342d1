"""What of a program's tensors stays in the memory of a board's device, for boards whose device has its own.

What one run makes and only others read need not go to the host and back.  All else does: what is handed to
peers or comes from them, what a run in chunks takes by its rows, the request and its answer.  Agents go by
this, and plans count what the rest takes.
"""

from collections.abc import Callable, Iterable

from shoal.collective import makes, needs
from shoal.program import Collective, Program, Run

Ports = Callable[[Run], tuple[Iterable[str], Iterable[str]]]
"""The names of what a run takes, and of what it makes."""


def staying(program: Program, ports: Ports) -> frozenset[str]:
    """Return the tensors that stay on the device of a board that plays `program`.

    Of those that a request wants too, the board makes copies.
    """
    taken, made, moved = set[str](), set[str](), set[str]()
    for step, behind in program.turns():
        if isinstance(step, Run):
            takes, gives = ports(step)
            if behind is None:
                taken.update(takes)
                made.update(gives)
            else:
                moved.update(takes, gives, needs(behind), makes(behind))
        elif isinstance(step, Collective):
            moved.update(needs(step), makes(step))
        else:
            moved.update(step.tensors)
    return frozenset(made & taken - moved)
