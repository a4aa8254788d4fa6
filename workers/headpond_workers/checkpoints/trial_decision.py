"""What becomes of a trial: promoted, rolled back, or gone on with, by its bounds and the figures of both sides. Pure.

Somebody looks again each time that a job has ended, and three things are looked at, so an interval that holds with
95 % once would soon be left by chance. Decisions are therefore made by intervals of 99 %, and by both: that of the
trial must lie wholly above that of the other version, by more than the bound. A version that is exactly like the other
is so rolled back in fewer than FALSE_ALARMS of trials, however often somebody looks; tests/test_trial_decision.py draws
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from headpond.switching import Outcome
from headpond_workers.checkpoints.alias_document import TrialBounds
from headpond_workers.checkpoints.trial_figures import Figure, SideFigures, TrialFigures, figures_of

DECIDING_CONFIDENCE = 0.99
FALSE_ALARMS = 0.05
CLOCK_MS = 1.0
"""First tokens are timed in whole milliseconds: a difference of one is none."""
MOST_JOBS = 2000
"""As many outcomes of a version are kept: bounds that ask for more are met by these."""


class Ruling(StrEnum):
    """What is to be done."""

    PROMOTE = "promote"
    ROLL_BACK = "roll back"
    GO_ON = "go on"


@dataclass(frozen=True, slots=True)
class Decision:
    """reason: one sentence for people, with the figures."""

    ruling: Ruling
    reason: str


def decide(outcomes: Iterable[Outcome], bounds: TrialBounds, *, trial: str, other: str) -> Decision:
    """trial, other: names of the versions. Never anything but GO_ON before both have `least_jobs` ended jobs."""
    found = figures_of(outcomes, trial=trial, other=other, confidence=DECIDING_CONFIDENCE)
    return decide_by(found, bounds)


def decide_by(found: TrialFigures, bounds: TrialBounds) -> Decision:
    """found: with intervals of DECIDING_CONFIDENCE."""
    least = min(bounds.least_jobs, MOST_JOBS)
    for side in (found.trial, found.other):
        if side.jobs < least:
            return Decision(
                Ruling.GO_ON, f"version {side.version} has {side.jobs} ended jobs; it takes {least} to decide anything"
            )
    worse = next(_worse(found.trial, found.other, bounds), None)
    if worse is not None:
        return Decision(Ruling.ROLL_BACK, worse)
    wanted = min(max(bounds.jobs_to_promote, least), MOST_JOBS)
    if found.trial.jobs >= wanted:
        return Decision(
            Ruling.PROMOTE,
            f"version {found.trial.version} is no worse than version {found.other.version} within its bounds, by "
            f"{found.trial.jobs} ended jobs",
        )
    return Decision(
        Ruling.GO_ON,
        f"version {found.trial.version} is within its bounds by {found.trial.jobs} of {wanted} ended jobs",
    )


def _worse(trial: SideFigures, other: SideFigures, bounds: TrialBounds) -> Iterator[str]:
    """Why the trial is worse, in words; nothing if it is not known to be."""
    if _above(trial.failed_share, other.failed_share, factor=1.0, beyond=bounds.error_points / 100):
        yield (
            f"of version {trial.version} {_percent(trial.failed_share)} of jobs fail, of version {other.version} "
            f"{_percent(other.failed_share)}: more than {bounds.error_points:g} points apart"
        )
    slower = 1 + bounds.slower_percent / 100
    if _above(trial.first_token_ms, other.first_token_ms, factor=slower, beyond=CLOCK_MS):
        yield (
            f"the first token of version {trial.version} takes {_ms(trial.first_token_ms)}, of version {other.version} "
            f"{_ms(other.first_token_ms)}: more than {bounds.slower_percent:g} % longer"
        )
    if _above(trial.token_ms, other.token_ms, factor=slower, beyond=0.0):
        yield (
            f"a token of version {trial.version} takes {_ms(trial.token_ms)}, of version {other.version} "
            f"{_ms(other.token_ms)}: more than {bounds.slower_percent:g} % longer"
        )


def _above(trial: Figure | None, other: Figure | None, *, factor: float, beyond: float) -> bool:
    """Whether the whole interval of the trial lies above the other's, times factor and by more than `beyond`."""
    if trial is None or other is None or not (trial.bounded and other.bounded):
        return False
    return trial.low > other.high * factor + beyond


def _percent(figure: Figure | None) -> str:
    if figure is None:
        return "none"
    return f"{figure.value * 100:.1f} % ({figure.low * 100:.1f} to {figure.high * 100:.1f})"


def _ms(figure: Figure | None) -> str:
    return "no time" if figure is None else f"{figure.value:.1f} ms ({figure.low:.1f} to {figure.high:.1f})"
