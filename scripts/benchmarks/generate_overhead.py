"""`generate`: tokens a second through headpond beside the same engine called directly.

Through headpond: a worker process, Valkey, and a producer process that submits all jobs and reads every stream to its
last token. Directly: one process that calls `engine.generate` from a thread a job. Both render the same prompts, ask
for the same tokens, and are measured from the first submit or call to the last end. Engines are loaded and warm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from both_sides import BothSides, both_sides
from document import Measurement
from first_token import measure_first_token
from source_model import prepare_source
from throughput import SUBJECTS, Comparison, Load, Progress, measure_throughput

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
HEADPOND = (
    "a worker process, Valkey (append-only file, synced each second), one producer process that reads every stream"
)
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
    # Before anything else: it may download, and fail.
    prepare_source(LLAMA_SOURCE, benchmark="generate", progress=progress)
    measured = []
    progress(f"generate: starting the scripted engine on both sides, {SCRIPTED_SLOTS} slots")
    with both_sides(SCRIPTED_TABLE, folder / "scripted") as sides:
        measured.append(_throughput(sides, scripted_load(workload), pairs=pairs, progress=progress))
        measured.append(measure_first_token(sides, pairs=pairs, seed=seed, quick=quick, progress=progress))
    progress(f"generate: loading {LLAMA_SOURCE} on both sides")
    with both_sides(LLAMA_TABLE, folder / "llamacpp") as sides:
        for jobs in workload.llama_jobs:
            measured.append(_throughput(sides, llama_load(workload, jobs), pairs=pairs, progress=progress))
    return measured


def scripted_load(workload: Workload) -> Load:
    return Load(
        f"scripted engine, {SCRIPTED_SLOTS} jobs at once",
        f"{SCRIPTED_SLOTS} slots at {SCRIPTED_TOKENS_PER_S} tokens/s each, {SCRIPTED_SLOTS} jobs at once of "
        f"{workload.scripted_tokens} tokens each",
        [f"Write at length about {SUBJECTS[n % len(SUBJECTS)]}, part {n}." for n in range(SCRIPTED_SLOTS)],
        workload.scripted_tokens,
        same_tokens=True,
    )


def llama_load(workload: Workload, jobs: int) -> Load:
    return Load(
        f"llama.cpp, {LLAMA_SOURCE}, {jobs} job{'s at once' if jobs > 1 else ''}",
        f"{LLAMA_SOURCE} on one thread, {LLAMA_SLOTS} slots, {jobs} job{'s at once' if jobs > 1 else ''} of "
        f"{workload.llama_tokens} tokens, temperature 0, no prompt cache",
        [f"Write a long, detailed essay about {subject}." for subject in SUBJECTS[:jobs]],
        workload.llama_tokens,
        # What is batched together decides the last digits of the logits.
        same_tokens=jobs == 1,
    )


def _throughput(sides: BothSides, load: Load, *, pairs: int, progress: Progress) -> Measurement:
    return measure_throughput(sides, load, Comparison("generate", HEADPOND, PEER, pairs), progress=progress)
