"""Changes of links are noticed at once and noise is not, on traces of made-up time."""

import math
import socket
import struct
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.profiler import links, tcp_info
from shoal.profiler.changes import LEARN, LEARN_MOST, Watched, seen
from shoal.profiler.goodput import Fastest, Transfer, goodput, shared

RATE_HZ = 10
TEN_MINUTES = 600 * RATE_HZ


def watch(readings: Sequence[float], watched: Watched | None = None) -> tuple[Watched, list[int]]:
    """Return what is known after `readings`, and after which of them alarms came."""
    found, alarms = watched or Watched(), []
    for index, reading in enumerate(readings):
        before = found.alarms
        found = seen(found, reading)
        if found.alarms > before:
            alarms.append(index)
    return found, alarms


def noise(seed: int, count: int, sigma: float) -> list[float]:
    return [float(x) for x in np.exp(np.random.default_rng(seed).normal(0.0, sigma, count))]


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_ten_minutes_of_steady_noise_give_no_alarm(sigma: float, seed: int) -> None:
    _, alarms = watch([100.0 * x for x in noise(seed, TEN_MINUTES, sigma)])
    assert alarms == []


@pytest.mark.parametrize("seed", range(8))
def test_noise_with_outliers_as_of_a_busy_machine_gives_no_alarm(seed: int) -> None:
    """Every fiftieth reading is three to ten times too slow."""
    random = np.random.default_rng(seed)
    slow = np.where(random.random(TEN_MINUTES) < 0.02, random.uniform(3, 10, TEN_MINUTES), 1.0)
    _, alarms = watch([100.0 * x / s for x, s in zip(noise(seed, TEN_MINUTES, 0.05), slow, strict=True)])
    assert alarms == []


@pytest.mark.parametrize("sigma", [0.01, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_a_tenfold_drop_is_noticed_within_a_second(sigma: float, seed: int) -> None:
    steady = [100.0 * x for x in noise(seed, 300, sigma)]
    dropped = [10.0 * x for x in noise(seed + 100, 300, sigma)]
    found, alarms = watch([*steady, *dropped])
    assert len(alarms) == 1
    assert 300 <= alarms[0] < 300 + RATE_HZ
    assert found.baseline == pytest.approx(10.0, rel=0.15)


def test_a_drop_of_a_third_is_noticed_and_one_of_a_twentieth_is_not() -> None:
    steady = [100.0 * x for x in noise(1, 300, 0.05)]
    _, third = watch([*steady, *(67.0 * x for x in noise(2, 300, 0.05))])
    _, small = watch([*steady, *(95.0 * x for x in noise(2, 300, 0.05))])
    assert len(third) == 1
    assert small == [], "within the band, nothing is to be done"


@pytest.mark.parametrize("seed", range(8))
def test_what_crowds_a_link_in_spells_gives_no_alarm(seed: int) -> None:
    """Half of the time, in spells of a second, three of five readings are half of what the link can do."""
    random = np.random.default_rng(seed)
    spells = np.repeat(random.random(TEN_MINUTES // 10) < 0.5, 10)
    crowded = spells & (random.random(TEN_MINUTES) < 0.6)
    readings = [100.0 * x / (1 + c) for x, c in zip(noise(seed, TEN_MINUTES, 0.03), crowded, strict=True)]
    found, alarms = watch([*(100.0 * x for x in noise(seed, LEARN_MOST, 0.03)), *readings])
    assert alarms == []
    assert found.baseline == pytest.approx(100.0, rel=0.02)


def test_a_rise_is_a_change_too() -> None:
    _, alarms = watch([*(10.0 * x for x in noise(1, 100, 0.05)), *(100.0 * x for x in noise(2, 100, 0.05))])
    assert len(alarms) == 1


def test_a_baseline_is_known_while_it_is_learned() -> None:
    assert Watched().baseline is None
    found, _ = watch([8.0, 10.0, 12.0])
    assert found.baseline == pytest.approx(10.0)
    assert found.level is None
    found, _ = watch([10.0] * LEARN)
    assert found.level == pytest.approx(math.log(10.0))


@given(st.lists(st.floats(1e-6, 1e12), max_size=80))
def test_whatever_comes_sums_stay_sums(readings: list[float]) -> None:
    found, _ = watch(readings)
    assert found.above >= 0
    assert found.below >= 0
    assert len(found.learning) < LEARN_MOST


def transfers(fixed_s: float, rate: float, sizes: Sequence[int]) -> list[Transfer]:
    return [Transfer(size_bytes=size, seconds=fixed_s + size / rate) for size in sizes]


def test_sizes_tell_the_fixed_cost_apart_from_the_speed() -> None:
    """12.5 MB/s behind 5 ms of fixed cost: 64 kB alone would seem to go at 6.4 MB/s."""
    found = goodput(transfers(5e-3, 12.5e6, [64_000, 300_000, 64_000, 600_000]))
    assert found == pytest.approx(12.5e6, rel=1e-3)


def test_equal_sizes_tell_what_they_can() -> None:
    assert goodput(transfers(0.0, 12.5e6, [65_536] * 5)) == pytest.approx(12.5e6)


def test_small_transfers_tell_nothing() -> None:
    assert goodput(transfers(0.0, 12.5e6, [1000] * 9)) is None
    assert goodput([Transfer(size_bytes=20_000, seconds=1e-5)]) is None


@given(
    st.floats(1e5, 1e9),
    st.lists(st.tuples(st.integers(200_000, 2_000_000), st.floats(0.97, 1.03)), min_size=5, max_size=40),
)
def test_noise_of_a_few_percent_moves_a_median_by_no_more(rate: float, rows: list[tuple[int, float]]) -> None:
    found = goodput([Transfer(size_bytes=size, seconds=size / rate * n) for size, n in rows])
    if found is not None and max(s for s, _ in rows) < 2 * min(s for s, _ in rows):
        assert found == pytest.approx(rate, rel=0.04)


def test_of_the_transfers_of_a_while_the_fastest_is_told() -> None:
    came = Fastest(span_s=0.1)

    def told(now_s: float, rate: float) -> float | None:
        found = came.of(Transfer(size_bytes=round(rate), seconds=1.0), now_s)
        return None if found is None else found.rate

    assert told(1.0, 9e6) == 9e6
    assert [told(1.02, 8e6), told(1.04, 11e6), told(1.06, 10e6)] == [None] * 3
    assert told(1.11, 7e6) == 11e6
    assert told(1.22, 7e6) == 7e6
    assert told(1.3, 12e6) is None
    assert told(9.0, 1e6) == 1e6, "what was long ago says nothing about now"


def test_a_shared_cell_halves_flows_and_a_switch_does_not() -> None:
    assert shared([94.0, 95.0, 93.0], [47.0, 48.0, 46.0])
    assert shared([94.0, 95.0, 93.0], [94.0, 93.0, 95.0]) is False
    assert shared([94.0], [47.0] * 3) is None


# --- active: what pings find -------------------------------------------------------------------


def wire(rtt_s: float, rate: float, first_window: int = 1 << 30) -> tuple[Callable[[int], float], list[int]]:
    """Return a ping over a link whose sender may have `first_window` bytes on the way, twice as many after
    each round trip, as TCP begins."""
    sent: list[int] = []
    window = [float(first_window)]

    def ping(size_bytes: int) -> float:
        sent.append(size_bytes)
        took_s, left = rtt_s, float(size_bytes)
        while left > window[0]:
            left -= window[0]
            took_s += max(rtt_s, window[0] / rate)
            window[0] *= 2
        return took_s + left / rate

    return ping, sent


@pytest.mark.parametrize(
    ("rtt_s", "rate"), [(4e-3, 12.5e6), (4e-3, 1.25e6), (2e-3, 62.5e6), (2e-2, 12.5e6), (0.1, 1.25e6)]
)
def test_pings_find_round_trip_and_goodput(rtt_s: float, rate: float) -> None:
    ping, sent = wire(rtt_s, rate, first_window=14_000)
    found = links.measure(ping)
    assert found.rtt_s == pytest.approx(rtt_s, rel=0.02)
    assert found.goodput_bytes_per_s == pytest.approx(rate, rel=0.1)
    assert sum(sent) <= 3 << 20


@pytest.mark.parametrize("seed", range(100))
def test_the_least_round_trip_is_that_of_the_link(seed: int) -> None:
    """4 ms, and four threads that are late by a millisecond on average in three of ten cases each."""
    random = np.random.default_rng(seed)
    late_s = (random.random((9, 4)) < 0.3) * random.exponential(1e-3, (9, 4))
    found = links.profile(list(4e-3 + late_s.sum(axis=1)), 12.5e6)
    assert found.rtt_s == pytest.approx(4e-3, rel=0.1)
    assert found.rtt_p95_s is not None
    assert found.rtt_p95_s >= found.rtt_s


def test_a_slow_link_is_not_flooded() -> None:
    ping, sent = wire(5e-3, 50_000.0)
    links.measure(ping)
    assert sum(sent) <= 100_000


def test_round_trips_behind_a_queue_do_not_make_a_link_infinitely_fast() -> None:
    """Pings that waited 400 ms for what was under way, then a link that is free: 12.5 MB/s at most."""
    trips = iter([0.4] * 10)

    def ping(size_bytes: int) -> float:
        return next(trips, 0.004) + size_bytes / 12.5e6

    assert links.measure(ping).goodput_bytes_per_s <= 12.5e6


# --- what the kernel knows ---------------------------------------------------------------------


def test_a_connection_of_this_machine_tells_of_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with socket.create_connection(listening.getsockname()) as sock:
            accepted, _ = listening.accept()
            with accepted:
                sock.sendall(b"x" * 100_000)
                left = 100_000
                while left:
                    left -= len(accepted.recv(left))
                found = tcp_info.read(sock)
        assert found is not None
        assert found.rtt_us is not None
        assert found.rtt_us < 1_000_000
        assert found.bytes_acked is None or found.bytes_acked <= 100_001
        assert tcp_info.read(sock) is None, "it is closed"


def test_an_older_kernel_tells_less_and_an_emulated_one_nothing() -> None:
    """Linux 4.9 (JetPack 4) ends before byte 192, qemu-user gives 4 bytes."""
    whole = bytearray(240)
    struct.pack_into("<I", whole, 68, 4200)
    struct.pack_into("<Q", whole, 160, 12_500_000)
    struct.pack_into("<Q", whole, 200, 999)
    found = tcp_info.parse(bytes(whole))
    assert (found.rtt_us, found.delivery_rate, found.bytes_sent) == (4200, 12_500_000, 999)
    assert not found.app_limited
    old = tcp_info.parse(bytes(whole[:168]))
    assert (old.rtt_us, old.delivery_rate, old.busy_us, old.bytes_sent) == (4200, 12_500_000, None, None)
    assert tcp_info.parse(b"\1\0\0\0").rtt_us is None
    assert tcp_info.parse(b"\1\0\0\0").app_limited
