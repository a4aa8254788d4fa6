"""headpond's sampling as fields of a request to llama.cpp. Pure.

The order, first to last:

    logit_bias -> penalties -> DRY -> top_n_sigma -> temperature -> top_k -> typical_p -> top_p -> min_p -> XTC -> draw

Temperature comes before what cuts off unlikely tokens, so that top_p means what it does at OpenAI. With Mirostat the
order is logit_bias -> temperature -> Mirostat, which draws by itself; llama.cpp would drop the others in silence. A
temperature of 0 keeps what changes logits, and takes the best of them by top_k = 1.
A grammar comes before all of it. Every field is set, so that no default of the package shows.
"""

from __future__ import annotations

from typing import Any

from headpond.errors import SequenceFailed
from headpond.sampling import BASIC, Sampling

HAS = frozenset(Sampling.model_fields.keys() - BASIC)
"""All there is."""
_ORDER = ("penalties", "dry", "top_n_sigma", "temperature", "top_k", "typ_p", "top_p", "min_p", "xtc")
_BESIDE_MIROSTAT = frozenset({"mirostat", "mirostat_tau", "mirostat_eta", "logit_bias"})
_NEVER = "\U0010ffff"
"""A sequence breaker that no text holds; llama.cpp wants at least one."""


def sampling_fields(sampling: Sampling, *, vocabulary: int, context_tokens: int) -> dict[str, Any]:
    """Of a request's body. vocabulary: how many tokens the model has. context_tokens: the most of one sequence.

    Raises SequenceFailed for an id of logit_bias that is no token, and for what Mirostat has no place for.
    """
    for token in sampling.logit_bias:
        if int(token) >= vocabulary:
            raise SequenceFailed(
                f"logit_bias names the token {token}; this model has the tokens 0 to {vocabulary - 1}."
            )
    if sampling.mirostat:
        useless = sorted(sampling.asks_for() - _BESIDE_MIROSTAT) + (["top_p"] if sampling.top_p < 1 else [])
        if useless:
            raise SequenceFailed(
                f"Mirostat chooses by itself which tokens are likely enough: it takes no {', '.join(useless)}. "
                "Leave them out, or mirostat."
            )
    return {
        "samplers": [name for name in _ORDER if _is_on(name, sampling)],
        "temperature": sampling.temperature,
        "dynatemp_range": sampling.temperature_range,
        "dynatemp_exponent": sampling.temperature_exponent,
        "top_k": 1 if sampling.temperature == 0 else sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "top_n_sigma": -1.0 if sampling.top_n_sigma is None else sampling.top_n_sigma,
        "min_keep": 0,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_last_n": min(sampling.penalty_last_tokens or context_tokens, context_tokens),
        "dry_multiplier": sampling.dry_multiplier,
        "dry_base": sampling.dry_base,
        "dry_allowed_length": sampling.dry_allowed_length,
        "dry_penalty_last_n": min(sampling.dry_last_tokens or context_tokens, context_tokens),
        "dry_sequence_breakers": list(sampling.dry_sequence_breakers) or [_NEVER],
        "xtc_probability": sampling.xtc_probability,
        "xtc_threshold": sampling.xtc_threshold,
        "mirostat": sampling.mirostat,
        "mirostat_tau": sampling.mirostat_tau,
        "mirostat_eta": sampling.mirostat_eta,
        "adaptive_target": -1.0,
        "logit_bias": [[int(token), bias] for token, bias in sampling.logit_bias.items()],
        "ignore_eos": False,
        "n_probs": 0,
        "backend_sampling": False,
        "reasoning_budget_tokens": -1,
    }


def _is_on(name: str, sampling: Sampling) -> bool:
    """Whether a sampler of llama.cpp would change anything. One that would not only costs time."""
    if sampling.temperature == 0 and name not in ("penalties", "dry"):
        # One candidate, not a vocabulary of which all but one are impossible: the draw goes through what is left.
        return name == "top_k"
    if name == "temperature":
        return True
    match name:
        case "penalties":
            return sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        case "dry":
            return sampling.dry_multiplier > 0
        case "top_n_sigma":
            return sampling.top_n_sigma is not None
        case "top_k":
            return sampling.top_k > 0
        case "typ_p":
            return sampling.typical_p < 1
        case "top_p":
            return sampling.top_p < 1
        case "min_p":
            return sampling.min_p > 0
        case _:
            return sampling.xtc_probability > 0
