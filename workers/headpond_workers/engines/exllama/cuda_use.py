"""How much of its CUDA devices a process of torch has taken."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from headpond_workers.engines.protocol import DeviceUse


def cuda_use(devices: Sequence[int] | None) -> DeviceUse:
    """What torch has reserved on all devices that it sees. devices: their numbers in the model's table; None: all.

    Memory that others have beside it, and the driver's own context, are not counted.
    """
    cuda: Any = importlib.import_module("torch").cuda
    if not cuda.is_available():
        return DeviceUse("cpu")
    count = int(cuda.device_count())
    numbers = ",".join(map(str, devices if devices is not None else range(count)))
    return DeviceUse(f"cuda:{numbers}", sum(int(cuda.memory_reserved(index)) for index in range(count)))
