"""The stand-in for exllamav2's compiled module, `exllamav2_ext`.

It covers what exllamav2 0.3.2 calls to load an unquantised decoder and to generate with it. Whatever else is called
raises NotImplementedError with its name, so that no test passes over a missing kernel.
"""

from __future__ import annotations

import importlib.machinery
import types
from collections.abc import Callable
from typing import Any, NoReturn

from exllamav2_cpu import flash_attention
from exllamav2_cpu.entries import Entries, Kernel
from exllamav2_cpu.host_functions import (
    fast_copy_cpu,
    fast_fadd_cpu,
    fast_fill_cpu_ones_bool,
    logit_filter_exclusive,
    partial_strings_match,
    stloader_read,
)
from exllamav2_cpu.kernels import head_norm, layer_norm, rms_norm, rope_, softcap_
from exllamav2_cpu.quantised_cache import cache_rotate, count_match, fp16_to_q_kv, q_to_fp16_kv
from exllamav2_cpu.sampling import apply_rep_penalty, sample_basic

KERNELS: tuple[Kernel, ...] = (
    rms_norm,
    layer_norm,
    head_norm,
    rope_,
    softcap_,
    fp16_to_q_kv,
    q_to_fp16_kv,
    cache_rotate,
    count_match,
    stloader_read,
    partial_strings_match,
    fast_fill_cpu_ones_bool,
    fast_fadd_cpu,
    fast_copy_cpu,
    logit_filter_exclusive,
    apply_rep_penalty,
    sample_basic,
)


def extension_module(entries: Entries) -> types.ModuleType:
    """A module `exllamav2_ext` whose entries are counted."""
    module = _module("exllamav2_ext", KERNELS, entries)
    module.__dict__["__getattr__"] = _missing
    return module


def flash_attention_modules(entries: Entries) -> list[types.ModuleType]:
    """The modules `flash_attn` and `flash_attn_2_cuda`; the second is only looked for."""
    front = _module("flash_attn", flash_attention.ENTRIES, entries)
    front.__dict__["__version__"] = flash_attention.VERSION
    return [front, _module("flash_attn_2_cuda", (), entries)]


def _module(name: str, kernels: tuple[Kernel, ...], entries: Entries) -> types.ModuleType:
    module = types.ModuleType(name, __doc__)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=__name__)
    for kernel in kernels:
        module.__dict__[kernel.__name__] = entries.counted(kernel)
    return module


def _missing(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def entry(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"exllamav2_ext.{name} has no CPU stand-in")

    return entry
