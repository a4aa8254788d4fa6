"""What `headpond config check` finds wrong, asked before anything of a deployment is touched."""

from __future__ import annotations

from collections.abc import Collection

from headpond.config_check import Variables, no_model, reference_problems
from headpond.settings import Settings, first_of
from headpond_workers.supervision.scaling import worker_counts


def refuse_wrong(settings: Settings, models: Collection[str] | None = None, *, variables: Variables) -> None:
    """models: those that are to be started; None: all that have workers here.

    Raises ConfigError if there is no model, or if what the tables refer to cannot be used: a path that is not there, a
    secret that cannot be read, a source that the catalogue lacks, an engine that is not installed.
    """
    if not settings.models:
        raise no_model(settings).error()
    counts = worker_counts(settings)
    served = [name for name in settings.models if (counts[name] if models is None else name in models)]
    if problems := reference_problems(settings, served, variables=variables):
        raise first_of(problems)
