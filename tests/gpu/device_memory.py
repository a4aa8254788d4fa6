"""Memory of the CUDA devices: how much is used, and a way to leave little of it.

torch is imported only where it is used: this file must be importable where there is none.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

LEAST_BYTES = 2 << 20
"""torch takes smaller tensors from a pool of their own, from which a short prompt lives."""


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
    """Fill the devices but for so many bytes of each, as another process would.

    What torch keeps back in blocks of more than a mebibyte counts as left, and is filled too.
    """
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    ballast: list[Any] = []
    for index, left in enumerate(left_bytes):
        room = torch.empty(left, dtype=torch.uint8, device=f"cuda:{index}")
        ballast += _everything(index)
        del room
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        ballast.clear()
        torch.cuda.empty_cache()


def _everything(index: int) -> list[Any]:
    """All that can be allocated on a device, in tensors of ever smaller sizes."""
    import torch

    taken = []
    size = torch.cuda.mem_get_info(index)[0]
    while size >= LEAST_BYTES:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=f"cuda:{index}"))
        except torch.OutOfMemoryError:
            size //= 2
    return taken
