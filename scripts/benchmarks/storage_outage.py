"""`storage`: tokens a second while storage does not answer, beside those just before."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

from child import BenchmarkError
from document import Measurement, Samples
from generate_overhead import LLAMA_SOURCE, LLAMA_TABLE, QUICK, SCRIPTED_TABLE, Workload, llama_load, scripted_load
from pairs import Order, Pair
from persisted_side import ABOUT, persisted_model
from plan import Plan
from source_model import prepare_source
from steady_load import SETTLE_S, Stretch, steady_load
from storage_persisting import LLAMA_JOBS
from throughput import Load

from headpond_workers.supervision.programs import SEAWEED

BEFORE_S, OUTAGE_S = 30.0, 60.0


@dataclass(frozen=True, slots=True)
class _Lengths:
    """before_s, window_s: of each stretch that is counted before the outage, and during it."""

    before_s: float
    window_s: float
    settle_s: float


def measure_outage_scripted(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    return _measure(plan, SCRIPTED_TABLE, scripted_load(_workload(plan)))


def measure_outage_llamacpp(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    prepare_source(LLAMA_SOURCE, benchmark=plan.benchmark, progress=plan.progress)
    return _measure(plan, LLAMA_TABLE, llama_load(_workload(plan), LLAMA_JOBS))


def _workload(plan: Plan) -> Workload:
    return QUICK if plan.quick else Workload()


def _measure(plan: Plan, table: str, load: Load) -> Measurement:
    lengths = (
        _Lengths(3.0, 3.0, 1.0) if plan.quick else _Lengths(BEFORE_S / plan.pairs, OUTAGE_S / plan.pairs, SETTLE_S)
    )
    with (
        persisted_model(table, plan.folder / "deployment") as model,
        steady_load(model, load, plan.folder, settle_s=lengths.settle_s) as busy,
    ):
        before = [busy.count_for(lengths.before_s) for _ in range(plan.pairs)]
        if not all(stretch.tokens for stretch in before):
            raise BenchmarkError(f"No token came for {lengths.before_s:g} s, with storage there. Is the machine busy?")
        began = time.monotonic()
        model.stop(SEAWEED)
        during = [busy.count_for(lengths.window_s) for _ in range(plan.pairs)]
        waiting = model.queue.journal_length()
        model.go_on(SEAWEED)
        back = time.monotonic()
        model.await_committed()
        caught_up_s = round(time.monotonic() - back, 3)
    pairs: list[Pair[Samples]] = []
    for number, (with_storage, without) in enumerate(zip(before, during, strict=True)):
        pairs.append(Pair(Order.PEER, _samples(without), _samples(with_storage)))
        plan.say_pair(number, f"{without.tokens_per_s:.1f} tokens/s of {with_storage.tokens_per_s:.1f} before")
    pairs[-1].headpond.update({"waiting_entries": waiting, "caught_up_s": caught_up_s})
    plan.say(f"{waiting} journal entries waited after {back - began:.0f} s, in storage {caught_up_s:.2f} s later")
    return Measurement(
        plan.kind, f"storage away: {load.name}",
        f"{load.text}; as one ends the next is submitted. {plan.pairs} stretches of {lengths.before_s:g} s just before "
        f"SeaweedFS is stopped (SIGSTOP), and as many of {lengths.window_s:g} s from then on; the first of each are a "
        "pair, and so on",
        ABOUT, "the same deployment, just before", pairs,
    )  # fmt: skip


def _samples(stretch: Stretch) -> Samples:
    return {name: round(value, 4) for name, value in asdict(stretch).items()}
