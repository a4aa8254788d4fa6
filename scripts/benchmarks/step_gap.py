"""How long the job loop keeps a device waiting between two steps, beside a bare loop over the same batch.

On headpond's side everything of a worker is there but the model: a real worker process with its queue, leases,
detokeniser and writer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from both_sides import MODEL, RUN_TIMEOUT_S, await_ready, worker_process, write_config
from child import BenchmarkError, Child
from document import Kind, Measurement, Samples
from pairs import Pair, percentile, run_pairs
from runs import digest_of_tokens
from stepwise_engine import ENTRY_POINT
from throughput import SUBJECTS, Progress

from headpond import Client
from headpond_workers.supervision.embedded_valkey import running_valkey
from headpond_workers.supervision.private_files import last_lines, private_folder

HEADPOND = (
    "JobLoop in a worker process with all that a worker has but a model: a thread a job, leases, Detokenizer, "
    "TokenWriter on an embedded Valkey (append-only file, synced each second)"
)
PEER = "a bare loop over the same batch, in a process of its own; token ids are collected, nothing else"
_HERE = Path(__file__).resolve().parent
_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Workload:
    """gaps: counted in each run. spare_tokens: of each sequence, for the steps in which not all of them run yet."""

    sequences: int = 32
    step_s: float = 0.01
    gaps: int = 1000
    spare_tokens: int = 150

    @property
    def tokens(self) -> int:
        return self.gaps + self.spare_tokens

    @property
    def prompts(self) -> list[str]:
        return [f"Tell me about {SUBJECTS[n % len(SUBJECTS)]}, part {n}." for n in range(self.sequences)]

    @property
    def text(self) -> str:
        return (
            f"{self.sequences} sequences at once of {self.tokens} tokens each, over a scripted batch generator: a step "
            f"waits {self.step_s * 1000:g} ms and gives each sequence one token; no stop strings. Counted are the "
            f"first {self.gaps} times a run from the return of a step to the call of the next, while all "
            f"{self.sequences} run; percentiles are of each run. The streams are read when it is over"
        )


QUICK = Workload(gaps=100)


@dataclass(frozen=True, slots=True)
class _Made:
    """What one run made. digests: of the ids of each prompt. times: a stepwise_batch.StepTimes."""

    digests: list[str]
    times: Samples


_Side = Callable[[int], _Made]
"""Runs all prompts for so many tokens each."""


def measure_step_gap(*, pairs: int, quick: bool, folder: Path, progress: Progress) -> Measurement:
    """folder: private; for servers' data and logs. Raises HeadpondError."""
    workload = QUICK if quick else Workload()
    name = f"delay between two steps, {workload.sequences} sequences"
    expected: set[tuple[str, ...]] = set()

    def counted(side: _Side) -> Callable[[int], Samples]:
        def run(_number: int) -> Samples:
            made = side(workload.tokens)
            expected.add(tuple(made.digests))
            if len(expected) > 1:
                raise BenchmarkError(f"{name}: two runs made different tokens.")
            if (count := len(made.times["gap_ms"])) != workload.gaps:
                raise BenchmarkError(
                    f"{name}: all sequences ran together for {count} steps only, not {workload.gaps}. Is the machine "
                    "busy?"
                )
            return made.times

        return run

    def done(number: int, pair: Pair[Samples]) -> None:
        ours, theirs = (percentile(samples["gap_ms"], 0.99) for samples in (pair.headpond, pair.peer))
        progress(
            f"engine: {name}: pair {number + 1}/{pairs}: p99 {ours:.3f} ms in the job loop, {theirs:.3f} in a bare loop"
        )

    with _sides(workload, folder) as (headpond, bare):
        for side in (headpond, bare):
            side(workload.spare_tokens)
        measured = run_pairs(pairs, counted(headpond), counted(bare), done=done)
    return Measurement(Kind.STEP_GAP, name, workload.text, HEADPOND, PEER, measured)


@contextmanager
def _sides(workload: Workload, folder: Path) -> Iterator[tuple[_Side, _Side]]:
    """headpond's side and the bare loop. Raises HeadpondError."""
    private_folder(folder)
    config, log, times = folder / "headpond.toml", folder / "worker.log", folder / "times.jsonl"
    alone = {"step_s": workload.step_s, "sequences": workload.sequences, "most_gaps": workload.gaps}
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "state"))
        write_config(config, valkey, _table(workload, times))
        worker = stack.enter_context(worker_process(config, log, packages=_package(folder / "packages")))
        await_ready(worker, valkey.url, log)
        client = stack.enter_context(Client(valkey.url))
        bare = stack.enter_context(Child("bare_loop.py", alone, log=folder / "bare.log"))
        ended: list[str] = []

        def in_worker(max_tokens: int) -> _Made:
            jobs = [client.submit(MODEL, each, max_tokens=max_tokens, temperature=0.0) for each in workload.prompts]
            ended.append(_await_line(times, len(ended), worker, log))
            answers = [job.result(timeout=RUN_TIMEOUT_S) for job in jobs]
            return _Made([digest_of_tokens(answer.token_ids) for answer in answers], json.loads(ended[-1]))

        def in_bare_loop(max_tokens: int) -> _Made:
            request = {"prompts": workload.prompts, "max_tokens": max_tokens}
            return _Made(**bare.ask(request, timeout_s=RUN_TIMEOUT_S))

        yield in_worker, in_bare_loop


def _table(workload: Workload, times: Path) -> str:
    values: dict[str, Any] = {
        "engine": "stepwise", "slots": workload.sequences, "step_s": workload.step_s, "most_gaps": workload.gaps,
        "times": str(times),
    }  # fmt: skip
    # Strings and numbers of JSON are those of TOML.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _package(folder: Path) -> Path:
    """A folder in which a process finds the engine `stepwise`, as if it were installed."""
    information = folder / "headpond_stepwise-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: headpond-stepwise\nVersion: 1\n")
    (information / "entry_points.txt").write_text(f"[headpond.engines]\n{ENTRY_POINT}\n")
    for name in ("stepwise_engine.py", "stepwise_batch.py"):
        shutil.copyfile(_HERE / name, folder / name)
    return folder


def _await_line(path: Path, number: int, worker: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for a line of a file, counted from 0, while its writer lives. Raises BenchmarkError."""
    until = time.monotonic() + RUN_TIMEOUT_S
    while True:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text.count("\n") > number:
            return text.splitlines()[number]
        if worker.poll() is not None or time.monotonic() >= until:
            raise BenchmarkError(f"The worker did not end its sequences. The end of its log:\n{last_lines(log, 15)}")
        time.sleep(_LOOK_EVERY_S)
