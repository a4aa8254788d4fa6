"""What the job loop asks of a generator: sequences that are stepped together, driven by one thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from headpond.jobs import FinishReason
from headpond_workers.engines.protocol import Sequence


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did for one admitted sequence.

    handle: as returned by admit. ids: new tokens, settled, without the end token. finish: STOP or LENGTH.
    details: with finish, such as prefill_s and cached_tokens. error: this sequence alone failed, and its caller
    gets this. After finish or error the sequence is no longer admitted.
    """

    handle: object
    ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    details: Mapping[str, float] = field(default_factory=dict)
    error: Exception | None = None


class SequenceCrashed(Exception):
    """Raised by BatchGenerator.step: the step failed, and this one sequence is guilty of it."""

    def __init__(self, handle: object, cause: Exception) -> None:
        super().__init__(f"{type(cause).__name__}: {cause}")
        self.handle = handle
        self.cause = cause


class BatchGenerator(Protocol):
    """Sequences that are stepped together. Every call comes from the loop's one thread, never during a step."""

    def admit(self, sequence: Sequence) -> object:
        """Take a sequence into the batch; return its handle, hashable and unlike any other that is admitted.

        Raises PromptTooLong, SequenceFailed or EngineOutOfMemory for this sequence alone, the others unharmed.
        """
        ...

    def cancel(self, handle: object) -> None:
        """Drop an admitted sequence."""
        ...

    def step(self) -> list[Step]:
        """One step for all that is admitted; empty amid prefill.

        Raises SequenceCrashed if one is guilty, EngineBroken if nothing can be saved, EngineOutOfMemory, or what
        the package raised; after any of them but EngineBroken the loop calls `recover`.
        """
        ...

    def use_adapter(self, name: str | None) -> None:
        """What is admitted from now on runs with this adapter. Called only while nothing is admitted."""
        ...

    def recover(self) -> None:
        """Forget all that is admitted and free what it held. Raises if the device is beyond that."""
        ...

    def close(self) -> None:
        """Free the device. No call follows."""
        ...
