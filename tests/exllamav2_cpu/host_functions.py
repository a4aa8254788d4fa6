"""The functions of the compiled module that are C++ on the host: reading tensors, stop strings, small fills."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

NO_MATCH = -1
PARTIAL_MATCH = -2


def stloader_read(filename: str, offset: int, size: int, target: torch.Tensor) -> None:
    """Fill `target` with `size` bytes of the file from `offset` on."""
    content = np.fromfile(filename, dtype=np.uint8, count=size, offset=offset)
    if content.nbytes != size:
        raise RuntimeError("I/O error reading tensor")
    if size:
        target.view(-1).view(torch.uint8).copy_(torch.from_numpy(content))


def partial_strings_match(match: Any, offsets: Any, strings: Any) -> int:
    """Look for the strings, in their order, in `match`. All are buffers; text is UTF-32.

    offsets: where each string begins in `strings`, in bytes, and where the last ends.
    Returns where the first string that is found begins; PARTIAL_MATCH if `match` ends with the beginning of one;
    else NO_MATCH. The first string that says either decides.
    """
    text = _code_points(match)
    packed = _code_points(strings)
    bounds = [at // 4 for at in _code_points(offsets)]
    for first, end in pairwise(bounds):
        wanted = packed[first:end]
        for at in range(len(text)):
            part = text[at : at + len(wanted)]
            if part == wanted:
                return at
            if at + len(part) == len(text) and wanted[: len(part)] == part:
                return PARTIAL_MATCH
    return NO_MATCH


def fast_fill_cpu_ones_bool(tensor: torch.Tensor) -> None:
    """All True."""
    tensor.fill_(True)


def fast_fadd_cpu(a: torch.Tensor, b: torch.Tensor) -> None:
    """Add b (n,) to every n values of a, in place."""
    a.view(-1, b.numel()).add_(b.view(-1))


def fast_copy_cpu(dst: torch.Tensor, src: torch.Tensor) -> None:
    """dst = src; same shape and type."""
    if dst.shape != src.shape or dst.dtype != src.dtype:
        raise RuntimeError("Tensors must have the same shape and dtype")
    dst.copy_(src)


def logit_filter_exclusive(logit_filter: torch.Tensor, exclusive_lists: Sequence[Sequence[int]]) -> None:
    """Clear, in row i of the filter (batch, vocabulary), all but the ids of list i."""
    if len(exclusive_lists) != logit_filter.shape[0]:
        raise RuntimeError("Number of lists does not match batch size")
    for row, allowed in zip(logit_filter, exclusive_lists, strict=True):
        keep = torch.zeros_like(row)
        keep[list(allowed)] = True
        row &= keep


def _code_points(buffer: Any) -> list[int]:
    points: list[int] = np.frombuffer(buffer, np.uint32).tolist()
    return points
