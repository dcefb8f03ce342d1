"""Whether this coordinator leads its cluster, and whether what it sees is fit to judge boards by.  Pure.

Of two coordinators the one with the larger incarnation leads, and agents do not obey the other.  One that
begins makes itself the larger; one that has begun and hears of a larger one stops.  So that two which are
started again and again do not take turns, one that finds another begins only once that one has gone, by its
own word or will, or does not answer when it is called.

Boards are judged by their silence, and that may be the fault of the broker, of the network or of this very
process, which may have been stopped for a while.  So before it judges after a pause, or when nobody at all
says anything, a coordinator asks the broker to answer: what comes before the answer was said before it.
"""

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

from shoal.messages import Coordinator

PAUSE_S: Final = 0.5
"""This process did not look for so long: what it believes may be old."""
SILENCE_S: Final = 1.0
"""Nothing came for so long; less than a board's lease."""
PATIENCE_S: Final = 2.0
"""A question that is not answered for so long is asked again."""

CALL_S: Final = 1.5
"""So often one that waits calls the one that leads."""
GONE_S: Final = 30.0
"""Who has not answered for so long has gone, whatever the broker says; one that plans may be silent for a
while, and of one that is dead or frozen the broker tells sooner."""

Verdict = Literal["go on", "say again", "outbid", "yield"]
"""`say again`: publish all that is ours once more, for another's word has taken its place at the broker;
`outbid`: take a larger incarnation; `yield`: another one leads, so stop, unless what the broker has for us
besides says that it has gone since."""


def verdict(me: Coordinator, other: Coordinator, *, begun: bool) -> Verdict:
    """Return what follows from a word of a coordinator; `begun`: we have said who we are before.

    A word of our own may be the last will of an earlier connection of ours.
    """
    if other == me:
        return "go on"
    if other.incarnation < me.incarnation or (other.incarnation, other.url) == (me.incarnation, me.url):
        return "say again" if begun else "go on"
    if not begun or other.state != "online":
        return "outbid"
    if other.incarnation == me.incarnation and other.url > me.url:
        return "outbid"  # both began in the same millisecond
    return "yield"


def follow(rival: Coordinator, other: Coordinator) -> Coordinator | None:
    """Return who leads in our place after another word, where `rival` did before; None: it has gone."""
    if other.state != "online":
        gone = other.url == rival.url and other.incarnation >= rival.incarnation
        return None if gone else rival
    return other if other.incarnation > rival.incarnation else rival


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """How well the coordinator has been listening; times are of its clock."""

    looked_s: float
    """When it looked last for what came."""
    heard_s: float
    """When something came last."""
    doubt_s: float | None = None
    """Since when it waits for the broker's answer; None: it does not."""
    asked_s: float = 0.0
    """When it asked last."""


def looked(attention: Attention, now_s: float, *, came: bool) -> tuple[Attention, bool]:
    """Return what follows from another look, and whether to ask the broker; `came`: something had come."""
    paused = now_s - attention.looked_s > PAUSE_S
    heard_s = now_s if came else attention.heard_s
    silent = now_s - heard_s > SILENCE_S
    attention = replace(attention, looked_s=now_s, heard_s=heard_s)
    if attention.doubt_s is None:
        if not (paused or silent):
            return attention, False
        return doubting(attention, now_s), True
    if paused or now_s - attention.asked_s > PATIENCE_S:
        return replace(attention, asked_s=now_s), True
    return attention, False


def excused(attention: Attention, missed_s: float, now_s: float) -> Attention:
    """Return the attention after this process was too busy to listen for so long, as it knows itself.

    What was said meanwhile is still to be heard, in its order, so this is no pause and no silence; and as it
    may have kept the broker's answer from being heard, that does not count as late.
    """
    looked_s, heard_s = (min(now_s, each_s + missed_s) for each_s in (attention.looked_s, attention.heard_s))
    attention = replace(attention, looked_s=looked_s, heard_s=heard_s)
    if attention.doubt_s is None:
        return attention
    doubt_s, asked_s = (min(now_s, each_s + missed_s) for each_s in (attention.doubt_s, attention.asked_s))
    return replace(attention, doubt_s=doubt_s, asked_s=asked_s)


def doubting(attention: Attention, now_s: float) -> Attention:
    """Return the attention of one that asks the broker now, whatever it has heard."""
    return replace(attention, doubt_s=now_s, asked_s=now_s)


def answered(attention: Attention, now_s: float) -> tuple[Attention, bool]:
    """Return the attention after the broker's answer, and whether that was late.

    Then boards may have been missed, and must be listened to for a while before they are judged.
    """
    late = attention.doubt_s is not None and now_s - attention.doubt_s > PAUSE_S
    return replace(attention, doubt_s=None, heard_s=now_s), late


# --- one that waits ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby:
    """What a coordinator knows that waits for the lead; times are of its clock."""

    url: str
    """Where it would serve bundles.  Who led there before was an earlier life of it, and is no more."""
    leader: Coordinator | None = None
    """Who leads, by the last word; None: nobody."""
    heard_s: float | None = None
    """When the leader answered last, or waiting began; None: not all that the broker keeps has come yet."""
    called_s: float = -math.inf
    """When the leader was called last."""


def arrived(standby: Standby, now_s: float) -> Standby:
    """Return what is known once all that the broker keeps has come."""
    return replace(standby, heard_s=now_s)


def told(standby: Standby, other: Coordinator, now_s: float) -> Standby:
    """Return what is known after a word of a coordinator, or the broker's memory of one."""
    heard_s = None if standby.heard_s is None else now_s
    leader = standby.leader
    if other.state == "online":
        leader = None if other.url == standby.url else other
        return replace(standby, leader=leader, heard_s=heard_s)
    if leader is None or leader.url != other.url:
        return standby  # the end of another one
    return replace(standby, leader=None)


def called(standby: Standby, now_s: float) -> tuple[Standby, bool]:
    """Return what is known, and whether to call the leader now."""
    if standby.leader is None or standby.heard_s is None or now_s - standby.called_s < CALL_S:
        return standby, False
    return replace(standby, called_s=now_s), True


def is_free(standby: Standby, now_s: float) -> bool:
    """Say whether the lead may be taken."""
    if standby.heard_s is None:
        return False
    return standby.leader is None or now_s - standby.heard_s > GONE_S
