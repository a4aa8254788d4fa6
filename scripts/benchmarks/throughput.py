"""Tokens a second of one load on both sides, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from child import BenchmarkError
from document import Kind, Measurement, Samples
from pairs import Pair, run_pairs
from runs import Run

Progress = Callable[[str], None]

UNCOUNTED_TOKENS = 8
"""Of each job before the first pair: connections, threads and caches are there in a deployment that has run."""
# Questions whose answers are long: no job ends before its max_tokens.
SUBJECTS = (
    "how a river shapes a valley", "the history of bread", "how a steam engine works", "life in a medieval town",
    "why the seasons change", "how glass is made", "the voyage of a letter", "how bees build a hive",
)  # fmt: skip


class Sides(Protocol):
    """Two ways to the same model. Both run all prompts at once, to their last token."""

    def headpond(self, prompts: list[str], *, max_tokens: int) -> Run: ...

    def direct(self, prompts: list[str], *, max_tokens: int) -> Run: ...

    def cpu_s(self) -> dict[str, float]:
        """Seconds of processor time so far, of each process by name."""
        ...


@dataclass(frozen=True, slots=True)
class Load:
    """same_tokens: whether this engine's tokens are the same in each run, so that a difference is a defect."""

    name: str
    text: str
    prompts: list[str]
    max_tokens: int
    same_tokens: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared. headpond, peer: what the two sides are, in words. pairs: of all parts together. short: both
    sides in a word or two, for lines about progress."""

    benchmark: str
    headpond: str
    peer: str
    pairs: int
    short: tuple[str, str] = ("through headpond", "directly")


def measure_throughput(
    sides: Sides, load: Load, comparison: Comparison, *, progress: Progress, part: range | None = None
) -> Measurement:
    """part: the numbers of the pairs to make now; None: all of them. Raises HeadpondError."""
    benchmark, pairs = comparison.benchmark, comparison.pairs
    numbers = range(pairs) if part is None else part

    def counted(call: Callable[..., Run]) -> Callable[[int], Samples]:
        def run(_number: int) -> Samples:
            before = sides.cpu_s()
            made = call(load.prompts, max_tokens=load.max_tokens)
            wanted = load.max_tokens * len(load.prompts)
            if made.tokens != wanted:
                message = f"{load.name}: {made.tokens} tokens came instead of {wanted}"
                if load.same_tokens:
                    raise BenchmarkError(f"{message}.")
                # The model ended an answer by itself. Tokens and seconds are both noted, so the rate stays right.
                progress(f"{benchmark}: {message}")
            return _samples_of(made, _since(before, sides.cpu_s()))

        return run

    def done(number: int, pair: Pair[Samples]) -> None:
        if load.same_tokens and pair.headpond["digests"] != pair.peer["digests"]:
            raise BenchmarkError(f"{load.name}: the two sides made different tokens.")
        ours, theirs = (samples["tokens"] / samples["seconds"] for samples in (pair.headpond, pair.peer))
        mine, other = comparison.short
        progress(
            f"{benchmark}: {load.name}: pair {number + 1}/{pairs}: {ours:.1f} tokens/s {mine}, {theirs:.1f} {other}, "
            f"{ours / theirs:.3f}"
        )

    for call in (sides.headpond, sides.direct):
        call(load.prompts, max_tokens=min(UNCOUNTED_TOKENS, load.max_tokens))
    measured = run_pairs(len(numbers), counted(sides.headpond), counted(sides.direct), done=done, begin=numbers.start)
    return Measurement(Kind.THROUGHPUT, load.name, load.text, comparison.headpond, comparison.peer, measured)


def _since(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: round(after[name] - before[name], 2) for name in after}


def _samples_of(run: Run, cpu_s: dict[str, float]) -> Samples:
    """What the file keeps of a run."""
    return {"tokens": run.tokens, "seconds": round(run.seconds, 4), "digests": run.digests, "cpu_s": cpu_s}
