"""The parameters of llama.cpp's server, made from a model's table and checked against the model's header.

What llama.cpp dislikes aborts the whole process, or is changed by it without a word: so everything is checked first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

from headpond.errors import EngineUnavailable
from headpond.tables import LlamaCppModel
from headpond_workers.engines.formats.gguf_header import GgufHeader
from headpond_workers.engines.llamacpp.adapters import LlamaAdapter

MAX_SEQUENCES = 256
"""LLAMA_MAX_SEQ of the pinned build."""
MAX_THREADS = 512
BATCH_TOKENS = 128
"""As fast as 512 on a CPU, and a cancel is heard after at most so many tokens of prefill."""
EXACT_BATCH_TOKENS = 16
"""n_batch = 1 aborts the process."""
MEMORY_SHARE = 0.8
_VALUE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32,
}  # fmt: skip
_POOLING = {1: "mean", 2: "cls", 3: "last"}
"""Of the GGUF key pooling_type; 0 is none, and 4 ranks texts."""
_BLOCK = 32
"""Values of one block of a quantised type."""


def check_parameters(settings: LlamaCppModel, header: GgufHeader, *, threads: int) -> None:
    """Raises EngineUnavailable for what would abort the process, or be changed by llama.cpp without a word."""
    slots, context_tokens = settings.slots, settings.context_tokens
    if not 1 <= slots <= MAX_SEQUENCES:
        raise EngineUnavailable(f"slots = {slots}: the llamacpp engine runs 1 to {MAX_SEQUENCES} sequences together.")
    if not 1 <= threads <= MAX_THREADS:
        raise EngineUnavailable(f"threads = {threads}: llama.cpp takes 1 to {MAX_THREADS}.")
    architecture = header.text("general.architecture")
    trained = header.integer(f"{architecture}.context_length")
    if trained is not None and context_tokens > trained * settings.beyond_trained_context:
        raise EngineUnavailable(
            f"context_tokens = {context_tokens}: the model was trained for {trained}. Lower context_tokens."
        )
    heads = _Heads(header, architecture)
    for key, kind, size in (
        ("cache_type_k", settings.cache_type_k, heads.key_size),
        ("cache_type_v", settings.cache_type_v, heads.value_size),
    ):
        if "q" in kind and size % _BLOCK:
            raise EngineUnavailable(
                f'{key} = "{kind}" stores {_BLOCK} values together, and the heads of this model have {size}. '
                f'Write {key} = "f16".'
            )
    needed = int(heads.bytes_per_token(settings) * context_tokens * slots)
    have = int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MEMORY_SHARE)
    if needed > have and not settings.gpu_layers:
        raise EngineUnavailable(
            f"context_tokens = {context_tokens} in {slots} slots needs {needed >> 20} MiB for keys and values; "
            f"{have >> 20} MiB can be used on this machine. Lower slots or context_tokens."
        )


class _Heads:
    """0 where the metadata do not tell."""

    def __init__(self, header: GgufHeader, architecture: str) -> None:
        def of(key: str) -> int:
            layers = [item for item in header.items(f"{architecture}.{key}") if isinstance(item, int)]
            return header.integer(f"{architecture}.{key}") or max(layers, default=0)

        heads = of("attention.head_count")
        plain = of("embedding_length") // heads if heads else 0
        self.key_size = of("attention.key_length") or plain
        self.value_size = of("attention.value_length") or plain
        self._stored = of("block_count") * (of("attention.head_count_kv") or heads)

    def bytes_per_token(self, settings: LlamaCppModel) -> float:
        keys = self.key_size * _VALUE_BYTES[settings.cache_type_k]
        return self._stored * (keys + self.value_size * _VALUE_BYTES[settings.cache_type_v])


def pooling_of(settings: LlamaCppModel, header: GgufHeader) -> str:
    """How the vectors of a text's tokens become one. Raises EngineUnavailable for a model that ranks texts."""
    if settings.pooling is not None:
        return settings.pooling
    stated = header.integer(f"{header.text('general.architecture')}.pooling_type")
    if stated is not None and stated not in _POOLING:
        raise EngineUnavailable(
            f'The model\'s own pooling (type {stated}) makes no vector of a text. Write pooling = "mean", "cls" or '
            '"last", or choose a model that embeds.'
        )
    return _POOLING[1 if stated is None else stated]


def check_devices(settings: LlamaCppModel, devices: Seq[dict[str, Any]]) -> None:
    """devices: what `xllamacpp.get_device_info()` lists.

    Raises EngineUnavailable if the table asks for a GPU that this build of llama.cpp, or this machine, does not have:
    llama.cpp itself would run on the CPU without a word.
    """
    if not settings.gpu_layers:
        return
    gpus = sum("GPU" in str(getattr(device.get("type"), "name", device.get("type"))) for device in devices)
    if not gpus:
        raise EngineUnavailable(
            f"gpu_layers = {settings.gpu_layers}: the installed xllamacpp finds no GPU. The wheels on PyPI are for "
            "CPUs; install one of xllamacpp's own for CUDA, ROCm or Vulkan, or write gpu_layers = 0."
        )
    if settings.main_gpu >= gpus:
        raise EngineUnavailable(f"main_gpu = {settings.main_gpu}: the installed xllamacpp finds {gpus}, from 0 on.")
    if settings.tensor_split is not None and len(settings.tensor_split) > gpus:
        raise EngineUnavailable(f"tensor_split names {len(settings.tensor_split)} GPUs; xllamacpp finds {gpus}.")


def server_parameters(
    xllamacpp: Any,
    settings: LlamaCppModel,
    path: Path,
    *,
    threads: int,
    adapters: Seq[LlamaAdapter],
    pooling: str,
    api_key: str,
    slot_folder: Path | None = None,
) -> Any:
    """CommonParams of a table that has passed the checks. Each that matters is set: no default of the package shows."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_parallel = settings.slots
    parameters.n_ctx = settings.context_tokens * settings.slots
    parameters.kv_unified = False
    parameters.ctx_shift = False
    parameters.fit_params = False
    embeds = settings.task == "embed"
    # A text is embedded in one step; one that the slots do not divide aborts the process where the mean is taken.
    whole = -(-settings.context_tokens // settings.slots) * settings.slots
    batch = whole if embeds else settings.batch_tokens or BATCH_TOKENS
    # One step holds a token of each slot: with more slots than that the process aborts.
    parameters.n_batch = max(EXACT_BATCH_TOKENS if settings.exact else batch, settings.slots)
    parameters.n_ubatch = 1 if settings.exact else parameters.n_batch
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0
    parameters.cache_idle_slots = False
    parameters.verbosity = -1
    if embeds:
        parameters.embedding = True
        parameters.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    _set_storage(xllamacpp, parameters, settings)
    parameters.lora_init_without_apply = True
    parameters.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(str(adapter.path), adapter.scaling) for adapter in adapters
    ]
    # The HTTP side cannot be left out: only this process may use it, and only for what it needs.
    parameters.hostnames = ["127.0.0.1"]
    parameters.api_keys = [api_key]
    parameters.cors_origins = ""
    parameters.cors_credentials = False
    parameters.ui = False
    parameters.endpoint_slots = False
    if slot_folder is not None:
        # It puts the names of files right behind.
        parameters.slot_save_path = f"{slot_folder}/"
    parameters.endpoint_props = False
    parameters.endpoint_metrics = False
    parameters.n_threads_http = 2
    return parameters


def _set_storage(xllamacpp: Any, parameters: Any, settings: LlamaCppModel) -> None:
    parameters.cache_type_k = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{settings.cache_type_k.upper()}")
    parameters.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{settings.cache_type_v.upper()}")
    flash = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[settings.flash_attention]
    parameters.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    if settings.rope_scaling is not None:
        parameters.rope_scaling_type = getattr(
            xllamacpp.llama_rope_scaling_type, f"LLAMA_ROPE_SCALING_TYPE_{settings.rope_scaling.upper()}"
        )
    parameters.rope_freq_base = settings.rope_freq_base or 0.0
    parameters.rope_freq_scale = settings.rope_freq_scale or 0.0
    mode = {(True, True): "MMAP_MLOCK", (True, False): "MMAP", (False, True): "MLOCK", (False, False): "NONE"}
    parameters.load_mode = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{mode[settings.mmap, settings.mlock]}")
    parameters.n_gpu_layers = settings.gpu_layers
    if settings.gpu_layers:
        parameters.main_gpu = settings.main_gpu
        parameters.split_mode = getattr(xllamacpp.llama_split_mode, f"LLAMA_SPLIT_MODE_{settings.split_mode.upper()}")
        if settings.tensor_split is not None:
            parameters.tensor_split = list(settings.tensor_split)
