"""Installs the stand-ins, before exllamav2 is imported."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from exllamav2_cpu.entries import Entries
from exllamav2_cpu.extension import extension_module, flash_attention_modules

CUDA_VERSION = "12.8"
"""What a CPU build of torch then says of itself."""


@dataclass(slots=True)
class Harness:
    """The stand-ins of this process."""

    devices: int
    vram_bytes: int
    entries: Entries = field(default_factory=Entries)

    @property
    def calls(self) -> Counter[str]:
        """Entries of the stand-ins so far, by name."""
        return self.entries.calls

    def fail(self, kernel: str, error: BaseException, *, after: int = 1) -> None:
        """Let the `after`-th next entry of that stand-in raise `error`; 1 is the very next one."""
        self.entries.fail(kernel, error, after=after)

    def slow(self, seconds: float, *, kernel: str = "rms_norm") -> None:
        """Let every entry of that stand-in take `seconds` longer; 0 ends it.

        A forward pass of n layers enters rms_norm 2 * n + 1 times, one of prefill alone 2 * n - 1 times.
        """
        self.entries.slow(seconds, kernel=kernel)

    def reset(self) -> None:
        """Forget counts, planned failures and slowness."""
        self.entries.reset()

    @contextmanager
    def resized(self, *, devices: int | None = None, vram_bytes: int | None = None) -> Iterator[None]:
        """Other devices for a while."""
        before = self.devices, self.vram_bytes
        self.devices = before[0] if devices is None else devices
        self.vram_bytes = before[1] if vram_bytes is None else vram_bytes
        try:
            yield
        finally:
            self.devices, self.vram_bytes = before

    def visible_devices(self) -> int:
        """How many devices CUDA_VISIBLE_DEVICES leaves, read as CUDA reads it: up to the first that is not there."""
        wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
        if wanted is None:
            return self.devices
        count = 0
        for index in wanted.split(","):
            if not index.strip().isdecimal() or int(index) >= self.devices:
                break
            count += 1
        return count


_installed: Harness | None = None
_installed_with: tuple[int, int, bool] | None = None


def installed() -> Harness | None:
    """The harness of this process, or None. A test for a real GPU asks it: torch.cuda does not tell any more."""
    return _installed


def install(*, devices: int = 1, flash_attn: bool = True, vram_bytes: int = 24 << 30) -> Harness:
    """Make the real exllamav2 importable, with `devices` stand-in devices of `vram_bytes` each.

    Call it again with the same arguments for the same harness. flash_attn=False: exllamav2 finds none.
    Raises RuntimeError, and patches nothing: a CUDA device is there; exllamav2 is imported already; it was called
    with other arguments before.
    """
    global _installed, _installed_with
    asked = (devices, vram_bytes, flash_attn)
    if _installed is not None:
        if asked != _installed_with:
            raise RuntimeError(
                f"The CPU harness is installed with devices, vram_bytes, flash_attn = {_installed_with}, not {asked}. "
                "Use Harness.resized for other devices, a process of its own for another flash_attn."
            )
        return _installed
    if torch.cuda.is_available():
        raise RuntimeError(
            "A CUDA device is there: the CPU harness does not patch a torch that can use it. Set CUDA_VISIBLE_DEVICES "
            "to nothing to test on the harness."
        )
    if "exllamav2" in sys.modules or "exllamav2_ext" in sys.modules:
        raise RuntimeError("exllamav2 is imported already: install the CPU harness before anything imports it.")
    # It imports torch._dynamo, which asks torch.cuda for devices and must hear the truth.
    importlib.import_module("torch.nn.attention.bias")
    harness = Harness(devices, vram_bytes)
    modules = [extension_module(harness.entries)]
    if flash_attn:
        modules += flash_attention_modules(harness.entries)
    else:
        os.environ["EXLLAMA_NO_FLASH_ATTN"] = "1"
    sys.modules.update({module.__name__: module for module in modules})
    _patch_torch(harness)
    # exllamav2 wants the same for the whole process. Several threads are slower than one at tensors this small, many
    # times slower where something else runs, and their number would decide the last bits of sums.
    torch.set_num_threads(1)
    # Where the processor has fp16 arithmetic torch gives fp16 products to oneDNN, which may choose a kernel by the
    # number of rows. torch's own gives a row the same bits in every batch.
    torch.backends.mkldnn.enabled = False
    sys.meta_path.insert(0, _PatchedImports())
    _installed, _installed_with = harness, asked
    return harness


def _patch_torch(harness: Harness) -> None:
    """Let torch tell of the stand-in devices. torch.cuda.Stream stays a class: others subclass it."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        """There is no queue of work to wait for, and no memory pool."""

    def none_in_use(device: Any = None) -> int:
        return 0

    def properties(device: Any = None) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            name="CPU stand-in", major=8, minor=0, total_memory=harness.vram_bytes, multi_processor_count=1
        )

    replaced: dict[str, Callable[..., Any]] = {
        "is_available": lambda: harness.visible_devices() > 0,
        "device_count": harness.visible_devices,
        "current_device": none_in_use,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: properties().name,
        "get_device_capability": lambda device=None: (8, 0),
        "mem_get_info": lambda device=None: (harness.vram_bytes, harness.vram_bytes),
        "memory_allocated": none_in_use,
        "memory_reserved": none_in_use,
        "max_memory_allocated": none_in_use,
        "max_memory_reserved": none_in_use,
        "reset_peak_memory_stats": nothing,
        "synchronize": nothing,
        "empty_cache": nothing,
        "set_device": nothing,
        "set_stream": nothing,
    }
    for name, function in replaced.items():
        setattr(torch.cuda, name, function)
    if torch.version.cuda is None:
        torch.version.cuda = CUDA_VERSION


class _HostStreams(dict[int, None]):
    """Stands for exllamav2.device.global_streams: every device has its stream already, and none needs switching."""

    def __contains__(self, device: object) -> bool:
        return True

    def __missing__(self, device: int) -> None:
        return None


def _host_device(index: int) -> str:
    return "cpu"


def _stay(tensor: Any, device: Any, non_blocking: bool = False) -> Any:
    """A tensor or a tuple of them, which are where they are to be: every stand-in device is the CPU."""
    return tensor


_REPLACED: dict[str, dict[str, Any]] = {
    "exllamav2.compat": {"safe_move_tensor": _stay},
    "exllamav2.device": {"_torch_device": _host_device, "global_streams": _HostStreams()},
    "exllamav2.module": {"_torch_device": _host_device},
    "exllamav2.model": {"_torch_device": _host_device},
}
"""What differs in exllamav2's own modules: how a device is named, and moves between devices."""


class _PatchedImports(importlib.abc.MetaPathFinder):
    """Loads the modules of _REPLACED from their files, with the replacements."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REPLACED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        loader = _PatchingLoader(fullname, spec.origin)
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


class _PatchingLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        for name, replacement in _REPLACED[module.__name__].items():
            if not hasattr(module, name):
                raise RuntimeError(f"{module.__name__} has no {name}: this is not the exllamav2 the harness is for.")
            setattr(module, name, replacement)
