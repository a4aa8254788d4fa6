"""`storage`, puts: how many objects a busy model writes to storage."""

from __future__ import annotations

from document import Measurement, Samples
from generate_overhead import QUICK, SCRIPTED_TABLE, Workload, scripted_load
from pairs import Order, Pair
from persisted_side import ABOUT, persisted_model
from plan import Plan
from steady_load import SETTLE_S, steady_load

WINDOW_S, QUICK_WINDOW_S = 10.0, 2.0


def measure_puts(plan: Plan) -> Measurement:
    """Raises HeadpondError."""
    load = scripted_load(QUICK if plan.quick else Workload())
    window_s, settle_s = (QUICK_WINDOW_S, 0.5) if plan.quick else (WINDOW_S, SETTLE_S)
    pairs: list[Pair[Samples]] = []
    with (
        persisted_model(SCRIPTED_TABLE, plan.folder / "deployment") as model,
        steady_load(model, load, plan.folder, settle_s=settle_s) as busy,
    ):
        for number in range(plan.pairs):
            before = model.puts()
            stretch = busy.count_for(window_s)
            puts = model.puts() - before
            pairs.append(
                Pair(
                    Order.HEADPOND,
                    {"puts": puts, "seconds": round(stretch.seconds, 4), "tokens": stretch.tokens},
                    {},
                )
            )
            plan.say_pair(number, f"{puts} puts in {stretch.seconds:.1f} s, {stretch.tokens_per_s:.0f} tokens/s")
    return Measurement(
        plan.kind, "objects written to storage by a busy model",
        f"{load.text}; as one ends the next is submitted. Stretches of {window_s:g} s, one after the other; every "
        "request that writes an object or a part of one counts, as SeaweedFS counts them: segments, heads, parts and "
        "documents of snapshots",
        ABOUT, "none; the goal is a number", pairs,
    )  # fmt: skip
