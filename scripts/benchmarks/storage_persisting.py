"""`storage`: tokens a second with state kept in storage beside the same without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
from both_sides import ServedModel, served
from document import Measurement
from generate_overhead import LLAMA_SOURCE, LLAMA_TABLE, QUICK, SCRIPTED_TABLE, Workload, llama_load, scripted_load
from persisted_side import ABOUT, PersistedModel, persisted_model
from plan import Plan
from runs import Run
from source_model import prepare_source
from throughput import Comparison, Load, measure_throughput

LLAMA_JOBS = 8
LLAMA_TIMES = 3
"""So many times the pairs: two runs of llama.cpp alone, one after the other, differ by up to a tenth."""
OFF = (
    "the same model behind a Valkey (append-only file, synced each second) without a journal, a persister or storage. "
    "Whichever side has no work does nothing: persister and SeaweedFS are stopped (SIGSTOP) meanwhile"
)


class _Sides:
    """On: headpond's side. Off: the direct one."""

    def __init__(self, on: PersistedModel, off: ServedModel) -> None:
        self._on, self._off = on, off
        self._off_processes = {
            "worker, off": psutil.Process(off.worker.pid),
            "valkey, off": psutil.Process(off.valkey.pid),
            "producer, off": psutil.Process(off.producer.pid),
        }

    def headpond(self, prompts: list[str], *, max_tokens: int) -> Run:
        self._on.wake()
        made = self._on.run(prompts, max_tokens=max_tokens)
        self._on.rest()
        return made

    def direct(self, prompts: list[str], *, max_tokens: int) -> Run:
        self._off.run(["Are you there?"], max_tokens=1)
        return self._off.run(prompts, max_tokens=max_tokens)

    def cpu_s(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._off_processes.items()}
        return self._on.cpu_s() | {name: of.user + of.system for name, of in times.items()}


def measure_persisting_scripted(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    return _measure(plan, SCRIPTED_TABLE, scripted_load(_workload(plan)))


def measure_persisting_llamacpp(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    prepare_source(LLAMA_SOURCE, benchmark=plan.benchmark, progress=plan.progress)
    plan = replace(plan, pairs=plan.pairs * (1 if plan.quick else LLAMA_TIMES))
    return _measure(plan, LLAMA_TABLE, llama_load(_workload(plan), LLAMA_JOBS))


def _workload(plan: Plan) -> Workload:
    return QUICK if plan.quick else Workload()


def _measure(plan: Plan, table: str, load: Load) -> Measurement:
    comparison = Comparison(plan.benchmark, ABOUT, OFF, plan.pairs, short=("with persistence", "without"))
    with _both(table, plan.folder) as sides:
        made = measure_throughput(sides, load, comparison, progress=plan.progress)
    return replace(made, kind=plan.kind, name=f"persistence on and off: {load.name}")


@contextmanager
def _both(table: str, folder: Path) -> Iterator[_Sides]:
    with served(table, folder / "off") as off, persisted_model(table, folder / "on") as on:
        on.rest()
        yield _Sides(on, off)
