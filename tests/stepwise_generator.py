"""A BatchGenerator without a model: token i of a sequence follows from (seed, i), and a test lets each step go.

A prompt is (answer_tokens, prefill_steps): the answer ends by itself after so many tokens, and so many steps give
none. A breach of the port's rules is written down in `breaches`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from headpond.jobs import FinishReason
from headpond.sampling import Sampling
from headpond_workers.engines.exllama.batch_generator import Step
from headpond_workers.engines.exllama.job_loop import JobLoop
from headpond_workers.engines.protocol import Emit, Finish, Sequence, Verdict

DEADLINE_S = 30.0


def token(seed: int, position: int) -> int:
    return seed * 1000 + position


def sequence(
    seed: int, *, answer: int = 1000, prefill: int = 0, max_tokens: int = 1000, adapter: str | None = None
) -> Sequence:
    return Sequence((answer, prefill), (), max_tokens, Sampling(), seed, adapter)


def undisturbed(whole: Sequence) -> list[int]:
    """The ids of a sequence that nothing happens to."""
    return [token(whole.seed, position) for position in range(min(whole.prompt[0], whole.max_tokens))]


@dataclass(eq=False)
class Running:
    """One admission, and its own handle."""

    sequence: Sequence
    prefill_left: int
    made: int = 0

    @property
    def position(self) -> int:
        return len(self.sequence.generated) + self.made


@dataclass
class StepwiseGenerator:
    """tokens_a_step: each in a Step of its own, as with a draft model. before_step: may raise in place of the step."""

    slots: int
    tokens_a_step: int = 1
    before_step: Callable[[list[Running]], None] | None = None
    on_admit: Callable[[Sequence], None] | None = None
    on_recover: Callable[[], None] | None = None
    on_cancel: Callable[[Sequence], None] | None = None

    active: list[Running] = field(default_factory=list)
    admissions: list[Sequence] = field(default_factory=list)
    adapters: list[str | None] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)
    recoveries: int = 0
    closed: int = 0

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._permits: float = 0
        self._at_gate = False
        self._thread: int | None = None
        self._adapter: str | None = None

    # What a test does.

    def let_go(self) -> None:
        """From now on no step waits."""
        with self._changed:
            self._permits = float("inf")
            self._changed.notify_all()

    @property
    def free(self) -> bool:
        """Whether let_go was called."""
        with self._changed:
            return self._permits == float("inf")

    def allow(self, steps: int) -> None:
        """Let so many steps happen, and wait until the loop is about to make the next, or has nothing to do."""
        with self._changed:
            self._permits += steps
            self._changed.notify_all()
        self.wait_at_gate()

    def wait_at_gate(self) -> None:
        """Wait until the loop asks for a step that it may not make yet: all before it is handed on."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._at_gate and self._permits == 0, DEADLINE_S):
                raise AssertionError("the loop did not ask for another step")

    # The port.

    def admit(self, sequence: Sequence) -> Running:
        self._called()
        if self.on_admit is not None:
            self.on_admit(sequence)
        if len(self.active) >= self.slots:
            self.breaches.append(f"{sequence.seed} admitted beyond {self.slots} slots")
        if sequence.adapter != self._adapter:
            self.breaches.append(f"{sequence.seed} admitted under adapter {self._adapter}")
        if sequence.max_tokens < 1:
            self.breaches.append(f"{sequence.seed} admitted with nothing left to do")
        running = Running(sequence, prefill_left=sequence.prompt[1])
        self.admissions.append(sequence)
        self.active.append(running)
        return running

    def cancel(self, handle: object) -> None:
        self._called()
        found = [running for running in self.active if running is handle]
        if not found:
            self.breaches.append("cancelled what is not admitted")
            return
        self.active.remove(found[0])
        self.cancelled.append(found[0].sequence.seed)
        if self.on_cancel is not None:
            self.on_cancel(found[0].sequence)

    def step(self) -> list[Step]:
        self._called()
        self._pass_gate()
        if not self.active:
            self.breaches.append("stepped with nothing admitted")
        self.batches.append(tuple(running.sequence.seed for running in self.active))
        if self.before_step is not None:
            self.before_step(self.active)
        return [step for running in list(self.active) for step in self._advance(running)]

    def use_adapter(self, name: str | None) -> None:
        self._called()
        if self.active:
            self.breaches.append(f"switched to {name} under {len(self.active)} sequences")
        self._adapter = name
        self.adapters.append(name)

    def recover(self) -> None:
        self._called()
        self.active.clear()
        self._adapter = None
        self.recoveries += 1
        if self.on_recover is not None:
            self.on_recover()

    def close(self) -> None:
        self._called()
        self.closed += 1

    def _advance(self, running: Running) -> list[Step]:
        if running.prefill_left:
            running.prefill_left -= 1
            return []
        steps: list[Step] = []
        for _ in range(self.tokens_a_step):
            if running.position >= running.sequence.prompt[0]:
                steps.append(Step(running, (), FinishReason.STOP, {"made": running.made}))
                break
            running.made += 1
            over = running.made == running.sequence.max_tokens
            ids = (token(running.sequence.seed, running.position - 1),)
            steps.append(Step(running, ids, FinishReason.LENGTH if over else None))
            if over:
                break
        if steps and steps[-1].finish is not None:
            self.active.remove(running)
        return steps

    def _pass_gate(self) -> None:
        with self._changed:
            self._at_gate = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._permits > 0, DEADLINE_S):
                raise AssertionError("the test let no step happen")
            self._permits -= 1
            self._at_gate = False

    def _called(self) -> None:
        if self.closed:
            self.breaches.append("called after close")
        if self._thread is None:
            self._thread = threading.get_ident()
        elif self._thread != threading.get_ident():
            self.breaches.append("called from two threads")


class Caller(threading.Thread):
    """One thread in JobLoop.run.

    ids: emitted so far. polls: calls of emit without ids. stop_after: says STOP from so many ids on; 0 is at once.
    """

    def __init__(
        self, loop: JobLoop, sequence: Sequence, *, stop_after: int | None = None, emit: Emit | None = None
    ) -> None:
        super().__init__(name=f"caller-{sequence.seed}", daemon=True)
        self._loop = loop
        self._emit = emit or self.take
        self.sequence = sequence
        self.stop_after = stop_after
        self.ids: list[int] = []
        self.polls = 0
        self.outcome: Finish | BaseException | None = None

    def run(self) -> None:
        try:
            self.outcome = self._loop.run(self.sequence, self._emit)
        except BaseException as error:  # noqa: BLE001 - what the test looks at
            self.outcome = error

    def take(self, ids: tuple[int, ...]) -> Verdict:
        self.ids.extend(ids)
        self.polls += not ids
        return Verdict.GO if self.stop_after is None or len(self.ids) < self.stop_after else Verdict.STOP

    def ended(self) -> Finish | BaseException:
        """Wait for the end of run(); what it returned or raised."""
        self.join(DEADLINE_S)
        if self.outcome is None:
            raise AssertionError(f"{self.name} did not return")
        return self.outcome
