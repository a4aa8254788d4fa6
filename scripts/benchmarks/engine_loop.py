"""`engine`: what headpond's loop around an engine costs, with nothing of the queue.

Throughput: ExLlamaV2Engine.generate, called from a thread a job, beside exllamav2's own generator in a bare loop; the
real package on the CPU harness of the tests, so that the kernels' speed is that of a CPU. And the delay between two
steps, where a device would wait: see `step_gap`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import psutil
from both_sides import RUN_TIMEOUT_S
from child import BenchmarkError, Child
from document import Measurement
from exllamav2_side import Side
from machine import ROOT
from runs import Run
from source_model import prepare_source
from step_gap import measure_step_gap
from throughput import SUBJECTS, Comparison, Load, Progress, measure_throughput

from headpond_workers.supervision.private_files import private_folder

SLOTS = 8
NEEDED = ("torch", "exllamav2", "transformers")
HEADPOND = (
    "ExLlamaV2Engine in a process of its own, its `generate` called from one thread a job; token ids are collected, "
    "nothing else"
)
PEER = (
    "ExLlamaV2DynamicGenerator in a process of its own: the same model, cache and settings, `iterate()` called in a "
    "bare loop; token ids are collected, nothing else"
)
SHORT_TURNS = 15
"""Pairs of a throughput for each pair that is asked for. The speed of a shared machine moves by a tenth within seconds:
many turns of half a second tell more of two sides than a few long ones."""
PAIRS_A_LIFE = 30
"""Pairs for which a process is kept. If one life of a process is slower than another, no figure hangs on one life."""


@dataclass(frozen=True, slots=True)
class Workload:
    """smollm2: (jobs at once, tokens of each) of each load. tiny_tokens: of each of 8 jobs. turns: see SHORT_TURNS."""

    smollm2: tuple[tuple[int, int], ...] = ((1, 8), (8, 4))
    tiny_tokens: int = 50
    turns: int = SHORT_TURNS


QUICK = Workload(turns=1)


def measure_engine(*, pairs: int, seed: int, quick: bool, folder: Path, progress: Progress) -> list[Measurement]:
    """folder: empty, private; for servers' data and logs. seed: nothing here is drawn. Raises HeadpondError."""
    workload = QUICK if quick else Workload()
    checkpoints = _checkpoints_module()
    prepare_source(checkpoints.SMOLLM2_SOURCE, benchmark="engine", progress=progress)
    progress("engine: making the checkpoints, unless they are there")
    try:
        loads = {
            checkpoints.smollm2(): [_smollm2(jobs, tokens) for jobs, tokens in workload.smollm2],
            checkpoints.tiny(): [_tiny(workload.tiny_tokens)],
        }
    except RuntimeError as error:
        raise BenchmarkError(f"A checkpoint could not be made: {error}") from error
    measured: dict[str, Measurement] = {}
    turns = pairs * workload.turns
    for checkpoint, its_loads in loads.items():
        for begin in range(0, turns, PAIRS_A_LIFE):
            part = range(begin, min(begin + PAIRS_A_LIFE, turns))
            with _both(checkpoint, folder / f"{checkpoint.name}-{begin}") as sides:
                for load in its_loads:
                    made = measure_throughput(
                        sides, load, Comparison("engine", HEADPOND, PEER, turns), progress=progress, part=part
                    )
                    measured.setdefault(load.name, replace(made, pairs=[])).pairs.extend(made.pairs)
    progress("engine: starting a worker and a bare loop over a scripted batch")
    gap = measure_step_gap(pairs=pairs, quick=quick, folder=folder / "step-gap", progress=progress)
    return [*measured.values(), gap]


def _checkpoints_module() -> ModuleType:
    """The tests' own checkpoints, made once and kept under build/. Raises BenchmarkError."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BenchmarkError(
            f"Not installed: {', '.join(missing)}. `scripts/bench engine` installs the extra test-exllamav2 by itself; "
            "in an environment of your own: pip install -e '.[dev,test-exllamav2]'"
        )
    sys.path.insert(0, str(ROOT / "tests"))
    from exllamav2_cpu import checkpoints

    module: ModuleType = checkpoints
    return module


class _Sides:
    """One checkpoint, loaded in two processes. One at a time is given work."""

    def __init__(self, headpond: Child, direct: Child) -> None:
        self._children = {Side.HEADPOND: headpond, Side.DIRECT: direct}
        self._processes = {side: psutil.Process(child.pid) for side, child in self._children.items()}

    def headpond(self, prompts: list[str], *, max_tokens: int) -> Run:
        return self._ask(Side.HEADPOND, prompts, max_tokens)

    def direct(self, prompts: list[str], *, max_tokens: int) -> Run:
        return self._ask(Side.DIRECT, prompts, max_tokens)

    def cpu_s(self) -> dict[str, float]:
        times = {side: process.cpu_times() for side, process in self._processes.items()}
        return {side.value: of.user + of.system for side, of in times.items()}

    def _ask(self, side: Side, prompts: list[str], max_tokens: int) -> Run:
        request = {"prompts": prompts, "max_tokens": max_tokens}
        return Run(**self._children[side].ask(request, timeout_s=RUN_TIMEOUT_S))


@contextmanager
def _both(checkpoint: Path, folder: Path) -> Iterator[_Sides]:
    """Raises HeadpondError. Both processes have ended when the context is left."""
    private_folder(folder)
    with ExitStack() as stack:
        headpond, direct = (
            stack.enter_context(
                Child(
                    "exllamav2_side.py",
                    {"side": side.value, "checkpoint": str(checkpoint), "context_tokens": 512, "slots": SLOTS},
                    log=folder / f"{side.value}.log",
                )
            )
            for side in (Side.HEADPOND, Side.DIRECT)
        )
        yield _Sides(headpond, direct)


def _smollm2(jobs: int, tokens: int) -> Load:
    prompts = [f"A long and detailed essay about {subject}.\n\n" for subject in SUBJECTS[:jobs]]
    return _load("SmolLM2-135M on exllamav2", prompts, tokens)


def _tiny(tokens: int) -> Load:
    from exllamav2_cpu import tiny_corpus

    # At whichever word it begins, the model goes on with it for ever.
    words = str(tiny_corpus.STORY).split()
    return _load("a tiny checkpoint on exllamav2", [" ".join(words[n * 3 : n * 3 + 16]) for n in range(SLOTS)], tokens)


def _load(model: str, prompts: Sequence[str], tokens: int) -> Load:
    many = f"{len(prompts)} job{'s at once' if len(prompts) > 1 else ''}"
    return Load(
        f"{model}, {many}",
        f"FP16 on the CPU harness, one thread, paged, {SLOTS} slots, {many} of {tokens} tokens, temperature 0; the "
        f"prompts are in the cache from an uncounted run; new processes for every {PAIRS_A_LIFE} pairs",
        list(prompts),
        tokens,
        same_tokens=True,
    )
