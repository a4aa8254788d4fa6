"""Memory of the CUDA devices: how much is used, and a way to leave little of it.

torch is imported only where it is used: this file must be importable where there is none.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def device_count() -> int:
    import torch

    count: int = torch.cuda.device_count()
    return count


def allocated_bytes() -> list[int]:
    """Of the tensors of this process, on each device."""
    import torch

    gc.collect()
    return [torch.cuda.memory_allocated(index) for index in range(device_count())]


@contextmanager
def only_left(left_bytes: Sequence[int]) -> Iterator[None]:
    """Fill the devices but for so many bytes of each, as another process would."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    ballast = []
    for index, left in enumerate(left_bytes):
        free = torch.cuda.mem_get_info(index)[0]
        ballast.append(torch.empty(max(0, free - left), dtype=torch.uint8, device=f"cuda:{index}"))
    try:
        yield
    finally:
        ballast.clear()
        torch.cuda.empty_cache()
