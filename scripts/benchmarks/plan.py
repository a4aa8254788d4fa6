"""How one measurement is to be made: what every measurement of the queue and of peers is given."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from document import Kind


@dataclass(frozen=True, slots=True)
class Plan:
    """folder: private, for servers' data and logs of this measurement alone. quick: much less of everything."""

    kind: Kind
    pairs: int
    seed: int
    quick: bool
    folder: Path
    progress: Callable[[str], None]
    benchmark: str = "queue"

    def draw(self, number: int) -> random.Random:
        """Of one pair: both sides draw the same."""
        return random.Random(f"{self.seed}:{number}")  # noqa: S311 - a workload, not a secret

    def say(self, text: str) -> None:
        self.progress(f"{self.benchmark}: {self.kind}: {text}")

    def say_pair(self, number: int, text: str) -> None:
        self.say(f"pair {number + 1}/{self.pairs}: {text}")
