"""The real worker process over the harness: `python -m exllamav2_cpu.worker ARGUMENTS OF THE WORKER`.

The environment sets up the stand-ins: EXLLAMAV2_CPU_DEVICES (default 1), and EXLLAMAV2_CPU_SLOW_S, seconds that
every entry of rms_norm then takes longer (default 0).
"""

from __future__ import annotations

import os
from typing import NoReturn

from exllamav2_cpu import harness
from headpond_workers import worker

DEVICES = "EXLLAMAV2_CPU_DEVICES"
SLOW_S = "EXLLAMAV2_CPU_SLOW_S"


def main() -> NoReturn:
    """Install the stand-ins, then do what headpond_workers.worker does."""
    stand_in = harness.install(devices=int(os.environ.get(DEVICES, "1")))
    stand_in.slow(float(os.environ.get(SLOW_S, "0")))
    worker.main()


if __name__ == "__main__":
    main()
