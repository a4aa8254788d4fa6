"""Small figures in JSON files that several processes write: each whole, the last one stays, and none is missed."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from headpond_workers.prefixes.folders import make_private

MAX_BYTES = 64 << 10


def read_numbers(path: Path) -> dict[str, float]:
    """The numbers of a JSON object, by name. Empty for what is not there or is no such file: it is measured anew."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        found = json.loads(content) if len(content) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: float(value) for name, value in found.items() if type(value) in (int, float)}


def write_numbers(path: Path, numbers: Mapping[str, float]) -> None:
    """Mode 0600, whole or not at all. Raises OSError."""
    make_private(path.parent)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            json.dump(dict(numbers), file)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
