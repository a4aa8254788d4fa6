"""`queue`: every measurement of the queue by its name, and the run of all or some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from append_rate import measure_append
from claim_depth import measure_claim
from crash_recovery import measure_recovery
from document import Kind, Measurement
from enqueue_rate import measure_enqueue, measure_enqueue_many
from idle_commands import measure_idle
from noop_rate import measure_no_op
from pickup import measure_pickup
from plan import Plan
from queued_memory import measure_memory
from reader_latency import measure_reader
from slot_gap import measure_slot_gap

from headpond_workers.supervision.private_files import private_folder

MEASUREMENTS: dict[Kind, Callable[[Plan], Measurement]] = {
    Kind.PICKUP: measure_pickup,
    Kind.SLOT_GAP: measure_slot_gap,
    Kind.ENQUEUE: measure_enqueue,
    Kind.ENQUEUE_MANY: measure_enqueue_many,
    Kind.NO_OP: measure_no_op,
    Kind.APPEND: measure_append,
    Kind.READER: measure_reader,
    Kind.RECOVERY: measure_recovery,
    Kind.IDLE: measure_idle,
    Kind.MEMORY: measure_memory,
    Kind.CLAIM: measure_claim,
}
"""In the order in which they run and are reported."""


def measure_queue(
    *, pairs: int, seed: int, quick: bool, only: Sequence[str], folder: Path, progress: Callable[[str], None]
) -> list[Measurement]:
    """only: names of measurements; none means all. folder: empty, private. Raises HeadpondError."""
    made = []
    for kind, measure in MEASUREMENTS.items():
        if only and kind.value not in only:
            continue
        # Each has a server of its own: what one leaves behind must not slow the next.
        plan = Plan(kind, pairs, seed, quick, private_folder(folder / kind.value), progress)
        plan.say("starting")
        made.append(measure(plan))
    return made
