"""The worker process over the harness, whose device is full at the next step after SIGUSR1.

    python -m exllamav2_cpu_worker_oom ARGUMENTS OF THE WORKER

From then on another process holds all of the device but LEFT_BYTES. EXLLAMAV2_CPU_SLOW_S as in exllamav2_cpu.worker.
"""

from __future__ import annotations

import os
import signal
from typing import NoReturn

import torch

from exllamav2_cpu import harness
from exllamav2_cpu.worker import SLOW_S
from headpond_workers import worker

LEFT_BYTES = 1 << 20


def main() -> NoReturn:
    """Install the stand-ins and the signal, then do what headpond_workers.worker does."""
    stand_in = harness.install()
    stand_in.slow(float(os.environ.get(SLOW_S, "0")))

    def fill(*_: object) -> None:
        stand_in.vram_bytes = LEFT_BYTES
        stand_in.fail("rms_norm", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."))

    signal.signal(signal.SIGUSR1, fill)
    worker.main()


if __name__ == "__main__":
    main()
