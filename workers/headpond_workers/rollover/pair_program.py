"""The command line of a worker whose versions change side by side: see `headpond_workers.pair`."""

from __future__ import annotations

import math
import sys

from headpond.errors import DeploymentError
from headpond.settings import Settings
from headpond.tables import ModelTable, VersionedModel

STOP_MARGIN_S = 15
"""What a stopping worker may take beyond its drain: to park its jobs and free the device."""


def changes_side_by_side(table: ModelTable) -> bool:
    """Whether a worker of this model has the next version loaded beside it. One version for ever changes never."""
    source = table.version_source
    return (
        isinstance(table, VersionedModel)
        and table.rollover == "side-by-side"
        and source is not None
        and source.alias is not None
    )


def worker_arguments(settings: Settings, model: str, instance: str) -> tuple[str, ...]:
    """Of `headpond_workers.worker`. Raises DeploymentError for settings of no file."""
    if settings.file is None:
        raise DeploymentError("A deployment needs a configuration file: write a headpond.toml first.")
    return "--config", str(settings.file), "--model", model, "--instance", instance


def pair_argv(settings: Settings, model: str, instance: str) -> tuple[str, ...]:
    """The whole command line. Raises as `worker_arguments`."""
    return (
        *(sys.executable, "-m", "headpond_workers.pair"),
        *("--state-folder", str(settings.state_folder)),
        *("--instance", instance),
        *("--stop-wait-s", str(stop_wait_s(settings.model(model)))),
        "--",
        *worker_arguments(settings, model, instance),
    )


def stop_wait_s(table: ModelTable) -> int:
    """How long a worker may take from SIGTERM to its end."""
    return math.ceil(table.drain_timeout_s) + STOP_MARGIN_S
