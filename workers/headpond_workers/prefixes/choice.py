"""Whether a stored prefix is quicker than reading the prompt. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from headpond_workers.prefixes.rates import Rates


class Tier(StrEnum):
    """Where a prefix stands."""

    LOCAL = "local"
    STORAGE = "storage"


@dataclass(frozen=True, slots=True)
class Offer:
    """tokens: of the prompt that it saves. size_bytes: of its file, all of which is loaded."""

    tier: Tier
    name: str
    tokens: int
    size_bytes: int


def load_s(offer: Offer, rates: Rates) -> float:
    """How long it takes until an engine has it, estimated."""
    seconds = offer.size_bytes / rates.disk_bytes_per_s
    if offer.tier is Tier.STORAGE:
        seconds += offer.size_bytes / rates.storage_bytes_per_s
    return seconds


def prefill_s(offer: Offer, rates: Rates) -> float:
    """How long its tokens would take to compute; 0 where that was never measured."""
    return offer.tokens / rates.prefill_tokens_per_s if rates.prefill_tokens_per_s else 0.0


def choose(offers: Iterable[Offer], rates: Rates) -> Offer | None:
    """The offer that saves the most time; None if none saves any, and while prefill was not measured."""
    gains = [(prefill_s(offer, rates) - load_s(offer, rates), offer) for offer in offers]
    gain, best = max(gains, key=lambda each: each[0], default=(0.0, None))
    return best if gain > 0 else None
