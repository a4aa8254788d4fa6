"""How much later the first token comes through headpond than from the engine itself: one job at a time, idle worker."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from both_sides import BothSides
from document import Kind, Measurement, Samples
from pairs import Pair, run_pairs
from runs import Run

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Workload:
    jobs: int = 20
    uncounted: int = 2
    tokens: int = 4
    shortest_gap_s: float = 0.05
    longest_gap_s: float = 0.15

    @property
    def text(self) -> str:
        return (
            f"{self.jobs} jobs a run of {self.tokens} tokens, one after the other, each "
            f"{self.shortest_gap_s * 1000:g} to {self.longest_gap_s * 1000:g} ms after the last ended (uniform, "
            f"seeded), after {self.uncounted} uncounted ones; the scripted engine takes a step of 12.5 ms for its first"
            " token"
        )


QUICK = Workload(jobs=5, uncounted=1)


def measure_first_token(sides: BothSides, *, pairs: int, seed: int, quick: bool, progress: Progress) -> Measurement:
    workload = QUICK if quick else Workload()

    def one_by_one(call: Callable[..., Run]) -> Callable[[int], Samples]:
        def run(number: int) -> Samples:
            gaps = random.Random(f"{seed}:{number}")  # noqa: S311 - a workload, not a secret
            took_ms = []
            for job in range(workload.uncounted + workload.jobs):
                time.sleep(gaps.uniform(workload.shortest_gap_s, workload.longest_gap_s))
                made = call([f"Question {job} of run {number}."], max_tokens=workload.tokens)
                took_ms.append(round(made.first_token_s[0] * 1000, 3))
            return {"first_token_ms": took_ms[workload.uncounted :]}

        return run

    def done(number: int, pair: Pair[Samples]) -> None:
        ours, theirs = (statistics.median(samples["first_token_ms"]) for samples in (pair.headpond, pair.peer))
        progress(
            f"generate: first token: pair {number + 1}/{pairs}: p50 {ours:.2f} ms through headpond, {theirs:.2f} "
            f"directly, {ours - theirs:+.2f}"
        )

    measured = run_pairs(pairs, one_by_one(sides.headpond), one_by_one(sides.direct), done=done)
    return Measurement(
        Kind.FIRST_TOKEN,
        "time to the first token",
        workload.text,
        "from just before `submit` until AsyncClient's reader has the first chunk",
        "from the call of `engine.generate` until its first token",
        measured,
    )
