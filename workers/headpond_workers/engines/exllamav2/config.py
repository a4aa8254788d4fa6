"""exllamav2's configuration of one checkpoint, from the model's table."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from headpond.errors import EngineUnavailable
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.memory import SCALED_ELEMENTS
from headpond_workers.engines.exllama.preflight import flash_attention_works
from headpond_workers.engines.formats.model_files import read_json_object

_MAX_CONFIG_BYTES = 1 << 24


def query_tokens(settings: ExLlamaV2Model) -> int:
    """Tokens of one sequence in one step of decoding: the last one, and those that a draft model guessed behind it."""
    return 1 + (0 if settings.draft is None else settings.draft.tokens)


def model_config(exllamav2: ModuleType, path: Path, settings: ExLlamaV2Model, *, draft: bool = False) -> Any:
    """An ExLlamaV2Config, complete. draft: of the draft model, whose rotary settings are its checkpoint's own.

    Raises EngineUnavailable for settings that this checkpoint, or the installed flash-attn, cannot serve; what
    exllamav2 itself raises for a folder that it does not understand is let through.
    """
    config: Any = exllamav2.ExLlamaV2Config(str(path))
    _set_rotary_base(config, path)
    _check(config, path, settings, draft=draft)
    chunk_tokens = min(settings.chunk_tokens, settings.context_tokens)
    config.max_input_len = chunk_tokens
    config.max_attention_size = chunk_tokens**2
    # Buffers hold max_batch_size * max_input_len tokens: a step of all slots must find room in them.
    config.max_batch_size = -(-settings.slots * query_tokens(settings) // chunk_tokens)
    if not draft:
        config.scale_pos_emb = settings.rope_scale or config.scale_pos_emb
        config.scale_alpha_value = settings.rope_alpha or config.scale_alpha_value
    _set_length(config, settings)
    if not settings.paged:
        # Prefill through SDPA is not causal there: its mask is None, and every token sees those after it.
        config.no_sdpa = True
        config.no_flash_attn = not flash_attention_works(importlib.import_module("torch"))
    config.arch_compat_overrides()
    if settings.paged and config.no_flash_attn:
        raise EngineUnavailable(
            f"{config.architecture} ({path}) cannot run with the installed flash-attn, which paged = true needs. "
            "Write paged = false and slots = 1, or install the newest flash-attn."
        )
    return config


def _set_rotary_base(config: Any, path: Path) -> None:
    """Read rope_parameters, where transformers 5 writes what was rope_theta and rope_scaling.

    exllamav2 knows only the older keys, and without them computes other positions than the model was trained with.
    """
    written = read_json_object(path / "config.json", max_bytes=_MAX_CONFIG_BYTES)
    inner = written.get("text_config")
    for values in (written, inner if isinstance(inner, dict) else {}):
        rope = values.get("rope_parameters")
        if not isinstance(rope, dict) or "rope_theta" in values:
            continue
        base, kind = rope.get("rope_theta"), rope.get("rope_type", "default")
        if kind != "default" or not isinstance(base, int | float):
            raise EngineUnavailable(
                f"{path / 'config.json'} gives its positions as rope_parameters of the type {str(kind)[:50]!r}, which "
                "exllamav2 does not read. Write rope_theta and rope_scaling into it, as transformers 4 did."
            )
        config.rotary_embedding_base = float(base)


def _check(config: Any, path: Path, settings: ExLlamaV2Model, *, draft: bool) -> None:
    scaled = not draft and (settings.rope_scale is not None or settings.rope_alpha is not None)
    if settings.context_tokens > config.max_seq_len and not scaled:
        what = "draft model" if draft else "checkpoint"
        remedy = "choose another draft model" if draft else "stretch its positions with rope_alpha or rope_scale"
        raise EngineUnavailable(
            f"context_tokens = {settings.context_tokens}, and the {what} {path} was made for {config.max_seq_len}. "
            f"Lower context_tokens, or {remedy}."
        )
    if settings.cache != "FP16" and config.head_dim % SCALED_ELEMENTS:
        # exllamav2 would allocate too few scales, and write behind them.
        raise EngineUnavailable(
            f'cache = "{settings.cache}" needs heads of a multiple of {SCALED_ELEMENTS} elements, and those of {path} '
            f'have {config.head_dim}. Write cache = "FP16".'
        )
    if settings.tensor_parallel:
        _check_parallel(config, path, settings)


def _check_parallel(config: Any, path: Path, settings: ExLlamaV2Model) -> None:
    if not any(name.endswith(".q_weight") for name in config.tensor_file_map):
        raise EngineUnavailable(
            f"tensor_parallel splits EXL2-quantised weights only, and {path} holds others. Write tensor_parallel = "
            "false: the layers are then spread over the devices; or choose an EXL2 checkpoint."
        )
    if settings.adapters:
        raise EngineUnavailable(
            "tensor_parallel has no adapters: exllamav2 would leave them out without a word. Remove adapters, or write "
            "tensor_parallel = false."
        )
    if not settings.paged:
        raise EngineUnavailable("tensor_parallel needs paged = true. Write that, or tensor_parallel = false.")


def _set_length(config: Any, settings: ExLlamaV2Model) -> None:
    """Let positions reach to the end of the context, and of the tokens that are guessed behind it.

    Two ways of scaling positions switch by max_seq_len between those of short and of long texts. The few positions
    for guesses must not make that choice.
    """
    config.max_seq_len = settings.context_tokens + (0 if settings.draft is None else settings.draft.tokens)
    if config.alt_rope_method == "su" and settings.context_tokens <= config.original_max_seq_len:
        config.original_max_seq_len = max(config.original_max_seq_len, config.max_seq_len)
    if config.alt_rope_method == "yarn":
        threshold = config.yarn_rope_original_max_position_embeddings
        if settings.context_tokens <= threshold:
            config.yarn_rope_original_max_position_embeddings = max(threshold, config.max_seq_len)
