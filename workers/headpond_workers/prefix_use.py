"""What a job asks of stored keys and values; `headpond_workers.prefixes` answers."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol

from headpond_workers.engines.protocol import Finish, Sequence


class PrefixUse(Protocol):
    """Called in the job's own thread; raises nothing: what fails costs the prefill that it would have saved."""

    def load(self, sequence: Sequence, proceed: Callable[[], bool]) -> int:
        """Before the engine is asked: put the longest stored beginning onto it, if that is quicker than computing it.

        Returns how many tokens need not be computed. proceed: whether the answer is still wanted; asked meanwhile.
        """
        ...

    def note(self, sequence: Sequence, finish: Finish, loaded: int) -> None:
        """Of a sequence that ended: what the engine says of its prompt. loaded: what `load` returned."""
        ...

    def keep(self, sequence: Sequence, made: Seq[int]) -> None:
        """After the job's end, told and all: keep what the engine holds of prompt and answer. Returns once that is
        copied; it is written elsewhere."""
        ...
