"""How an engine chooses the next token: every setting that a request may ask for. No I/O.

Each is off by default. An engine says which of them it has; one that it lacks is refused, never left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

BASIC = frozenset({"temperature", "top_p", "seed"})
"""What every engine has."""

LEAST = 1e-30
"""Engines compute in single precision, which ends at 1.2e-38. A number nearer to 0 would become 0, which turns many of
the settings off, or be divided by and become infinite."""


def _in_single_precision(value: float) -> float:
    if value and abs(value) < LEAST:
        raise ValueError(f"{value:g} is too near to 0: engines compute in single precision. The least is {LEAST:g}")
    return value


_SINGLE = AfterValidator(_in_single_precision)
_Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False), _SINGLE]
_TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]


class Sampling(BaseModel):
    """How the next token is chosen. Names and ranges are OpenAI's, and llama.cpp's where that has none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), _SINGLE] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _SINGLE] = 1.0
    seed: _TokenId | None = None
    """None: derived from the job's id, so that every attempt of a job draws alike."""
    top_k: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Only the k most likely tokens; 0 is off."""
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _SINGLE] = 0.0
    """Only tokens at least so likely as this share of the most likely one; 0 is off."""
    typical_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _SINGLE] = 1.0
    """Locally typical sampling; 1 is off."""
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False), _SINGLE] = 1.0
    """Divides the logits of tokens that were there; 1 is off."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), _SINGLE] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False), _SINGLE] = 0.0
    penalty_last_tokens: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """How many of the last tokens the three penalties look at; 0 is all of the sequence."""
    dry_multiplier: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), _SINGLE] = 0.0
    """Strength of DRY, which penalises what would go on with a repetition; 0 is off."""
    dry_base: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False), _SINGLE] = 1.75
    dry_allowed_length: Annotated[int, Field(ge=0, le=1 << 16)] = 2
    """Tokens that may be repeated before DRY begins."""
    dry_last_tokens: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """How many of the last tokens DRY looks at; 0 is all of the sequence."""
    dry_sequence_breakers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=64)
    ] = ("\n", ":", '"', "*")
    xtc_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _SINGLE] = 0.0
    """How often the most likely tokens are left out; 0 is off."""
    xtc_threshold: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False), _SINGLE] = 0.1
    mirostat: Literal[0, 1, 2] = 0
    """Version of Mirostat; 0 is off."""
    mirostat_tau: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), _SINGLE] = 5.0
    mirostat_eta: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), _SINGLE] = 0.1
    temperature_range: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False), _SINGLE] = 0.0
    """Dynamic temperature: `temperature` plus and minus so much, by entropy; 0 is off."""
    temperature_exponent: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False), _SINGLE] = 1.0
    top_n_sigma: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False), _SINGLE] | None = None
    """Only tokens within so many standard deviations of the largest logit."""
    logit_bias: Annotated[dict[str, _Bias], Field(max_length=1024)] = Field(default_factory=dict)
    """Token id, in decimal digits as in OpenAI's API, -> what is added to its logit."""

    @field_validator("dry_sequence_breakers", mode="before")
    @classmethod
    def _lists_are_welcome(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, bias: dict[str, float]) -> dict[str, float]:
        for token in bias:
            if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) < 1 << 32):
                raise ValueError(f"'{token[:20]}' is no token id; write the id in decimal digits")
        return bias

    def asks_for(self) -> frozenset[str]:
        """Names of the settings beyond the basic ones that are not at their defaults: an engine must have them."""
        fields = type(self).model_fields
        return frozenset(
            name
            for name in fields.keys() - BASIC
            if getattr(self, name) != fields[name].get_default(call_default_factory=True)
        )


class SamplingOptions(TypedDict, total=False):
    """The settings of `Sampling` beyond the basic ones, as keyword arguments of `submit`."""

    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_tokens: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_last_tokens: int
    dry_sequence_breakers: Sequence[str]
    xtc_probability: float
    xtc_threshold: float
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    temperature_range: float
    temperature_exponent: float
    top_n_sigma: float
    logit_bias: Mapping[int, float] | Mapping[str, float]
