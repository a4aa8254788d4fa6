"""The environment of processes that tests start and that need modules of tests/."""

from __future__ import annotations

import os
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parent)


def with_test_modules() -> dict[str, str]:
    """That of this process, in which modules of tests/ are found."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (_TESTS, os.environ.get("PYTHONPATH"))))}
