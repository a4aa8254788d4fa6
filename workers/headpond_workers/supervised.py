"""Where a process takes its settings from: one that `headpond up` started, from what it is started with; any other,
from the configuration as it stands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from headpond.kept_settings import running_settings
from headpond.settings import Settings, load_settings

SUPERVISED = "HEADPOND_SETTINGS_DIGEST"
"""In the environment of each worker and persister that `headpond up` starts."""


def settings_of_process(config: Path, environment: Mapping[str, str], *, needed: Collection[str]) -> Settings:
    """config: headpond.toml. needed: as for `load_settings`. Raises ConfigError."""
    digest = environment.get(SUPERVISED)
    kept = None if digest is None else running_settings(config, digest)
    # An older release kept nothing.
    return kept or load_settings(config, environment=environment, needed=needed)
