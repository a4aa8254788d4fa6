"""Models of exllamav2 and exllamav3."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from headpond.jobs import ADAPTER_NAME
from headpond.tables.adapter import AdapterTable, DraftTable
from headpond.tables.kv import KvModel
from headpond.tables.versioned import VersionedModel

PAGE_TOKENS = 256
"""exllamav2 and exllamav3 keep keys and values in pages of so many tokens."""


class _PagedModel(VersionedModel):
    """What exllamav2 and exllamav3 share."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"devices", "gpu_split", "cache_tokens", "chunk_tokens"})

    path: Path | None = None
    """A checkpoint folder: config.json, tokenizer.json, *.safetensors. `path` or `source`, exactly one."""
    devices: Annotated[tuple[Annotated[int, Field(ge=0, le=63)], ...], Field(min_length=1, max_length=64)] | None = None
    """CUDA devices that this model may use; None: all that the process sees."""
    gpu_split: Annotated[tuple[Annotated[float, Field(ge=0, le=4096)], ...], Field(min_length=1)] | None = None
    """Gigabytes of weights on each device; None: filled in turn."""
    context_tokens: Annotated[int, Field(ge=PAGE_TOKENS, le=1 << 24, multiple_of=PAGE_TOKENS)] = 4096
    """The most tokens that one sequence may hold, prompt and answer together; a multiple of 256."""
    cache_tokens: Annotated[int, Field(ge=PAGE_TOKENS, le=1 << 28, multiple_of=PAGE_TOKENS)] | None = None
    """Tokens of the cache that all sequences share; None: slots * context_tokens."""
    chunk_tokens: Annotated[int, Field(ge=PAGE_TOKENS, le=1 << 20, multiple_of=PAGE_TOKENS)] = 2048
    """Prompt tokens that one step reads; smaller steps disturb running sequences less."""

    @property
    def shared_cache_tokens(self) -> int:
        return self.cache_tokens or self.slots * self.context_tokens

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.source is None):
            raise ValueError('give path = "FOLDER" or source = "s3:NAME@ALIAS", exactly one of them')
        return self

    @model_validator(mode="after")
    def _one_sequence_fits(self) -> Self:
        if self.shared_cache_tokens < self.context_tokens:
            raise ValueError(
                f"cache_tokens = {self.cache_tokens} cannot hold one sequence of context_tokens = {self.context_tokens}"
            )
        if self.devices is not None and len(set(self.devices)) != len(self.devices):
            raise ValueError("devices names a device twice")
        return self


class ExLlamaV2Model(_PagedModel, KvModel):
    """An EXL2, GPTQ or FP16 checkpoint on NVIDIA GPUs, through exllamav2."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"paged", "autosplit_reserve_mib", "tensor_parallel", "draft"})

    engine: Literal["exllamav2"]
    cache: Literal["FP16", "Q8", "Q6", "Q4"] = "FP16"
    """How keys and values are stored."""
    paged: bool = True
    """Needs flash-attn and an Ampere GPU or newer; without it the model runs one sequence at a time (slots = 1)."""
    autosplit_reserve_mib: (
        Annotated[tuple[Annotated[int, Field(ge=0, le=1 << 22)], ...], Field(min_length=1)] | None
    ) = None
    """Mebibytes to leave free on each device when the weights are split automatically."""
    tensor_parallel: bool = False
    """Split every layer over all devices; EXL2 checkpoints only."""
    rope_scale: Annotated[float, Field(gt=0, le=1024)] | None = None
    """Factor on positions; None: the checkpoint's own."""
    rope_alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """NTK alpha; None: the checkpoint's own."""
    adapters: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], AdapterTable] = Field(default_factory=dict)
    """LoRA adapters that a job may name."""
    draft: DraftTable | None = None
    """Speculative decoding by a draft model."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.paged and self.slots != 1:
            raise ValueError(f"paged = false runs one sequence at a time: write slots = 1, not {self.slots}")
        if self.gpu_split is not None and self.autosplit_reserve_mib is not None:
            raise ValueError("give gpu_split or autosplit_reserve_mib, not both")
        if self.tensor_parallel and self.autosplit_reserve_mib is not None:
            raise ValueError("tensor_parallel takes gpu_split, not autosplit_reserve_mib")
        if self.tensor_parallel and self.draft is not None:
            raise ValueError("tensor_parallel has no draft model")
        return self

    def anchored(self, folder: Path) -> Self:
        adapters = {name: adapter.anchored(folder) for name, adapter in self.adapters.items()}
        draft = None if self.draft is None else self.draft.anchored(folder)
        return super().anchored(folder).model_copy(update={"adapters": adapters, "draft": draft})


class ExLlamaV3Model(_PagedModel):
    """An EXL3 checkpoint, through exllamav3. Experimental: nothing of it ran on a device."""

    engine: Literal["exllamav3"]
    cache_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    """Bits of each stored key and value; None: FP16."""
