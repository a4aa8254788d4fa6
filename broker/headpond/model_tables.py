"""The tables [models.NAME] of headpond.toml, one class an engine. What an engine of another package needs, see
`headpond.engine_kinds`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from headpond.jobs import ADAPTER_NAME, TENANT_PATTERN

PAGE_TOKENS = 256
"""exllamav2 and exllamav3 keep keys and values in pages of so many tokens."""


class Table(BaseModel):
    """Any table of headpond.toml: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelTable(Table):
    """What every model has, whatever its engine."""

    engine: str
    context_tokens: Annotated[int, Field(ge=16, le=1 << 24)] = 2048
    """The most tokens that one sequence may hold, prompt and answer together."""

    workers: Annotated[int, Field(ge=0, le=64)] = 1
    """How many worker processes `headpond up` starts."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 4
    """Sequences that one worker runs together."""
    lease_s: Annotated[float, Field(ge=0.2, le=3600)] = 10.0
    """How long a silent worker keeps its jobs."""
    drain_timeout_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """How long a stopping worker lets its jobs run before it parks them."""
    stall_timeout_s: Annotated[float, Field(ge=1, le=86400)] = 120.0
    """A sequence that makes no step for so long is no longer renewed."""
    max_queued: Annotated[int, Field(ge=0)] = 0
    """Jobs that may wait; 0 is no bound."""
    retention_s: Annotated[float, Field(ge=1, le=10 * 365 * 86400)] = 86400.0
    """How long Redis keeps an ended job."""
    stream_retention_s: Annotated[float, Field(ge=1, le=10 * 365 * 86400)] = 600.0
    """How long Redis keeps the stream of a job that ended with a result; then the result stands for it."""
    suspect_wait_s: Annotated[float, Field(ge=0, le=86400)] = 30.0
    """How long a job that is suspected of crashing its workers waits before it goes first in its band."""
    version_wait_s: Annotated[float, Field(ge=0, le=86400)] = 60.0
    """How long a job that is bound to a version waits for a worker that serves it, once none does."""
    tenant_weights: dict[
        Annotated[str, Field(pattern=TENANT_PATTERN)], Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    ] = Field(default_factory=dict)
    """Shares of tenants that differ from 1: `{acme = 3.0}` has three times the tokens of others."""

    def anchored(self, folder: Path) -> Self:
        """The same table with its relative paths made absolute; they are relative to `folder`."""
        return self


class ScriptedModel(ModelTable):
    """The reference engine: deterministic tokens at a set speed, for tests and overhead figures."""

    engine: Literal["scripted"]
    tokens_per_s: Annotated[float, Field(gt=0, le=1e6)] = 80.0
    """Of each sequence."""
    prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    context_tokens: Annotated[int, Field(ge=16)] = 8192
    answer_tokens: Annotated[int, Field(ge=1)] | None = None
    """Where the model ends its answer by itself; None: between 40 and 400, by the prompt and seed."""
    crash_at: Literal["load", "prefill", "token", "end"] | None = None
    """Kill the own process (SIGKILL) there, for tests."""
    crash_token: Annotated[int, Field(ge=0)] = 0
    """With crash_at = "token": after how many tokens of the attempt."""
    crash_prompt: str = ""
    """Only for prompts that hold this text."""


class LlamaCppModel(ModelTable):
    """A GGUF model on the CPU, through xllamacpp."""

    engine: Literal["llamacpp"]
    path: Path | None = None
    source: str | None = None
    """A model of the catalogue, `smollm2-135m:Q8_0`; see `headpond models prepare`."""
    context_tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 2048
    """Of each slot."""
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    """None: the cores divided by the workers on the machine, at least 1."""
    exact: bool = False
    """Token-exact resume; prefill becomes as slow as decode."""

    @model_validator(mode="after")
    def _one_source(self) -> LlamaCppModel:
        if (self.path is None) == (self.source is None):
            raise ValueError('give path = "FILE.gguf" or source = "NAME:QUANTISATION", exactly one of them')
        return self

    def anchored(self, folder: Path) -> Self:
        return self if self.path is None else self.model_copy(update={"path": folder / self.path.expanduser()})


class AdapterTable(Table):
    """A LoRA adapter: a folder with adapter_config.json and adapter_model.safetensors."""

    path: Path
    scaling: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 1.0
    """Multiplies what the adapter's own lora_alpha / r gives."""


class DraftTable(Table):
    """A small model of the same vocabulary that guesses tokens ahead."""

    path: Path
    tokens: Annotated[int, Field(ge=1, le=8)] = 4
    """How many tokens it guesses a step."""


class _PagedModel(ModelTable):
    """What exllamav2 and exllamav3 share."""

    path: Path
    """A checkpoint folder: config.json, tokenizer.json, *.safetensors."""
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
    def _one_sequence_fits(self) -> Self:
        if self.shared_cache_tokens < self.context_tokens:
            raise ValueError(
                f"cache_tokens = {self.cache_tokens} cannot hold one sequence of context_tokens = {self.context_tokens}"
            )
        if self.devices is not None and len(set(self.devices)) != len(self.devices):
            raise ValueError("devices names a device twice")
        return self

    def anchored(self, folder: Path) -> Self:
        return self.model_copy(update={"path": folder / self.path.expanduser()})


class ExLlamaV2Model(_PagedModel):
    """An EXL2, GPTQ or FP16 checkpoint on NVIDIA GPUs, through exllamav2."""

    engine: Literal["exllamav2"]
    cache: Literal["FP16", "Q8", "Q6", "Q4"] = "FP16"
    """How keys and values are stored."""
    paged: bool = True
    """Needs flash-attn and an Ampere GPU or newer; without it the model runs one sequence at a time (slots = 1)."""
    autosplit_reserve_mib: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Mebibytes to leave free on each device when the weights are split automatically."""
    tensor_parallel: bool = False
    """Split every layer over all devices; EXL2 checkpoints only."""
    rope_scale: Annotated[float, Field(gt=0, le=1024)] | None = None
    """Factor on positions; None: the checkpoint's own."""
    rope_alpha: Annotated[float, Field(gt=0, le=1024)] | None = None
    """NTK alpha; None: the checkpoint's own."""
    adapters: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], AdapterTable] = {}
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
        adapters = {name: _in_folder(adapter, folder) for name, adapter in self.adapters.items()}
        draft = None if self.draft is None else _in_folder(self.draft, folder)
        return super().anchored(folder).model_copy(update={"adapters": adapters, "draft": draft})


class ExLlamaV3Model(_PagedModel):
    """An EXL3 checkpoint, through exllamav3. Experimental: nothing of it ran on a device."""

    engine: Literal["exllamav3"]
    cache_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    """Bits of each stored key and value; None: FP16."""


_PathT = TypeVar("_PathT", AdapterTable, DraftTable)


def _in_folder(table: _PathT, folder: Path) -> _PathT:
    return table.model_copy(update={"path": folder / table.path.expanduser()})


ENGINES: dict[str, type[ModelTable]] = {
    "scripted": ScriptedModel,
    "llamacpp": LlamaCppModel,
    "exllamav2": ExLlamaV2Model,
    "exllamav3": ExLlamaV3Model,
}
"""The engines of this package."""
