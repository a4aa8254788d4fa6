"""What a model names beside its own weights: LoRA adapters and a draft model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field

from headpond.tables.table import Table


class _PathTable(Table):
    path: Path
    """A folder."""

    def anchored(self, folder: Path) -> Self:
        """The same table with its path made absolute; it is relative to `folder`."""
        return self.model_copy(update={"path": folder / self.path.expanduser()})


class AdapterTable(_PathTable):
    """A LoRA adapter.

    exllamav2: a folder with adapter_config.json and adapter_model.safetensors; llamacpp: a GGUF file.
    """

    scaling: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 1.0
    """Multiplies what the adapter's own lora_alpha / r gives."""


class DraftTable(_PathTable):
    """A small model of the same vocabulary that guesses tokens ahead."""

    tokens: Annotated[int, Field(ge=1, le=8)] = 4
    """How many tokens it guesses a step."""
