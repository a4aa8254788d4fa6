"""Child processes of the tests that import this package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).parent.parent
DEADLINE_S = 280.0


def environment(**extra: str) -> dict[str, str]:
    """This process's, with the tests importable and one thread: several run beside each other."""
    paths = [str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def run_python(arguments: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
    """Run this Python with `arguments` to its end. Returns its output.

    Raises RuntimeError, with the end of what it said, if it fails.
    """
    done = subprocess.run(
        [sys.executable, *arguments],
        env=dict(env or environment()),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"python {' '.join(arguments)} left with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout
