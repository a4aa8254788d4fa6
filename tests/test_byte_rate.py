"""The rate of transfers, on a clock that moves only when everybody sleeps."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable

import pytest

from headpond_workers.storage.byte_rate import BURST_S, GRAIN_BYTES, ByteRate, process_rates

RATE = 1_000_000


class SharedClock:
    """Time for a number of threads: it goes on once all of them sleep or have left, to the next that wants to wake."""

    def __init__(self, threads: int) -> None:
        self.now = 0.0
        self._awake = threads
        self._changed = threading.Condition()
        self._sleepers: list[tuple[float, int]] = []
        self._turns = 0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._changed:
            self._turns += 1
            mine = (self.now + seconds, self._turns)
            heapq.heappush(self._sleepers, mine)
            self._rest()
            assert self._changed.wait_for(lambda: mine not in self._sleepers, 30)

    def leave(self) -> None:
        with self._changed:
            self._rest()

    def _rest(self) -> None:
        self._awake -= 1
        if not self._awake and self._sleepers:
            self.now, _ = heapq.heappop(self._sleepers)
            self._awake = 1
            self._changed.notify_all()


def run(clock: SharedClock, works: list[Callable[[], None]]) -> None:
    def work(each: Callable[[], None]) -> None:
        try:
            each()
        finally:
            clock.leave()

    threads = [threading.Thread(target=work, args=(each,)) for each in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def alone(rate: float = RATE) -> tuple[ByteRate, list[float], list[float]]:
    """A rate for one thread, the time as a list of one number, and what was slept."""
    now, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    return ByteRate(rate, clock=lambda: now[0], sleep=sleep), now, slept


def test_bytes_pass_at_the_rate_and_no_faster() -> None:
    rate, now, _ = alone()
    for _ in range(100):
        rate.take(50_000)
    assert 5 - BURST_S - 50_000 / RATE <= now[0] <= 5


def test_what_is_taken_at_once_takes_as_long_as_in_small_pieces() -> None:
    rate, now, slept = alone()
    rate.take(5_000_000)
    assert 5 - BURST_S - GRAIN_BYTES / RATE <= now[0] <= 5
    assert max(slept) <= BURST_S, "nobody sleeps through more than a grain's time"


def test_a_line_that_was_idle_saves_no_more_than_its_burst() -> None:
    rate, now, slept = alone()
    now[0] = 1000.0
    rate.take(GRAIN_BYTES)
    assert not slept
    rate.take(10 * RATE)
    assert now[0] - 1000 >= 10 - BURST_S


def test_a_sleep_that_ended_late_is_made_up_for() -> None:
    now = [0.0]

    def oversleep(seconds: float) -> None:
        now[0] += seconds + 0.03

    rate = ByteRate(RATE, clock=lambda: now[0], sleep=oversleep)
    rate.take(5_000_000)
    assert now[0] <= 5 + 0.03


def test_threads_share_one_rate_and_get_equal_shares_whatever_they_ask_for_at_once() -> None:
    clock = SharedClock(4)
    rate = ByteRate(RATE, clock=clock.time, sleep=clock.sleep)
    each = 64 * GRAIN_BYTES
    ended: list[float] = []

    def worker(grains: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(64 // grains):
                rate.take(grains * GRAIN_BYTES)
            ended.append(clock.now)

        return work

    run(clock, [worker(64), worker(16), worker(4), worker(1)])
    whole_s = 4 * each / RATE
    assert whole_s - BURST_S - GRAIN_BYTES / RATE <= clock.now <= whole_s + 0.001
    # They had as much as each other at any time, but for the round in which one began: of 64 rounds they end in two.
    assert max(ended) - min(ended) <= 2 * 4 * GRAIN_BYTES / RATE


def test_who_asks_for_much_does_not_hold_up_who_asks_for_little() -> None:
    clock = SharedClock(2)
    rate = ByteRate(RATE, clock=clock.time, sleep=clock.sleep)
    done: dict[str, float] = {}

    def bulk() -> None:
        rate.take(20_000_000)
        done["bulk"] = clock.now

    def small() -> None:
        for _ in range(10):
            rate.take(1000)
        done["small"] = clock.now

    run(clock, [bulk, small])
    assert done["small"] <= BURST_S + 11 * GRAIN_BYTES / RATE
    assert done["bulk"] >= 20 - BURST_S


def test_all_who_ask_for_the_same_rates_in_a_process_share_them() -> None:
    one, other = process_rates(1e6, None), process_rates(1e6, None)
    assert one.up is other.up
    assert one.up is not None
    assert (one.up.bytes_per_s, one.down) == (1e6, None)
    assert process_rates(2e6, None).up is not one.up
    assert process_rates(None, None).up is None


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="0 bytes a second"):
        ByteRate(0)
