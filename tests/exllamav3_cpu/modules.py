"""Stand-ins for the modules that exllamav3 imports and that cannot be had on a CPU."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

import torch

ABSENT = ("triton", "marisa_trie", "llguidance")
"""Imported by exllamav3 at its top, used by nothing that runs here."""
EXTENSION = "exllamav3_ext"


class _Nothing:
    """Takes any use that a module makes of a missing one while it is imported: decorators, annotations, constants."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        decorates = len(arguments) == 1 and callable(arguments[0]) and not options
        return arguments[0] if decorates else _Nothing()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()

    def __getitem__(self, key: object) -> Any:
        return _Nothing()


class _AbsentModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Extension(types.ModuleType):
    """What has no stand-in may be named, as classes and constants are at import, and must not be called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*arguments: Any, **options: Any) -> None:
            raise NotImplementedError(f"{EXTENSION}.{name} has no stand-in")

        return missing


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == EXTENSION:
            # By the name of its file exllamav3 knows a compiled module from sources to compile.
            origin = f"{EXTENSION}{importlib.machinery.EXTENSION_SUFFIXES[0]}"
            return importlib.machinery.ModuleSpec(name, self, origin=origin)
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return extension() if spec.name == EXTENSION else _AbsentModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def install() -> None:
    """Before exllamav3 is imported. Refuses where a real device is in sight."""
    if torch.cuda.is_available():
        raise RuntimeError("A CUDA device is there: these stand-ins are for machines without one.")
    sys.meta_path.insert(0, _Finder())


def extension() -> types.ModuleType:
    module = _Extension(EXTENSION)
    for function in (cache_rotate, count_match_tensor, fused_sampler, generator_stage_decode):
        setattr(module, function.__name__, function)
    module.FUSED_SAMPLER_MAX_BLOCKS = 1  # type: ignore[attr-defined]
    module.FUSED_SAMPLER_HIST_STRIDE = 1  # type: ignore[attr-defined]
    return module


def cache_rotate(cache: torch.Tensor, order: torch.Tensor, buffer: torch.Tensor) -> None:
    """Move pages. order: pairs of a target and a source; -1 is the buffer."""
    pairs = order.view(-1, 2).tolist()
    for target, source in pairs:
        content = buffer if source < 0 else cache[source]
        (buffer if target < 0 else cache[target]).copy_(content)


def count_match_tensor(a: torch.Tensor, b: torch.Tensor, most: int) -> int:
    """How many leading ids a (1, n) and b (1, m) share, at most so many."""
    compared = min(most, a.shape[-1], b.shape[-1])
    differing = (a[0, :compared] != b[0, :compared]).nonzero()
    return int(differing[0, 0]) if len(differing) else compared


def generator_stage_decode(
    arena: torch.Tensor,
    width: int,
    blocks: list[torch.Tensor],
    lengths: list[int],
    rotary_offsets: list[int],
    batch_ids: torch.Tensor | None,
    ids: list[torch.Tensor],
    pages: list[torch.Tensor],
    offsets: list[int],
) -> None:
    """Write tables and lengths of a step into the arena, and each row's last id into the batch and its page."""
    rows = len(blocks)
    table = arena[: rows * width].view(rows, width)
    table.zero_()
    for row, block in enumerate(blocks):
        used = min(width, block.shape[-1])
        table[row, :used] = block[0, :used]
        arena[rows * width + row] = lengths[row]
        if batch_ids is not None:
            token = ids[row][0, lengths[row]]
            batch_ids[row, 0] = token
            pages[row][0, offsets[row]] = token


def fused_sampler(
    logits: torch.Tensor,
    mask: torch.Tensor | None,
    bits: torch.Tensor | None,
    sample: torch.Tensor,
    workspace: torch.Tensor,
    width: int,
    inverse_temperature: float,
    log_min_p: float,
    draw: int,
    mode: int,
    filters: int,
    top_k: int,
    top_p: float,
    inverse_filter_temperature: float,
    histogram: torch.Tensor | None,
) -> None:
    """Greedy (mode 0), or Gumbel noise of this draw over what min_p (filter bit 4, and mode 2), top_k (1) and top_p (2)
    leave, one after the other."""
    if mask is not None or bits is not None:
        raise NotImplementedError("a mask")
    scores = logits[:, :width].float()
    if mode != 0:
        if mode == 2 or filters & 4:
            scores = scores.masked_fill(scores < scores.max(dim=-1, keepdim=True).values + log_min_p, float("-inf"))
        if filters & 1:
            least = scores.topk(min(top_k, width), dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if filters & 2:
            chances = torch.softmax(scores * inverse_filter_temperature, dim=-1)
            ordered, order = chances.sort(dim=-1, descending=True, stable=True)
            beyond = ordered.cumsum(dim=-1) - ordered >= top_p
            scores = scores.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
        noise = torch.rand(scores.shape, generator=torch.Generator().manual_seed(draw))
        scores = scores * inverse_temperature - torch.log(-torch.log(noise.clamp(1e-9, 1 - 1e-7)))
    sample.copy_(scores.argmax(dim=-1, keepdim=True))
