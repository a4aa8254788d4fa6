"""How long the job loop keeps a device waiting between two steps, beside a bare loop over the same batch.

On headpond's side everything of a worker is there but the model: a real worker process with its queue, leases,
detokeniser and writer, and a producer that reads every stream.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from both_sides import MODEL, RUN_TIMEOUT_S, await_ready, worker_process, write_config
from child import BenchmarkError, Child
from document import Kind, Measurement, Samples
from pairs import Pair, percentile, run_pairs
from runs import Run
from stepwise_engine import ENTRY_POINT
from throughput import SUBJECTS, Progress

from headpond_workers.supervision.embedded_valkey import running_valkey
from headpond_workers.supervision.private_files import private_folder

HEADPOND = (
    "JobLoop in a worker process with all that a worker has but a model: dramatiq's threads, leases, Detokenizer, "
    "TokenWriter on an embedded Valkey (append-only file, everysec); one producer process reads every stream"
)
PEER = "a bare loop over the same batch, in a process of its own; token ids are collected, nothing else"
_HERE = Path(__file__).resolve().parent


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
    def text(self) -> str:
        return (
            f"{self.sequences} sequences at once of {self.tokens} tokens each, over a scripted batch generator: a step "
            f"waits {self.step_s * 1000:g} ms and gives each sequence one token; no stop strings. Counted are the "
            f"first {self.gaps} times a run from a step's return to the next step's call between steps of all "
            f"{self.sequences}; a run's p99 is of these"
        )


QUICK = Workload(gaps=100)


def measure_step_gap(*, pairs: int, quick: bool, folder: Path, progress: Progress) -> Measurement:
    """folder: private; for servers' data and logs. Raises HeadpondError."""
    workload = QUICK if quick else Workload()
    name = f"delay between two steps, {workload.sequences} sequences"
    prompts = [f"Tell me about {SUBJECTS[n % len(SUBJECTS)]}, part {n}." for n in range(workload.sequences)]
    with _sides(workload, folder) as (headpond, bare):

        def counted(call: Callable[[list[str], int], tuple[Run, Samples]]) -> Callable[[int], Samples]:
            def run(_number: int) -> Samples:
                made, times = call(prompts, workload.tokens)
                if made.tokens != workload.tokens * len(prompts):
                    raise BenchmarkError(f"{name}: {made.tokens} tokens came, not {workload.tokens} of each sequence.")
                if len(times["gap_ms"]) != workload.gaps:
                    raise BenchmarkError(
                        f"{name}: all sequences ran together for {len(times['gap_ms'])} steps only, not "
                        f"{workload.gaps}. Is the machine busy?"
                    )
                return {"digest": made.digest, **times}

            return run

        def done(number: int, pair: Pair[Samples]) -> None:
            if pair.headpond["digest"] != pair.peer["digest"]:
                raise BenchmarkError(f"{name}: the two sides made different tokens.")
            ours, theirs = (percentile(samples["gap_ms"], 0.99) for samples in (pair.headpond, pair.peer))
            progress(
                f"engine: {name}: pair {number + 1}/{pairs}: p99 {ours:.3f} ms in the job loop, {theirs:.3f} in a bare "
                "loop"
            )

        for call in (headpond, bare):
            call(prompts, workload.spare_tokens)
        measured = run_pairs(pairs, counted(headpond), counted(bare), done=done)
    return Measurement(Kind.STEP_GAP, name, workload.text, HEADPOND, PEER, measured)


_Side = Callable[[list[str], int], tuple[Run, Samples]]


@contextmanager
def _sides(workload: Workload, folder: Path) -> Iterator[tuple[_Side, _Side]]:
    """Both sides, as functions of (prompts, max_tokens). Raises HeadpondError."""
    private_folder(folder)
    times = folder / "times.jsonl"
    with ExitStack() as stack:
        valkey = stack.enter_context(running_valkey(folder / "state"))
        config, log = folder / "headpond.toml", folder / "worker.log"
        write_config(config, valkey, _table(workload, times))
        worker = stack.enter_context(worker_process(config, log, packages=_package(folder / "packages")))
        await_ready(worker, valkey.url, log)
        producer = stack.enter_context(
            Child("producer.py", {"url": valkey.url, "model": MODEL}, log=folder / "producer.log")
        )
        alone = {"step_s": workload.step_s, "sequences": workload.sequences, "most_gaps": workload.gaps}
        bare = stack.enter_context(Child("bare_loop.py", alone, log=folder / "bare.log"))
        ended = 0

        def in_worker(prompts: list[str], max_tokens: int) -> tuple[Run, Samples]:
            nonlocal ended
            answer = producer.ask({"prompts": prompts, "max_tokens": max_tokens}, timeout_s=RUN_TIMEOUT_S)
            # Written in the last step, so before the last token was read.
            lines = times.read_text(encoding="utf-8").splitlines()
            ended += 1
            if len(lines) != ended:
                raise BenchmarkError(f"The worker wrote down {len(lines)} runs instead of {ended}.")
            return Run(**answer), json.loads(lines[-1])

        def in_bare_loop(prompts: list[str], max_tokens: int) -> tuple[Run, Samples]:
            answer = bare.ask({"prompts": prompts, "max_tokens": max_tokens}, timeout_s=RUN_TIMEOUT_S)
            return Run(**answer["run"]), answer["times"]

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
