"""A model of the reference engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from headpond.tables.versioned import VersionedModel


class ScriptedModel(VersionedModel):
    """The reference engine: deterministic tokens at a set speed, for tests and overhead figures."""

    host_keys: ClassVar[frozenset[str]] = frozenset(
        {"tokens_per_s", "prefill_tokens_per_s", "crash_at", "crash_token", "crash_prompt"}
    )

    engine: Literal["scripted"]
    path: Path | None = None
    """A file `scripted.json`, or a folder with one, which stands for weights: its keys beat those of the table. `path`,
    `source` or neither."""
    tokens_per_s: Annotated[float, Field(gt=0, le=1e6)] = 80.0
    """Of each sequence."""
    prefill_tokens_per_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """None: prefill takes no time."""
    context_tokens: Annotated[int, Field(ge=16, le=1 << 24)] = 8192
    answer_tokens: Annotated[int, Field(ge=1, le=1 << 24)] | None = None
    """Where the model ends its answer by itself; None: between 40 and 400, by the prompt and seed."""
    embed_dimensions: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """It also embeds texts, at prefill_tokens_per_s, as unit vectors of so many dimensions; None: it does not."""
    crash_at: Literal["load", "prefill", "token", "end"] | None = None
    """Kill the own process (SIGKILL) there, for tests."""
    crash_token: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """With crash_at = "token": after how many tokens of the attempt."""
    crash_prompt: str = ""
    """Only for prompts that hold this text."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.source is not None:
            raise ValueError('give path = "FOLDER", source = "s3:NAME@ALIAS", or neither of them')
        return self
