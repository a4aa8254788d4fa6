"""Figures of a trial: shares and medians with their intervals."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headpond.jobs import JobState
from headpond_workers.checkpoints.trial_figures import figures_of, median_of, median_rank, share, side_of
from trial_outcomes import drawn, ended

values = st.lists(st.floats(0, 1e9), min_size=1, max_size=200)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # As statsmodels' proportion_confint(method="wilson") and Newcombe (1998) have them.
    [(0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],
)
def test_a_share_has_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    found = share(hits, count)
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))
    assert found.value == hits / count


@given(st.integers(0, 2000), st.integers(1, 2000))
def test_a_share_lies_in_its_interval_which_one_more_hit_raises(hits: int, count: int) -> None:
    hits = min(hits, count)
    found = share(hits, count)
    assert found is not None
    assert 0 <= found.low <= found.value <= found.high <= 1
    if hits < count:
        more = share(hits + 1, count)
        assert more is not None
        assert more.low > found.low
        assert more.high >= found.high


@pytest.mark.parametrize(
    ("count", "rank"),
    # Ranks of the usual tables for 95 %: none below 6 values, the extremes up to 8.
    [(1, 0), (5, 0), (6, 1), (8, 1), (9, 2), (20, 6), (50, 18), (100, 40)],
)
def test_the_ranks_of_a_median_are_those_of_the_tables(count: int, rank: int) -> None:
    assert median_rank(count, 0.95) == rank


def test_as_many_values_as_are_kept_have_a_rank() -> None:
    # The normal approximation: 1000 less 1.96 half roots of 2000.
    assert median_rank(2000, 0.95) == pytest.approx(1000 - 1.96 * math.sqrt(2000) / 2, abs=2)


@given(values)
def test_a_median_lies_in_its_interval_whatever_the_order(numbers: list[float]) -> None:
    found = median_of(numbers)
    assert found is not None
    assert found.low <= found.value <= found.high
    assert found.count == len(numbers)
    assert median_of(sorted(numbers, reverse=True)) == found
    assert found.bounded == (len(numbers) >= 6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = random.Random(11)
    rounds, hits = 600, 0
    for _ in range(rounds):
        found = median_of([generator.lognormvariate(3, 1) for _ in range(40)])
        assert found is not None
        hits += found.low <= math.exp(3) <= found.high
    assert hits / rounds > 0.93


def test_each_figure_counts_the_jobs_that_have_it() -> None:
    outcomes = [
        *[ended("4", tokens=10 + n, made=10 + n) for n in range(10)],
        ended("4", JobState.FAILED, None, 0, 0),
        ended("4", JobState.DEAD, 70, 3, 3, 100),
        ended("4", JobState.CANCELLED, 5, 2, 2),
        ended("4", JobState.EXPIRED, None, 0, 0),
        ended("4", JobState.FINISHED, 100, 1, 1),
        ended("3"),
        ended("2", JobState.FAILED),
    ]
    found = figures_of(outcomes, trial="4", other="3")
    side = found.trial
    assert (side.version, side.jobs, side.failed) == ("4", 13, 2)
    assert side.failed_share is not None
    assert side.failed_share.value == pytest.approx(2 / 13)
    assert side.first_token_ms is not None
    assert (side.first_token_ms.value, side.first_token_ms.count) == (100, 12)
    assert side.answer_tokens is not None
    assert side.answer_tokens.count == 11
    assert side.token_ms is not None
    assert side.token_ms.count == 11
    assert (found.other.jobs, found.other.failed) == (1, 0)


def test_the_speed_of_a_job_is_that_of_its_last_lease() -> None:
    resumed = ended("4", first_token_ms=1000, tokens=500, made=11, generate_ms=1200)
    side = side_of("4", [resumed])
    assert side.token_ms is not None
    assert side.token_ms.value == pytest.approx(20)
    assert side.tokens_per_s is not None
    assert side.tokens_per_s.value == pytest.approx(50)


def test_a_version_without_jobs_has_no_figures() -> None:
    side = side_of("4", [])
    assert (side.jobs, side.failed_share, side.first_token_ms, side.tokens_per_s) == (0, None, None, None)


def test_figures_do_not_depend_on_the_order_of_the_outcomes() -> None:
    generator = random.Random(3)
    outcomes = drawn("4", 60, generator=generator) + drawn("3", 80, generator=generator)
    shuffled = list(outcomes)
    generator.shuffle(shuffled)
    assert figures_of(shuffled, trial="4", other="3") == figures_of(outcomes, trial="4", other="3")
    slower = [replace(o, generate_ms=o.generate_ms * 2) if o.version == "4" else o for o in outcomes]
    assert figures_of(slower, trial="4", other="3").other == figures_of(outcomes, trial="4", other="3").other
