"""What a worker asks of an engine: everything above the forward pass lives outside of it.

An engine deals in token ids. Text is made from ids in one place (`headpond_workers.detokenizer`), stop
strings are found there too, and the queue, leases and streams are no concern of an engine. An engine:

- is loaded, warm and ready when its constructor returns;
- runs up to `info.slots` calls of `generate` at the same time, each in a thread of its caller;
- never emits a token that it may take back, and never emits the end token;
- asks `emit` at least once a second while it works, with no tokens during a long prefill, so that a cancel
  is heard; STOP ends that sequence alone, as soon as the engine can.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from headpond.jobs import FinishReason, Message, Sampling


class Verdict(Enum):
    """The answer of `emit`."""

    GO = "go"
    STOP = "stop"


Emit = Callable[[Seq[int]], Verdict]
"""Takes the next token ids of one sequence, shape (n,), n >= 0. Never blocks for long, never raises."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine is.

    engine: the name in the configuration. fingerprint: hex digest of all that decides its output: weights,
    tokenizer, template, engine build, settings; two engines with one fingerprint may continue each other's
    sequences. context_tokens: the most that one sequence may hold, prompt and answer together. slots: how
    many sequences run together. capabilities: names of the optional abilities, such as "seeded", "kv".
    """

    engine: str
    fingerprint: str
    context_tokens: int
    slots: int
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sequence:
    """One sequence to continue.

    prompt: token ids, shape (n,), n > 0. generated: ids that earlier attempts made, shape (k,); the engine
    continues after them and does not emit them again. max_tokens: how many more ids may be emitted, >= 1.
    seed: the same in every attempt; an engine that can, replays k draws.
    """

    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    seed: int


@dataclass(frozen=True, slots=True)
class Finish:
    """How a call of `generate` ended: STOP (end token), LENGTH, or CANCELLED after a verdict STOP."""

    reason: FinishReason
    details: dict[str, float] = field(default_factory=dict)
    """What the engine measured, in seconds and tokens, such as prefill_s and cached_tokens."""


class Engine(Protocol):
    """A loaded model. Errors: SequenceFailed ends one sequence; anything else is the engine's own failure."""

    @property
    def info(self) -> EngineInfo: ...

    def render(self, messages: Seq[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for its answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; empty for control tokens. A character may span tokens."""
        ...

    def generate(self, sequence: Sequence, emit: Emit) -> Finish:
        """Run one sequence to its end. Blocks; thread-safe up to `info.slots` calls."""
        ...

    def close(self) -> None:
        """Free the device. Further calls are an error."""
        ...
