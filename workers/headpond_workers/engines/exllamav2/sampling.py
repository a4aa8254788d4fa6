"""exllamav2's sampler settings for one job: every field is set, so that no default of the package shows in an answer.

Its defaults are a house style (repetition penalty 1.025, top_k 50, top_p 0.8, temperature 0.8), and one settings
object also carries the state of a job: two jobs never share one. exllamav2 is imported when the first settings are
made, after the engine has checked that it can be.

Of a resumed job: penalties and DRY look at the ids of the sequence alone, and come out as if it had not been
interrupted. Mirostat's mu depends on what was likely at each step, and begins anew.

XTC is not among what this engine has: exllamav2 0.3.2 compares the likelihood of the next candidate, and a place with
a likelihood (cpp/sampling.cpp, xtc_cpu), so that it leaves out others than it should, and reads past its buffer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence as Seq
from typing import Any

from headpond.errors import CapabilityMissing, SequenceFailed
from headpond.sampling import Sampling

SAMPLING = frozenset(
    (
        *("top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
        *("penalty_last_tokens", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_last_tokens"),
        *("dry_sequence_breakers", "mirostat", "mirostat_tau", "mirostat_eta"),
        *("temperature_range", "temperature_exponent", "logit_bias"),
    )
)
"""Of `Sampling`, beyond the basic fields. Of Mirostat version 2 alone."""
GREEDY_TEMPERATURE = 0.01
"""At this temperature and below the compiled sampler takes the most likely token: it compares in single precision."""
SMALLEST_TOP_P = 1e-6
"""The sampler counts no candidate below it; a smaller top_p could round to 0, which means off."""
DRY_MAX_TOKENS = 20
"""The longest repetition that DRY looks for. What it costs at the first token grows with it."""
LOWEST_DYNAMIC = 0.15
"""The lowest temperature that dynamic temperature comes to. The compiled sampler raises likelihoods to its inverse in
single precision: lower ones make all of a large vocabulary 0, and what is then taken is no choice."""
_KEPT_BREAKERS = 8
"""Sets of DRY's breakers that are kept: each is looked for in the whole vocabulary."""


class SettingsOfModel:
    """Makes settings for jobs of one model. Thread-safe."""

    def __init__(self, vocabulary: Seq[bytes], *, vocab_size: int) -> None:
        """vocabulary: the bytes of each token. vocab_size: ids from 0 that the model gives a logit to."""
        self._vocabulary = vocabulary
        self._vocab_size = vocab_size
        self._breakers: OrderedDict[tuple[str, ...], frozenset[int]] = OrderedDict()

    def check(self, sampling: Sampling) -> None:
        """Raises CapabilityMissing or SequenceFailed for settings that `new` would not do as they are meant."""
        if sampling.mirostat == 1:
            raise CapabilityMissing("exllamav2", "mirostat 1")
        unknown = [token for token in sampling.logit_bias if int(token) >= self._vocab_size]
        if unknown:
            raise SequenceFailed(
                f"logit_bias names {unknown[0]}, which is no token id of this model: it has {self._vocab_size}. "
                "Make the ids with this model's own tokenizer."
            )
        if sampling.dry_multiplier <= 0:
            return
        if sampling.dry_allowed_length >= DRY_MAX_TOKENS:
            raise SequenceFailed(
                f"dry_allowed_length is {sampling.dry_allowed_length}, and exllamav2 looks for repetitions of at most "
                f"{DRY_MAX_TOKENS} tokens: DRY would never begin. Lower it."
            )
        if 0 < sampling.dry_last_tokens <= DRY_MAX_TOKENS:
            raise SequenceFailed(
                f"dry_last_tokens is {sampling.dry_last_tokens}, and exllamav2 needs more than {DRY_MAX_TOKENS}. "
                "Raise it, or leave it out for all of the sequence."
            )
        self._breaker_ids(sampling.dry_sequence_breakers)

    def new(self, sampling: Sampling) -> Any:
        """A new ExLlamaV2Sampler.Settings for one job whose sampling was checked."""
        breakers = (
            self._breaker_ids(sampling.dry_sequence_breakers) if sampling.dry_multiplier > 0 else frozenset[int]()
        )
        return settings_of(sampling, breakers=breakers, bias=self._bias(sampling))

    def _bias(self, sampling: Sampling) -> Any:
        if not sampling.logit_bias:
            return None
        import torch

        # Logits come in rows of a multiple of 32.
        bias = torch.zeros(self._vocab_size + -self._vocab_size % 32, dtype=torch.float)
        for token, value in sampling.logit_bias.items():
            bias[int(token)] = value
        return bias

    def _breaker_ids(self, texts: tuple[str, ...]) -> frozenset[int]:
        """The tokens that hold one of the texts. Raises SequenceFailed for a text that no token holds."""
        known = self._breakers.get(texts)
        if known is not None:
            return known
        found: set[int] = set()
        for text in texts:
            wanted = text.encode("utf-8", "replace")
            ids = [token_id for token_id, piece in enumerate(self._vocabulary) if wanted in piece]
            if not ids:
                raise SequenceFailed(
                    f"No token of this model holds {text!r}, which dry_sequence_breakers names, and exllamav2 knows "
                    "breakers of one token only. Name a shorter text."
                )
            found.update(ids)
        breakers = self._breakers[texts] = frozenset(found)
        while len(self._breakers) > _KEPT_BREAKERS:
            self._breakers.popitem(last=False)
        return breakers


def settings_of(sampling: Sampling, *, breakers: frozenset[int] = frozenset(), bias: Any = None) -> Any:
    """A new ExLlamaV2Sampler.Settings for one job."""
    from exllamav2.generator import ExLlamaV2Sampler

    return ExLlamaV2Sampler.Settings(**fields_of(sampling, breakers=breakers, bias=bias))


def fields_of(sampling: Sampling, *, breakers: frozenset[int] = frozenset(), bias: Any = None) -> dict[str, Any]:
    """Every field of ExLlamaV2Sampler.Settings by name. What `sampling` does not speak of is off.

    breakers: token ids that end a repetition for DRY. bias: added to the logits, shape (a multiple of 32,).
    """
    greedy = sampling.temperature <= GREEDY_TEMPERATURE
    # Dynamic temperature comes after truncation, and in place of the plain one, which comes before.
    highest = sampling.temperature + sampling.temperature_range
    dynamic = sampling.temperature_range > 0 and not greedy and highest > LOWEST_DYNAMIC
    return {
        # top_k: 0 is off. top_p: off at 0 and at 1.
        "temperature": 1.0 if greedy or dynamic else sampling.temperature,
        "top_k": 1 if greedy else sampling.top_k,
        "top_p": 1.0 if greedy else max(sampling.top_p, SMALLEST_TOP_P),
        "token_repetition_penalty": sampling.repetition_penalty,
        "token_repetition_range": sampling.penalty_last_tokens or -1,
        "token_repetition_decay": 0,
        "token_frequency_penalty": sampling.frequency_penalty,
        "token_presence_penalty": sampling.presence_penalty,
        "smoothing_factor": 0.0,
        # Dynamic temperature is on where max_temp > min_temp.
        "min_temp": max(LOWEST_DYNAMIC, sampling.temperature - sampling.temperature_range) if dynamic else 0.0,
        "max_temp": highest if dynamic else 0.0,
        "temp_exponent": sampling.temperature_exponent,
        "temperature_last": False,
        "top_a": 0.0,
        "min_p": sampling.min_p,
        "tfs": 0.0,
        "typical": sampling.typical_p if sampling.typical_p < 1 else 0.0,
        "skew": 0.0,
        "mirostat": sampling.mirostat == 2 and not greedy,
        "mirostat_tau": sampling.mirostat_tau,
        "mirostat_eta": sampling.mirostat_eta,
        "mirostat_mu": None,
        "token_bias": bias,
        "cfg_scale": None,
        "post_sampling_hooks": [],
        "dry_allowed_length": sampling.dry_allowed_length,
        "dry_base": sampling.dry_base,
        "dry_multiplier": sampling.dry_multiplier,
        # None is a set of the package's own.
        "dry_sequence_breakers": set(breakers) if sampling.dry_multiplier > 0 else None,
        "dry_range": sampling.dry_last_tokens,
        "dry_max_ngram": DRY_MAX_TOKENS,
        "ngram_trie": None,
        "ngram_index": 0,
        "ngram_history": deque(),
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "xtc_ignore_tokens": None,
    }
