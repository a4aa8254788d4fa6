"""When a trial is promoted, rolled back, or gone on with."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headpond.jobs import JobState
from headpond.switching import Outcome
from headpond_workers.checkpoints.alias_document import TrialBounds
from headpond_workers.checkpoints.trial_decision import FALSE_ALARMS, MOST_JOBS, Ruling, decide
from trial_outcomes import drawn, ended

BOUNDS = TrialBounds()
TRIAL, OTHER = "4", "3"
sides = st.lists(
    st.builds(
        ended,
        version=st.sampled_from([TRIAL, OTHER]),
        state=st.sampled_from([JobState.FINISHED, JobState.FINISHED, JobState.FAILED, JobState.CANCELLED]),
        first_token_ms=st.none() | st.integers(0, 500),
        tokens=st.integers(0, 40),
        made=st.integers(0, 40),
        generate_ms=st.integers(0, 4000),
    ),
    max_size=80,
)
loose = st.builds(
    TrialBounds,
    least_jobs=st.integers(1, 30),
    jobs_to_promote=st.integers(1, 60),
    error_points=st.floats(0, 50),
    slower_percent=st.floats(0, 200),
)


def ruled(outcomes: list[Outcome], bounds: TrialBounds = BOUNDS) -> Ruling:
    return decide(outcomes, bounds, trial=TRIAL, other=OTHER).ruling


def both(trial: int, other: int, **of_trial: float) -> list[Outcome]:
    generator = random.Random(5)
    return [
        *drawn(TRIAL, trial, generator=generator, **of_trial),
        *drawn(OTHER, other, generator=generator),
    ]


@pytest.mark.parametrize(
    ("of_trial", "told"),
    [
        ({"fails": 0.5}, "of jobs fail"),
        ({"first_token_ms": 400.0}, "the first token"),
        ({"token_ms": 40.0}, "a token of version 4"),
    ],
)
def test_a_version_that_is_worse_is_rolled_back_and_the_reason_says_by_how_much(
    of_trial: dict[str, float], told: str
) -> None:
    found = decide(both(120, 600, **of_trial), BOUNDS, trial=TRIAL, other=OTHER)
    assert found.ruling is Ruling.ROLL_BACK
    assert told in found.reason
    assert "version 4" in found.reason
    assert "version 3" in found.reason


def test_a_version_that_is_no_worse_is_promoted_once_it_has_its_jobs() -> None:
    assert ruled(both(199, 1000)) is Ruling.GO_ON
    assert ruled(both(200, 1000)) is Ruling.PROMOTE
    assert ruled(both(200, 1000, fails=0.0, first_token_ms=60.0, token_ms=10.0)) is Ruling.PROMOTE


def test_a_difference_within_its_bound_rolls_nothing_back() -> None:
    assert ruled(both(400, 1600, token_ms=23.0)) is Ruling.PROMOTE
    assert ruled(both(400, 1600, token_ms=23.0), replace(BOUNDS, slower_percent=0.0)) is Ruling.ROLL_BACK


def test_bounds_that_ask_for_more_jobs_than_are_kept_are_met_by_those() -> None:
    many = replace(BOUNDS, least_jobs=5000, jobs_to_promote=10_000)
    assert ruled(both(MOST_JOBS, MOST_JOBS), many) is Ruling.PROMOTE
    assert ruled(both(MOST_JOBS - 1, MOST_JOBS), many) is Ruling.GO_ON


@given(sides, loose)
def test_nothing_is_decided_below_the_least_number_of_jobs(outcomes: list[Outcome], bounds: TrialBounds) -> None:
    found = decide(outcomes, bounds, trial=TRIAL, other=OTHER)
    counted = [o.version for o in outcomes if o.state in (JobState.FINISHED, JobState.FAILED)]
    if min(counted.count(TRIAL), counted.count(OTHER)) < bounds.least_jobs:
        assert found.ruling is Ruling.GO_ON
    if found.ruling is Ruling.PROMOTE:
        assert counted.count(TRIAL) >= bounds.jobs_to_promote
    assert found.reason


@given(sides, loose, st.floats(0, 20), st.floats(0, 50))
def test_wider_bounds_roll_back_no_more(
    outcomes: list[Outcome], bounds: TrialBounds, points: float, percent: float
) -> None:
    wider = replace(bounds, error_points=bounds.error_points + points, slower_percent=bounds.slower_percent + percent)
    if ruled(outcomes, wider) is Ruling.ROLL_BACK:
        assert ruled(outcomes, bounds) is Ruling.ROLL_BACK


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), loose)
def test_more_failures_never_save_a_version(hits: int, of_other: int, more: int, bounds: TrialBounds) -> None:
    def failing(version: str, count: int) -> list[Outcome]:
        return [ended(version, JobState.FAILED if n < count else JobState.FINISHED, None, 0, 0) for n in range(60)]

    assume(hits + more <= 60)
    before = ruled(failing(TRIAL, hits) + failing(OTHER, of_other), bounds)
    after = ruled(failing(TRIAL, hits + more) + failing(OTHER, of_other), bounds)
    if before is Ruling.ROLL_BACK:
        assert after is Ruling.ROLL_BACK


@given(
    st.lists(st.integers(0, 400), min_size=30, max_size=60),
    st.lists(st.integers(0, 400), min_size=30, max_size=60),
    st.integers(0, 300),
    loose,
)
def test_later_first_tokens_never_save_a_version(
    of_trial: list[int], of_other: list[int], more: int, bounds: TrialBounds
) -> None:
    other = [ended(OTHER, first_token_ms=ms, made=1) for ms in of_other]
    before = ruled([*(ended(TRIAL, first_token_ms=ms, made=1) for ms in of_trial), *other], bounds)
    after = ruled([*(ended(TRIAL, first_token_ms=ms + more, made=1) for ms in of_trial), *other], bounds)
    if before is Ruling.ROLL_BACK:
        assert after is Ruling.ROLL_BACK


@settings(deadline=None)
@given(sides, loose)
def test_a_version_that_is_the_other_to_the_last_job_is_not_rolled_back(
    outcomes: list[Outcome], bounds: TrialBounds
) -> None:
    mine = [replace(o, version=TRIAL) for o in outcomes]
    assert ruled([*mine, *(replace(o, version=OTHER) for o in outcomes)], bounds) is not Ruling.ROLL_BACK


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_an_equal_version_is_rolled_back_no_more_often_than_is_said(share: float) -> None:
    """The strictest bounds, looked at after every tenth job: chance has as many occasions as it can get."""
    strict = TrialBounds(least_jobs=50, jobs_to_promote=200, error_points=0.0, slower_percent=0.0)
    generator = random.Random(29)
    rounds, alarms = 60, 0
    for _ in range(rounds):
        of_trial = drawn(TRIAL, 200, generator=generator, fails=0.05)
        of_other = drawn(OTHER, round(200 * (1 - share) / share), generator=generator, fails=0.05)
        for jobs in range(50, 201, 10):
            beside = of_other[: round(jobs * (1 - share) / share)]
            if ruled([*of_trial[:jobs], *beside], strict) is Ruling.ROLL_BACK:
                alarms += 1
                break
    assert alarms / rounds <= FALSE_ALARMS
