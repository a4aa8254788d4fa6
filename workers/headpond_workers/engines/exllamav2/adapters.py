"""LoRA adapters on a loaded exllamav2 model."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

from headpond.errors import EngineUnavailable
from headpond_workers.engines.exllama.memory import is_out_of_memory
from headpond_workers.engines.formats.model_files import read_json_object

WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
_MAX_CONFIG_BYTES = 1 << 20


def load_adapter(exllamav2: ModuleType, model: Any, name: str, path: Path, *, scaling: float) -> Any:
    """An ExLlamaV2Lora of a checked folder, ready to be chosen for a batch.

    scaling: multiplies what the adapter's own lora_alpha / r gives. Raises EngineUnavailable, naming the adapter, for
    one that was made for another base model or needs what exllamav2 does not do; out of memory is let through.
    """
    _check_config(name, path)
    try:
        # Not from_directory, which takes adapter_model.bin where there is one: a pickle.
        lora = exllamav2.ExLlamaV2Lora(
            model, str(path / CONFIG_NAME), str(path / WEIGHTS_NAME), lora_scaling=float(scaling)
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise _mismatch(name, path, f"{type(error).__name__}: {reason}") from error
    _check_loaded(lora, name, path)
    return lora


def _check_config(name: str, path: Path) -> None:
    """exllamav2 reads r, lora_alpha, use_rslora and fan_in_fan_out; what else changes the result must be absent."""
    config = read_json_object(path / CONFIG_NAME, max_bytes=_MAX_CONFIG_BYTES)
    ignored = [key for key in ("rank_pattern", "alpha_pattern", "use_dora", "layer_replication") if config.get(key)]
    if ignored:
        raise EngineUnavailable(
            f"The adapter '{name}' ({path}) uses {', '.join(ignored)}, which exllamav2 ignores: it would compute "
            "something else. Merge it into the model, or train it without."
        )


def _check_loaded(lora: Any, name: str, path: Path) -> None:
    """Both halves of every target, of one rank; exllamav2 finds out only in the first forward pass."""
    if not math.isfinite(lora.lora_scaling):
        raise _mismatch(name, path, f"its scaling is {lora.lora_scaling}")
    if lora.lm_head is not None or lora.embed_tokens is not None:
        raise EngineUnavailable(
            f"The adapter '{name}' ({path}) replaces the embedding or the output layer (modules_to_save), and the "
            "vocabulary with it. Merge it into the model, or train it without modules_to_save."
        )
    if not lora.target_modules:
        raise _mismatch(name, path, "it changes no layer")
    for module in lora.target_modules.values():
        down, up = module.lora_a_tensors.get(lora), module.lora_b_tensors.get(lora)
        if down is None or up is None:
            raise _mismatch(name, path, f"{module.key} has lora_A without lora_B, or the reverse")
        # Both are stored transposed: (in_features, rank) and (rank, out_features).
        if down.dim() != 2 or up.dim() != 2 or down.shape[1] != up.shape[0]:
            raise _mismatch(name, path, f"{module.key} has lora_A and lora_B of different ranks")


def _mismatch(name: str, path: Path, reason: str) -> EngineUnavailable:
    return EngineUnavailable(
        f"The adapter '{name}' ({path}) does not go with this model: {reason}. It was made for another base model, or "
        f"is damaged. Correct its path, or remove it from adapters."
    )
