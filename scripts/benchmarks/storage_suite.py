"""`storage` and `state`: every measurement of versions in storage, and of state there, by its name, and the run of all
or some of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from document import Kind, Measurement
from plan import Plan
from storage_loss import measure_loss_window
from storage_outage import measure_outage_llamacpp, measure_outage_scripted
from storage_persisting import measure_persisting_llamacpp, measure_persisting_scripted
from storage_prefix import measure_stored_prefix
from storage_puts import measure_puts
from storage_restore import measure_restore
from storage_rollover import measure_rollover
from storage_transfers import measure_pull, measure_push, measure_push_again
from storage_versions import measure_alias, measure_changed

from headpond_workers.supervision.private_files import private_folder

MEASUREMENTS: dict[Kind, Callable[[Plan], Measurement]] = {
    Kind.PUSH: measure_push,
    Kind.PULL: measure_pull,
    Kind.CHANGED: measure_changed,
    Kind.PUSH_AGAIN: measure_push_again,
    Kind.ALIAS: measure_alias,
    Kind.ROLLOVER: measure_rollover,
}
"""Of versions, in the order in which they run and are reported."""
STATE_MEASUREMENTS: dict[Kind, Callable[[Plan], Measurement]] = {
    Kind.PERSISTING_SCRIPTED: measure_persisting_scripted,
    Kind.PERSISTING_LLAMACPP: measure_persisting_llamacpp,
    Kind.OUTAGE_SCRIPTED: measure_outage_scripted,
    Kind.OUTAGE_LLAMACPP: measure_outage_llamacpp,
    Kind.LOSS_WINDOW: measure_loss_window,
    Kind.PUTS: measure_puts,
    Kind.RESTORE: measure_restore,
    Kind.STORED_PREFIX: measure_stored_prefix,
}
"""Of state, in the same way."""


def measure_storage(**how: Any) -> list[Measurement]:
    """Versions; see `_measure`. Raises HeadpondError."""
    return _measure(MEASUREMENTS, "storage", **how)


def measure_state(**how: Any) -> list[Measurement]:
    """State; see `_measure`. Raises HeadpondError."""
    return _measure(STATE_MEASUREMENTS, "state", **how)


def _measure(
    measurements: Mapping[Kind, Callable[[Plan], Measurement]],
    benchmark: str,
    *,
    pairs: int,
    seed: int,
    quick: bool,
    only: Sequence[str],
    folder: Path,
    progress: Callable[[str], None],
) -> list[Measurement]:
    """only: names of measurements; none means all. folder: empty, private."""
    made = []
    for kind, measure in measurements.items():
        if only and kind.value not in only:
            continue
        plan = Plan(kind, pairs, seed, quick, private_folder(folder / kind.value), progress, benchmark)
        plan.say("starting")
        made.append(measure(plan))
        # Some gigabytes each.
        shutil.rmtree(plan.folder)
    return made
