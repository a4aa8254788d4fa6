"""How many workers each model has: what the configuration says, unless `headpond scale` said otherwise since; none
of a model that was stopped.

`.headpond/scale.json` remembers what was said, beside what the configuration said then: a configuration that
was changed afterwards is the newer word, and counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from headpond.errors import DeploymentError, InvalidRequest
from headpond.settings import Settings
from headpond_workers.supervision.private_files import write_private
from headpond_workers.supervision.stopped import read_stopped

SCALE_FILE = "scale.json"
SCHEMA = "headpond/scale"
VERSION = 1
MOST_WORKERS = 64
"""Of one model on one machine; as in the configuration."""


@dataclass(frozen=True, slots=True)
class Scale:
    """One remembered `headpond scale`. configured: what the configuration said then."""

    workers: int
    configured: int


def worker_counts(settings: Settings) -> dict[str, int]:
    """How many workers each model of the configuration is to have."""
    stopped = read_stopped(settings.state_folder)
    return {name: 0 if name in stopped else count for name, count in started_counts(settings).items()}


def started_counts(settings: Settings) -> dict[str, int]:
    """How many workers each model has where it is not stopped."""
    remembered = read_scales(settings.state_folder)
    counts = {}
    for name, model in settings.models.items():
        scale = remembered.get(name)
        counts[name] = scale.workers if scale is not None and scale.configured == model.workers else model.workers
    return counts


def remember(settings: Settings, counts: dict[str, int]) -> None:
    """Note new counts, beside those of other models. Raises ConfigError for an unknown model, InvalidRequest
    for a count that is out of range."""
    scales = read_scales(settings.state_folder)
    for name, count in counts.items():
        configured = settings.model(name).workers
        if not 0 <= count <= MOST_WORKERS:
            raise InvalidRequest(
                f"{name}={count}: a model has 0 to {MOST_WORKERS} workers on one machine, such as {name}=3",
                field="workers",
            )
        scales[name] = Scale(count, configured)
    document = {
        "schema": SCHEMA,
        "v": VERSION,
        "models": {
            name: {"workers": scale.workers, "configured": scale.configured}
            for name, scale in sorted(scales.items())
            if name in settings.models
        },
    }
    write_private(settings.state_folder / SCALE_FILE, json.dumps(document, indent=1) + "\n")


def read_scales(state_folder: Path) -> dict[str, Scale]:
    """What was remembered, by model. Raises DeploymentError if the file is damaged."""
    path = state_folder / SCALE_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA or found["v"] != VERSION:
            raise ValueError(f"it is a {found['schema']} of version {found['v']}")
        return {
            str(name): Scale(int(entry["workers"]), int(entry["configured"])) for name, entry in found["models"].items()
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DeploymentError(f"Cannot read {path}: {error.strerror}. Check who owns it.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(
            f"{path} cannot be used ({error}). Remove it: the counts of the configuration hold again."
        ) from error
