"""How long requests wait for one another when they come at random times.  Pure.

A plan is taken as stations in a row, each of which takes the same time for every request: boards, links, the
air.  Requests that come at random times (Poisson) then wait as long in all of them together as they would
before the busiest station alone: B. Avi-Itzhak, "A sequence of service stations with arbitrary input and
regular service times" (Management Science 11, 1965), and H. D. Friedman, "Reduction methods for tandem
queuing systems" (Operations Research 13, 1965).  That station alone is an M/D/1 queue.  Lanes that work
beside each other are taken as one that is as quick as all of them together: in these less is waited for.
"""

import math
from typing import Final

CLOSE: Final = 1e-12
ROUNDS: Final = 60


def waited_s(share: float, rate_per_s: float, busiest_s: float) -> float:
    """Return within what time `share` of the requests have no longer to wait; infinite if they pile up.

    `busiest_s` is what the busiest station takes for a request.  Up to this time the distribution is exact,
    P(W <= t) = (1 - r) exp(l t) for a load of r = l d; beyond, its tail is C exp(-theta t) with
    l (exp(theta d) - 1) = theta and C = (1 - r) / (r exp(theta d) - 1) (Cramer and Lundberg; S. Asmussen,
    "Applied Probability and Queues", XIII.5), which at a share of 95 % is off by less than 1 %.
    """
    load = rate_per_s * busiest_s
    if load >= 1:
        return math.inf
    if share <= 1 - load:
        return 0.0
    early_s = math.log(share / (1 - load)) / rate_per_s
    if early_s <= busiest_s:
        return early_s
    decay = _decay(load)
    late_s = busiest_s * math.log((1 - load) / (decay + load - 1) / (1 - share)) / decay
    return max(busiest_s, late_s)


def mean_wait_s(rate_per_s: float, busiest_s: float) -> float:
    """Return how long requests wait on average (Pollaczek and Khinchine); infinite if they pile up."""
    load = rate_per_s * busiest_s
    return busiest_s * load / (2 * (1 - load)) if load < 1 else math.inf


def _decay(load: float) -> float:
    """Return x > 0 with load * (exp(x) - 1) = x: by Newton's method from the right, where it only falls."""
    x = 2 * math.log(1 / load) + 2
    for _ in range(ROUNDS):
        step = (load * math.expm1(x) - x) / (load * math.exp(x) - 1)
        x -= step
        if step <= CLOSE * x:
            break
    return x
