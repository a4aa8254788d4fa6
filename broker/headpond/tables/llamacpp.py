"""A model of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from headpond.jobs import ADAPTER_NAME
from headpond.tables.adapter import AdapterTable
from headpond.tables.kv import KvModel
from headpond.tables.version_source import is_version_source

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
_UNQUANTISED = ("f32", "f16", "bf16")


class LlamaCppModel(KvModel):
    """A GGUF model, through xllamacpp."""

    host_keys: ClassVar[frozenset[str]] = frozenset(
        {"threads", "batch_tokens", "mmap", "mlock", "gpu_layers", "main_gpu", "split_mode", "tensor_split"}
    )

    engine: Literal["llamacpp"]
    path: Path | None = None
    """A GGUF file. `path` or `source`, exactly one."""
    source: str | None = None
    """A model of the catalogue, `smollm2-135m:Q8_0`; see `headpond models prepare`. Or a version in storage,
    `s3:NAME@ALIAS` or `s3:NAME@3`; see [versions.md](versions.md)."""
    task: Literal["generate", "embed"] = "generate"
    """What the model is loaded for: to continue texts, or to embed them."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """How the vectors of a text's tokens become one; None: as the model says, else mean. Only with task = "embed"."""
    context_tokens: Annotated[int, Field(ge=64, le=1 << 20)] = 2048
    """Of each slot."""
    threads: Annotated[int, Field(ge=1, le=512)] | None = None
    """None: the cores divided by the workers on the machine, at least 1."""
    batch_tokens: Annotated[int, Field(ge=16, le=1 << 14)] | None = None
    """Prompt tokens that one step reads, at least one a slot; None: 128. A cancel is heard between steps."""
    exact: bool = False
    """Token-exact resume; prefill becomes as slow as decode."""
    adapters: dict[Annotated[str, Field(pattern=ADAPTER_NAME)], AdapterTable] = Field(
        default_factory=dict, max_length=64
    )
    """LoRA adapters that a job may name; GGUF files."""
    cache_type_k: CacheType = "f16"
    """How keys are stored."""
    cache_type_v: CacheType = "f16"
    """How values are stored; a quantised type needs flash attention."""
    flash_attention: Literal["auto", "on", "off"] = "auto"
    """Whether attention is computed in one pass over the cache; "auto" where the model and the build can."""
    rope_scaling: Literal["none", "linear", "yarn"] | None = None
    """How positions beyond the trained context are scaled; None: as the model says."""
    rope_freq_base: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] | None = None
    """Base frequency of positions; None: the model's own."""
    rope_freq_scale: Annotated[float, Field(ge=0.001, le=1, allow_inf_nan=False)] | None = None
    """1 divided by it times the trained context can be used; None: the model's own."""
    mmap: bool = True
    """Map the file instead of reading it: workers on one machine share its pages."""
    mlock: bool = False
    """Keep the weights in memory."""
    gpu_layers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Layers on GPUs; needs a build of xllamacpp for them, which PyPI does not have."""
    main_gpu: Annotated[int, Field(ge=0, le=63)] = 0
    """The GPU to use with split_mode = "none"."""
    split_mode: Literal["none", "layer", "row"] = "layer"
    """How several GPUs share a model; "none" uses main_gpu alone."""
    tensor_split: (
        Annotated[
            tuple[Annotated[float, Field(ge=0, le=4096, allow_inf_nan=False)], ...], Field(min_length=1, max_length=16)
        ]
        | None
    ) = None
    """Shares of each GPU; None: by their free memory."""

    @property
    def beyond_trained_context(self) -> float:
        """How many times the trained context positions may reach."""
        return 1.0 if self.rope_freq_scale is None else 1 / self.rope_freq_scale

    @model_validator(mode="after")
    def _one_source(self) -> LlamaCppModel:
        if (self.path is None) == (self.source is None):
            raise ValueError(
                'give path = "FILE.gguf", source = "NAME:QUANTISATION" or source = "s3:NAME@ALIAS", exactly one of them'
            )
        return self

    @classmethod
    def _check_source(cls, source: str) -> None:
        if is_version_source(source):
            super()._check_source(source)

    @model_validator(mode="after")
    def _fits_together(self) -> LlamaCppModel:
        if self.task == "embed":
            for key, unused in (
                ("exact", self.exact),
                ("adapters", self.adapters),
                ("batch_tokens", self.batch_tokens),
                ("kv", self.kv != "off"),
            ):
                if unused:
                    raise ValueError(f'task = "embed" has no use for {key}: remove it')
        elif self.pooling is not None:
            raise ValueError('pooling goes with task = "embed"')
        if self.exact and self.batch_tokens is not None:
            raise ValueError("exact = true reads prompts token by token: remove batch_tokens")
        if self.exact and self.kv != "off":
            # A prompt from stored keys and values takes another numeric path than one that was read.
            raise ValueError(f'exact = true reads every prompt: remove kv = "{self.kv}", or exact')
        if self.exact and self.gpu_layers:
            raise ValueError("exact = true holds on CPUs only: remove gpu_layers, or exact")
        if self.flash_attention == "off" and self.cache_type_v not in _UNQUANTISED:
            raise ValueError(
                f'cache_type_v = "{self.cache_type_v}" needs flash attention: remove flash_attention = "off"'
            )
        if self.tensor_split is not None and not any(self.tensor_split):
            raise ValueError("tensor_split gives no GPU a share")
        if not self.gpu_layers:
            for key in ("main_gpu", "split_mode", "tensor_split"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} goes with gpu_layers, which is 0")
        if self.rope_freq_scale is not None and self.rope_scaling == "none":
            raise ValueError('rope_freq_scale goes with rope_scaling = "linear" or "yarn"')
        return self

    def anchored(self, folder: Path) -> Self:
        adapters = {name: adapter.anchored(folder) for name, adapter in self.adapters.items()}
        return super().anchored(folder).model_copy(update={"adapters": adapters})
