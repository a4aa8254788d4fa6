"""`generate`: tokens a second through headpond beside the same engine called directly.

Through headpond: a worker process, Valkey, and a producer process that submits all jobs and reads every stream to its
last token. Directly: one process that calls `engine.generate` from a thread a job. Both render the same prompts, ask
for the same tokens, and are measured from the first submit or call to the last end. Engines are loaded and warm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from both_sides import BothSides, both_sides, cpu_since, samples_of
from child import BenchmarkError
from document import Kind, Measurement, Samples
from first_token import measure_first_token
from pairs import Pair, run_pairs
from runs import Run

from headpond_workers.models.prepare import prepare

Progress = Callable[[str], None]

SCRIPTED_SLOTS, SCRIPTED_TOKENS_PER_S = 64, 80
LLAMA_SLOTS, LLAMA_SOURCE = 8, "smollm2-135m:Q8_0"
SCRIPTED_TABLE = f"""\
engine = "scripted"
slots = {SCRIPTED_SLOTS}
tokens_per_s = {SCRIPTED_TOKENS_PER_S}
answer_tokens = 1000000
"""
LLAMA_TABLE = f"""\
engine = "llamacpp"
source = "{LLAMA_SOURCE}"
slots = {LLAMA_SLOTS}
context_tokens = 512
threads = 1
"""
# Questions whose answers are long: no job ends before its max_tokens.
SUBJECTS = (
    "how a river shapes a valley", "the history of bread", "how a steam engine works", "life in a medieval town",
    "why the seasons change", "how glass is made", "the voyage of a letter", "how bees build a hive",
)  # fmt: skip
HEADPOND = "a worker process, Valkey (append-only file, everysec), one producer process that reads every stream"
PEER = "the engine in a process of its own, called from one thread a job; token ids are collected, nothing else"


@dataclass(frozen=True, slots=True)
class Workload:
    scripted_tokens: int = 400
    llama_tokens: int = 96
    llama_jobs: tuple[int, ...] = (1, 4, 8)


QUICK = Workload(scripted_tokens=40, llama_tokens=12)


def measure_generate(*, pairs: int, seed: int, quick: bool, folder: Path, progress: Progress) -> list[Measurement]:
    """folder: empty, private; for servers' data and logs. Raises HeadpondError."""
    workload = QUICK if quick else Workload()
    stages: set[str] = set()

    def preparing(stage: str, _done: int, _total: int) -> None:
        if stage not in stages:
            stages.add(stage)
            progress(f"generate: {LLAMA_SOURCE}: {stage}")

    # Before anything else: it may download, and fail.
    prepare(LLAMA_SOURCE, progress=preparing)
    measured = []
    progress(f"generate: starting the scripted engine on both sides, {SCRIPTED_SLOTS} slots")
    with both_sides(SCRIPTED_TABLE, folder / "scripted") as sides:
        measured.append(_throughput(sides, _scripted(workload), pairs=pairs, progress=progress))
        measured.append(measure_first_token(sides, pairs=pairs, seed=seed, quick=quick, progress=progress))
    progress(f"generate: loading {LLAMA_SOURCE} on both sides")
    with both_sides(LLAMA_TABLE, folder / "llamacpp") as sides:
        for jobs in workload.llama_jobs:
            measured.append(_throughput(sides, _llama(workload, jobs), pairs=pairs, progress=progress))
    return measured


@dataclass(frozen=True, slots=True)
class _Load:
    """same_tokens: whether this engine's tokens are the same in each run, so that a difference is a defect."""

    name: str
    text: str
    prompts: list[str]
    max_tokens: int
    same_tokens: bool


def _scripted(workload: Workload) -> _Load:
    return _Load(
        f"scripted engine, {SCRIPTED_SLOTS} jobs at once",
        f"{SCRIPTED_SLOTS} slots at {SCRIPTED_TOKENS_PER_S} tokens/s each, {SCRIPTED_SLOTS} jobs at once of "
        f"{workload.scripted_tokens} tokens each",
        [f"Write at length about {SUBJECTS[n % len(SUBJECTS)]}, part {n}." for n in range(SCRIPTED_SLOTS)],
        workload.scripted_tokens,
        same_tokens=True,
    )


def _llama(workload: Workload, jobs: int) -> _Load:
    return _Load(
        f"llama.cpp, {LLAMA_SOURCE}, {jobs} job{'s at once' if jobs > 1 else ''}",
        f"{LLAMA_SOURCE} on one thread, {LLAMA_SLOTS} slots, {jobs} job{'s at once' if jobs > 1 else ''} of "
        f"{workload.llama_tokens} tokens, temperature 0, no prompt cache",
        [f"Write a long, detailed essay about {subject}." for subject in SUBJECTS[:jobs]],
        workload.llama_tokens,
        # What is batched together decides the last digits of the logits.
        same_tokens=jobs == 1,
    )


def _throughput(sides: BothSides, load: _Load, *, pairs: int, progress: Progress) -> Measurement:
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
                progress(f"generate: {message}")
            return samples_of(made, cpu_since(before, sides.cpu_s()))

        return run

    def done(number: int, pair: Pair[Samples]) -> None:
        if load.same_tokens and pair.headpond["digests"] != pair.peer["digests"]:
            raise BenchmarkError(f"{load.name}: the two sides made different tokens.")
        ours, theirs = (samples["tokens"] / samples["seconds"] for samples in (pair.headpond, pair.peer))
        progress(
            f"generate: {load.name}: pair {number + 1}/{pairs}: {ours:.1f} tokens/s through headpond, {theirs:.1f} "
            f"directly, {ours / theirs:.3f}"
        )

    # Connections, threads and caches are there in a deployment that has run for a while.
    for call in (sides.headpond, sides.direct):
        call(load.prompts, max_tokens=min(8, load.max_tokens))
    measured = run_pairs(pairs, counted(sides.headpond), counted(sides.direct), done=done)
    return Measurement(Kind.THROUGHPUT, load.name, load.text, HEADPOND, PEER, measured)
