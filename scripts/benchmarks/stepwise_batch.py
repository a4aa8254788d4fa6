"""A batch whose steps take a set time, and a watch on what happens between them. Headpond's own modules are all it
imports: the worker process finds it in a folder of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from headpond.jobs import FinishReason
from headpond_workers.engines.exllama.batch_generator import BatchGenerator, Step
from headpond_workers.engines.protocol import Sequence

# A token is a byte. The character at the end spans four of them; no answer begins within it.
_ANSWER = "The river wears the stone away, grain by grain, and carries it to the sea. \N{WATER WAVE}".encode()
_BEGINNINGS = len(_ANSWER) - 4


def prompt_ids(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


@dataclass(eq=False, slots=True)
class _Running:
    sequence: Sequence
    made: int = 0


class StepwiseBatch:
    """A BatchGenerator: each step waits step_s, then gives every sequence one token, to its max_tokens."""

    def __init__(self, *, step_s: float) -> None:
        self._step_s = step_s
        self._running: list[_Running] = []

    def admit(self, sequence: Sequence) -> object:
        running = _Running(sequence)
        self._running.append(running)
        return running

    def cancel(self, handle: object) -> None:
        self._running = [running for running in self._running if running is not handle]

    def step(self) -> list[Step]:
        # As a device is waited for: the thread sleeps, and others may run.
        time.sleep(self._step_s)
        steps = [_advance(running) for running in self._running]
        if any(step.finish is not None for step in steps):
            self._running = [running for running in self._running if running.made < running.sequence.max_tokens]
        return steps

    def use_adapter(self, name: str | None) -> None:
        """There are none."""

    def recover(self) -> None:
        self._running.clear()

    def close(self) -> None:
        self._running.clear()


def _advance(running: _Running) -> Step:
    sequence = running.sequence
    position = sum(sequence.prompt) % _BEGINNINGS + len(sequence.generated) + running.made
    running.made += 1
    over = running.made == sequence.max_tokens
    return Step(running, (_ANSWER[position % len(_ANSWER)],), FinishReason.LENGTH if over else None)


@dataclass(slots=True)
class StepTimes:
    """Milliseconds. gap_ms: from the return of a step to the call of the next. turn_ms: from call to call."""

    gap_ms: list[float] = field(default_factory=list)
    turn_ms: list[float] = field(default_factory=list)


class TimedBatch:
    """A BatchGenerator around another: notes the time between its steps, while `sequences` of them run together.

    ended: given the times of the first `most` gaps once so many sequences have ended, in the thread that steps.
    """

    def __init__(
        self, generator: BatchGenerator, *, sequences: int, most: int, ended: Callable[[StepTimes], None]
    ) -> None:
        self.admit, self.cancel, self.use_adapter = generator.admit, generator.cancel, generator.use_adapter
        self.recover, self.close = generator.recover, generator.close
        self._generator = generator
        self._sequences, self._most, self._ended = sequences, most, ended
        self._times = StepTimes()
        self._over = 0
        self._was_full = False
        self._called = self._returned = 0.0

    def step(self) -> list[Step]:
        called = time.perf_counter()
        steps = self._generator.step()
        # Every sequence has one part in every step.
        full = len(steps) == self._sequences
        if full and self._was_full and len(self._times.gap_ms) < self._most:
            self._times.gap_ms.append(round((called - self._returned) * 1000, 4))
            self._times.turn_ms.append(round((called - self._called) * 1000, 3))
        self._over += sum(step.finish is not None for step in steps)
        if self._over >= self._sequences:
            self._ended(self._times)
            self._times, self._over, full = StepTimes(), 0, False
        self._called, self._was_full = called, full
        self._returned = time.perf_counter()
        return steps
