"""`storage`: tokens a second while storage does not answer, beside those just before."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from child import BenchmarkError
from document import Measurement, Samples
from generate_overhead import LLAMA_SOURCE, LLAMA_TABLE, QUICK, SCRIPTED_TABLE, Workload, llama_load, scripted_load
from pairs import Order, Pair
from persisted_side import ABOUT, PersistedModel, persisted_model
from plan import Plan
from source_model import prepare_source
from steady_load import SETTLE_S, SteadyLoad, Stretch, steady_load
from storage_persisting import LLAMA_JOBS, LLAMA_TIMES
from throughput import Load

from headpond_workers.supervision.programs import SEAWEED

OUTAGE_S = 60.0


@dataclass(frozen=True, slots=True)
class _Lengths:
    """outages: one after the other. stretch_s: of each stretch that is counted, before an outage and during it."""

    outages: int
    stretch_s: float
    settle_s: float


@dataclass(frozen=True, slots=True)
class _Outage:
    """seconds: how long storage was away. waiting: entries of the journal at its end."""

    before: list[Stretch]
    during: list[Stretch]
    seconds: float
    waiting: int
    caught_up_s: float


def measure_outage_scripted(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    return _measure(plan, SCRIPTED_TABLE, scripted_load(_workload(plan)), outages=1)


def measure_outage_llamacpp(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    prepare_source(LLAMA_SOURCE, benchmark=plan.benchmark, progress=plan.progress)
    return _measure(
        plan, LLAMA_TABLE, llama_load(_workload(plan), LLAMA_JOBS), outages=1 if plan.quick else LLAMA_TIMES
    )


def _workload(plan: Plan) -> Workload:
    return QUICK if plan.quick else Workload()


def _measure(plan: Plan, table: str, load: Load, *, outages: int) -> Measurement:
    count = plan.pairs
    plan = replace(plan, pairs=count * outages)
    lengths = _Lengths(outages, 3.0, 1.0) if plan.quick else _Lengths(outages, OUTAGE_S / count, SETTLE_S)
    pairs: list[Pair[Samples]] = []
    with (
        persisted_model(table, plan.folder / "deployment") as model,
        steady_load(model, load, plan.folder, settle_s=lengths.settle_s) as busy,
    ):
        for _ in range(lengths.outages):
            outage = _outage(model, busy, count, lengths.stretch_s)
            for with_storage, without in zip(outage.before, outage.during, strict=True):
                pairs.append(Pair(Order.PEER, _samples(without), _samples(with_storage)))
                plan.say_pair(
                    len(pairs) - 1, f"{without.tokens_per_s:.1f} tokens/s of {with_storage.tokens_per_s:.1f} before"
                )
            pairs[-1].headpond.update({"waiting_entries": outage.waiting, "caught_up_s": outage.caught_up_s})
            plan.say(
                f"{outage.waiting} journal entries waited after {outage.seconds:.0f} s, in storage "
                f"{outage.caught_up_s:.2f} s later"
            )
    return Measurement(
        plan.kind, f"storage away: {load.name}",
        f"{load.text}; as one ends the next is submitted. {count} stretches of {lengths.stretch_s:g} s just "
        f"before SeaweedFS is stopped (SIGSTOP), and as many from then on; the first of each are a pair, and so on. "
        f"Outages: {lengths.outages}",
        ABOUT, "the same deployment, just before", pairs,
    )  # fmt: skip


def _outage(model: PersistedModel, busy: SteadyLoad, count: int, stretch_s: float) -> _Outage:
    """Raises BenchmarkError."""
    before = [busy.count_for(stretch_s) for _ in range(count)]
    if not all(stretch.tokens for stretch in before):
        raise BenchmarkError(f"No token came for {stretch_s:g} s, with storage there. Is the machine busy?")
    began = time.monotonic()
    model.stop(SEAWEED)
    during = [busy.count_for(stretch_s) for _ in range(count)]
    waiting = model.queue.journal_length()
    model.go_on(SEAWEED)
    back = time.monotonic()
    model.await_committed()
    return _Outage(before, during, back - began, waiting, round(time.monotonic() - back, 3))


def _samples(stretch: Stretch) -> Samples:
    return {name: round(value, 4) for name, value in asdict(stretch).items()}
