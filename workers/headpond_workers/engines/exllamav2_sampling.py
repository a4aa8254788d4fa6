"""exllamav2's sampler settings for one job: every field is set, so that no default of the package shows in an answer.

Its defaults are a house style (repetition penalty 1.025, top_k 50, top_p 0.8, temperature 0.8), and one settings
object also carries the state of a job: two jobs never share one. exllamav2 is imported when the first settings are
made, after the engine has checked that it can be.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from headpond.sampling import Sampling

GREEDY_TEMPERATURE = 0.01
"""At this temperature and below the compiled sampler takes the most likely token: it compares in single precision."""
SMALLEST_TOP_P = 1e-6
"""The sampler counts no candidate below it; a smaller top_p could round to 0, which means off."""


def settings_of(sampling: Sampling) -> Any:
    """A new ExLlamaV2Sampler.Settings for one job."""
    from exllamav2.generator import ExLlamaV2Sampler

    return ExLlamaV2Sampler.Settings(**fields_of(sampling))


def fields_of(sampling: Sampling) -> dict[str, Any]:
    """Every field of ExLlamaV2Sampler.Settings by name. What `sampling` does not speak of is off."""
    greedy = sampling.temperature <= GREEDY_TEMPERATURE
    return {
        # top_k: 0 is off. top_p: off at 0 and at 1.
        "temperature": 1.0 if greedy else sampling.temperature,
        "top_k": 1 if greedy else 0,
        "top_p": 1.0 if greedy else max(sampling.top_p, SMALLEST_TOP_P),
        "token_repetition_penalty": 1.0,
        "token_repetition_range": -1,
        "token_repetition_decay": 0,
        "token_frequency_penalty": 0.0,
        "token_presence_penalty": 0.0,
        "smoothing_factor": 0.0,
        # Dynamic temperature is on where max_temp > min_temp.
        "min_temp": 0.0,
        "max_temp": 0.0,
        "temp_exponent": 1.0,
        "temperature_last": False,
        "top_a": 0.0,
        "min_p": 0.0,
        "tfs": 0.0,
        "typical": 0.0,
        "skew": 0.0,
        "mirostat": False,
        "mirostat_tau": 1.5,
        "mirostat_eta": 0.1,
        "mirostat_mu": None,
        "token_bias": None,
        "cfg_scale": None,
        "post_sampling_hooks": [],
        "dry_allowed_length": 2,
        "dry_base": 1.75,
        "dry_multiplier": 0.0,
        "dry_sequence_breakers": None,
        "dry_range": 0,
        "dry_max_ngram": 20,
        "ngram_trie": None,
        "ngram_index": 0,
        "ngram_history": deque(),
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "xtc_ignore_tokens": None,
    }
