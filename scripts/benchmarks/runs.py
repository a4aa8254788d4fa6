"""One run of one side: some prompts at once, from the first submit or call to the last token's end."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """digests, first_token_s: one for each prompt. first_token_s: from submit, or from the call of the engine."""

    seconds: float
    tokens: int
    digests: list[str]
    first_token_s: list[float]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def to_answer(self) -> dict[str, Any]:
        return asdict(self)


def digest_of_tokens(ids: Sequence[int]) -> str:
    """What tells whether two runs made the same tokens."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]
