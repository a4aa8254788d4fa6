"""A model of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from headpond.tables.model import ModelTable


class LlamaCppModel(ModelTable):
    """A GGUF model on the CPU, through xllamacpp."""

    host_keys: ClassVar[frozenset[str]] = frozenset({"threads"})

    engine: Literal["llamacpp"]
    path: Path | None = None
    """A GGUF file. `path` or `source`, exactly one."""
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
