"""What exllamav2 has put on the devices, and how it comes off them again."""

from __future__ import annotations

import gc
import importlib
import traceback
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Holdings:
    """Models and caches, as they come to be. None stands for one that is not wanted."""

    models: list[Any] = field(default_factory=list)
    caches: list[Any] = field(default_factory=list)

    def free(self) -> None:
        """Give the memory back, of models that are loaded in part too. May be called again."""
        for model in self.models:
            if model is not None:
                model.unload()
        for cache in self.caches:
            if cache is not None:
                _free_cache(cache)
        gc.collect()
        importlib.import_module("torch").cuda.empty_cache()


def forget_frames(error: BaseException | None) -> None:
    """Clear the local variables of an error's frames, and of those before it: they hold tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _free_cache(cache: Any) -> None:
    """Drop a cache's tensors, whoever still refers to the cache."""
    # A cache for tensor parallel has one of each device in it.
    for part in getattr(cache, "caches", None) or [cache]:
        for tensors in (part.key_states, part.value_states, part.key_scales, part.value_scales):
            tensors.clear()
        getattr(part, "temp_tensors", {}).clear()
