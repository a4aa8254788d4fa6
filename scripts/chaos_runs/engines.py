"""The models that a run serves: their tables in headpond.toml, their jobs, and what is promised of their tokens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

SOURCE = "smollm2-135m:Q8_0"
SCRIPTED_CONTEXT = 16_384
"""Room for a conversation of a few turns. The tokens of the scripted engine depend on it, too."""
SUBJECTS = (
    "how a river shapes a valley", "the history of bread", "how a steam engine works", "life in a medieval town",
    "why the seasons change", "how glass is made", "the voyage of a letter", "how bees build a hive",
)  # fmt: skip


class EngineName(StrEnum):
    SCRIPTED = "scripted"
    LLAMACPP = "llamacpp"
    LLAMACPP_EXACT = "llamacpp-exact"

    @property
    def same_tokens(self) -> bool:
        """Whether a job that was disturbed has the same tokens as one that was not."""
        return self is not EngineName.LLAMACPP


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a run does if nothing else is asked for. jobs: kept waiting or running. interval_s: between faults.

    The lease is long beside the start of a worker and of the server, and the 8 tokens that clear a strike take a
    small part of the mean time between two kills of one worker: three strikes in a row are then no bad luck that
    a run of this length can have.
    """

    workers: int
    slots: int
    jobs: int
    lease_s: float
    interval_s: float
    tokens_per_s: float
    tokens: tuple[int, int]
    """max_tokens of a job: from, to."""


TUNINGS = {
    EngineName.SCRIPTED: Tuning(5, 3, 20, 1.5, 0.4, 120.0, (60, 300)),
    EngineName.LLAMACPP: Tuning(2, 2, 6, 3.0, 4.0, 0.0, (24, 64)),
    EngineName.LLAMACPP_EXACT: Tuning(2, 2, 6, 3.0, 5.0, 0.0, (24, 48)),
}


@dataclass(frozen=True, slots=True)
class Order:
    """One job to submit. version: for this one alone; empty for any. session: whose next turn it is; None for none."""

    id: str
    prompt: str
    max_tokens: int
    temperature: float
    version: str = ""
    session: str | None = None

    @property
    def recipient(self) -> str:
        """The model, with the version if there is one: `chat@3`."""
        model = self.id.partition("/")[0]
        return f"{model}@{self.version}" if self.version else model


def orders(seed: int, engine: EngineName, *, model: str) -> Iterator[Order]:
    """Jobs without end; what each asks for follows from the seed."""
    rng = random.Random(f"orders:{seed}")  # noqa: S311 - it has to be repeatable
    number = 0
    while True:
        number += 1
        prompt = f"Tell me of {rng.choice(SUBJECTS)}, part {number}."
        yield Order(f"{model}/{number:06d}", prompt, rng.randint(*TUNINGS[engine].tokens), rng.choice([0.0, 0.9]))


def model_table(engine: EngineName, model: str, *, slots: int, lease_s: float, tokens_per_s: float) -> str:
    """tokens_per_s: of each sequence; llama.cpp is as quick as it is."""
    head = f"\n[models.{model}]\nslots = {slots}\nlease_s = {lease_s}\ndrain_timeout_s = 5\n"
    if engine is EngineName.SCRIPTED:
        return f'{head}engine = "scripted"\ntokens_per_s = {tokens_per_s}\ncontext_tokens = {SCRIPTED_CONTEXT}\n'
    exact = "true" if engine is EngineName.LLAMACPP_EXACT else "false"
    return f'{head}engine = "llamacpp"\nsource = "{SOURCE}"\nthreads = 1\ncontext_tokens = 256\nexact = {exact}\n'
