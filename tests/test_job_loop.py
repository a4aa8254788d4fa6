"""The job loop, driven over a generator whose every step the test lets go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import eventually
from headpond.errors import EngineBroken, EngineError, EngineOutOfMemory, PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond_workers.engines.exllama.admission import ADAPTER_PATIENCE_S
from headpond_workers.engines.exllama.batch_generator import SequenceCrashed, Step
from headpond_workers.engines.exllama.job_loop import POLL_S, JobLoop
from headpond_workers.engines.protocol import Emit, Finish, Sequence, Verdict
from stepwise_generator import Caller, Running, StepwiseGenerator, sequence, token, undisturbed


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Bench:
    """A loop over a stepwise generator, and the callers that a test started."""

    generator: StepwiseGenerator
    clock: Clock
    loop: JobLoop
    callers: list[Caller] = field(default_factory=list)

    def start(self, wanted: Sequence, *, stop_after: int | None = None, emit: Emit | None = None) -> Caller:
        """Start a caller, and wait until the loop knows it: callers arrive in the order of these calls.

        Unless steps were let go, those after the first arrive while the loop waits for a step.
        """
        before = self.loop.sequences
        caller = Caller(self.loop, wanted, stop_after=stop_after, emit=emit)
        self.callers.append(caller)
        caller.start()
        eventually(lambda: self.loop.sequences > before or caller.outcome is not None, what="the arrival")
        if before == 0 and not self.generator.free:
            self.generator.wait_at_gate()
        return caller


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench() -> Iterator[MakeBench]:
    benches: list[Bench] = []

    def make(*, slots: int = 2, tokens_a_step: int = 1) -> Bench:
        generator = StepwiseGenerator(slots, tokens_a_step)
        clock = Clock()
        benches.append(Bench(generator, clock, JobLoop(generator, slots=slots, name="test", clock=clock)))
        return benches[-1]

    yield make
    for made in benches:
        made.generator.let_go()
        made.loop.close()
        for caller in made.callers:
            caller.ended()
        assert made.generator.breaches == []


def raising(error: BaseException, *, at: int) -> Callable[[list[Running]], None]:
    """Fails the step of that number, the first being 1."""
    steps = 0

    def before_step(active: list[Running]) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            raise error

    return before_step


# Order and slots.


def test_a_sequence_gets_its_tokens_and_its_finish(bench: MakeBench) -> None:
    made = bench()
    made.generator.let_go()
    answered, cut = made.start(sequence(1, answer=5)), made.start(sequence(2, max_tokens=3))
    assert answered.ended() == Finish(FinishReason.STOP, {"made": 5})
    assert answered.ids == [token(1, i) for i in range(5)]
    assert cut.ended() == Finish(FinishReason.LENGTH)
    assert cut.ids == [token(2, i) for i in range(3)]
    assert made.loop.sequences == 0


def test_sequences_are_admitted_in_order_and_never_beyond_the_slots(bench: MakeBench) -> None:
    made = bench(slots=2)
    first = made.start(sequence(1, answer=2))
    made.generator.wait_at_gate()
    rest = [made.start(sequence(seed, answer=1)) for seed in (2, 3, 4)]
    made.generator.let_go()
    for caller in (first, *rest):
        assert isinstance(caller.ended(), Finish)
    assert [admitted.seed for admitted in made.generator.admissions] == [1, 2, 3, 4]
    assert max(len(batch) for batch in made.generator.batches) == 2


def test_a_sequence_of_the_serving_adapter_overtakes_until_patience_ends(bench: MakeBench) -> None:
    made = bench(slots=3)
    made.start(sequence(1, adapter="french"))
    made.generator.wait_at_gate()
    made.start(sequence(2, adapter="german"))
    made.start(sequence(3, answer=1, adapter="french"))
    made.generator.allow(2)
    assert [admitted.seed for admitted in made.generator.admissions] == [1, 3], "3 overtook 2"
    made.clock.now += ADAPTER_PATIENCE_S - 0.01
    made.start(sequence(4, answer=1, adapter="french"))
    made.generator.allow(1)
    assert [admitted.seed for admitted in made.generator.admissions] == [1, 3, 4]
    made.clock.now += 0.02
    made.start(sequence(5, answer=1, adapter="french"))
    made.generator.allow(3)
    assert made.generator.batches[-1] == (1,), "nobody overtakes any more: the batch drains"


def test_the_adapter_is_switched_once_the_batch_is_empty(bench: MakeBench) -> None:
    made = bench(slots=2)
    made.start(sequence(1, answer=3, adapter="french"))
    made.generator.wait_at_gate()
    german = made.start(sequence(2, answer=1, adapter="german"))
    bare = made.start(sequence(3, answer=1))
    made.generator.let_go()
    assert isinstance(german.ended(), Finish)
    assert isinstance(bare.ended(), Finish)
    assert made.generator.adapters == ["french", "german", None]
    assert [admitted.seed for admitted in made.generator.admissions] == [1, 2, 3]


def test_the_adapter_is_set_again_after_a_recovery(bench: MakeBench) -> None:
    made = bench()
    made.generator.before_step = raising(RuntimeError("kernel"), at=2)
    made.generator.let_go()
    caller = made.start(sequence(1, answer=4, adapter="french"))
    assert isinstance(caller.ended(), Finish)
    assert made.generator.adapters == ["french", "french"]


# Cancelling.


def test_a_waiting_sequence_is_cancelled_without_being_admitted(bench: MakeBench) -> None:
    made = bench(slots=1)
    made.start(sequence(1))
    made.generator.wait_at_gate()
    waiting = made.start(sequence(2), stop_after=0)
    made.clock.now += POLL_S
    made.generator.allow(1)
    assert waiting.ended() == Finish(FinishReason.CANCELLED)
    assert [admitted.seed for admitted in made.generator.admissions] == [1]
    assert made.generator.cancelled == []


def test_a_sequence_is_cancelled_amid_prefill(bench: MakeBench) -> None:
    made = bench()
    neighbour = made.start(sequence(1))
    prefilling = made.start(sequence(2, prefill=100), stop_after=0)
    made.generator.allow(1)
    made.clock.now += POLL_S
    made.generator.allow(2)
    assert prefilling.ended() == Finish(FinishReason.CANCELLED)
    assert made.generator.cancelled == [2]
    made.generator.allow(2)
    assert neighbour.ids == [token(1, i) for i in range(len(neighbour.ids))] != []


def test_a_sequence_is_cancelled_amid_decode_and_gets_no_token_more(bench: MakeBench) -> None:
    made = bench()
    neighbour = made.start(sequence(1, answer=10))
    stopping = made.start(sequence(2, answer=10), stop_after=3)
    made.generator.let_go()
    assert stopping.ended() == Finish(FinishReason.CANCELLED)
    assert isinstance(neighbour.ended(), Finish)
    assert stopping.ids == [token(2, i) for i in range(3)]
    assert neighbour.ids == [token(1, i) for i in range(10)]
    assert made.generator.cancelled == [2]


def test_what_a_step_made_after_the_token_that_was_told_to_stop_is_dropped(bench: MakeBench) -> None:
    made = bench(tokens_a_step=4)
    made.generator.let_go()
    running = made.start(sequence(1, answer=50), stop_after=6)
    assert running.ended() == Finish(FinishReason.CANCELLED)
    assert running.ids == [token(1, i) for i in range(6)]
    eventually(lambda: made.generator.cancelled == [1])
    ending = made.start(sequence(2, answer=7), stop_after=6)
    assert ending.ended() == Finish(FinishReason.CANCELLED)
    assert ending.ids == [token(2, i) for i in range(6)]
    assert made.generator.cancelled == [1], "its last step ended it: there is nothing left to cancel"


def test_a_sequence_without_tokens_is_asked_four_times_a_second_and_no_more(bench: MakeBench) -> None:
    made = bench(slots=1)
    prefilling = made.start(sequence(1, prefill=100))
    made.generator.wait_at_gate()
    waiting = made.start(sequence(2))
    for _ in range(21):
        made.clock.now += POLL_S / 2
        made.generator.allow(1)
    assert prefilling.polls == 10
    assert waiting.polls == 10


def test_an_error_of_emit_goes_to_its_own_caller(bench: MakeBench) -> None:
    made = bench()

    def emit(ids: object) -> Verdict:
        raise ValueError("the stream is gone")

    neighbour = made.start(sequence(1, answer=5))
    failing = made.start(sequence(2), emit=emit)
    made.generator.let_go()
    outcome = failing.ended()
    assert isinstance(outcome, ValueError)
    assert str(outcome) == "the stream is gone"
    assert neighbour.ended() == Finish(FinishReason.STOP, {"made": 5})
    assert made.generator.cancelled == [2]


# Failures.


def test_after_a_failure_without_a_culprit_all_go_on_from_the_tokens_they_emitted(bench: MakeBench) -> None:
    made = bench(slots=3)
    made.generator.before_step = raising(RuntimeError("kernel"), at=4)
    callers = [made.start(sequence(1, answer=9, max_tokens=20))]
    made.generator.allow(1)
    callers += [made.start(sequence(2, max_tokens=6)), made.start(sequence(3, prefill=5, max_tokens=4))]
    made.generator.let_go()
    for caller in callers:
        assert isinstance(caller.ended(), Finish)
        assert caller.ids == undisturbed(caller.sequence)
    assert made.generator.recoveries == 1
    again = made.generator.admissions[3:]
    assert [(rest.seed, rest.generated, rest.max_tokens) for rest in again] == [
        (1, (token(1, 0), token(1, 1), token(1, 2)), 17),
        (2, (token(2, 0),), 5),
        (3, (), 4),
    ]


def test_tokens_of_earlier_attempts_stay_in_front_of_those_emitted(bench: MakeBench) -> None:
    made = bench()
    made.generator.before_step = raising(RuntimeError("kernel"), at=3)
    made.generator.let_go()
    prior = tuple(token(1, i) for i in range(5))
    caller = made.start(Sequence((9, 0), prior, 100, sequence(1).sampling, 1))
    assert isinstance(caller.ended(), Finish)
    assert caller.ids == [token(1, i) for i in range(5, 9)]
    assert made.generator.admissions[-1].generated == (*prior, token(1, 5), token(1, 6))
    assert made.generator.admissions[-1].max_tokens == 98


def test_a_second_failure_without_a_token_in_between_is_raised_as_it_is(bench: MakeBench) -> None:
    made = bench()
    error = RuntimeError("kernel")

    def before_step(active: list[Running]) -> None:
        raise error

    made.generator.before_step = before_step
    made.generator.let_go()
    caller = made.start(sequence(1))
    assert caller.ended() is error
    assert made.generator.recoveries == 2


def test_the_sequence_that_fails_every_step_takes_no_neighbour_with_it(bench: MakeBench) -> None:
    made = bench(slots=4)

    def before_step(active: list[Running]) -> None:
        if any(running.sequence.seed == 3 and running.position == 2 for running in active):
            raise RuntimeError("a filter of sequence 3")

    made.generator.before_step = before_step
    callers = [made.start(sequence(seed, answer=8, prefill=seed % 2)) for seed in (1, 2, 3, 4)]
    made.generator.let_go()
    outcomes = [caller.ended() for caller in callers]
    assert [type(outcome) for outcome in outcomes] == [Finish, Finish, RuntimeError, Finish]
    assert callers[2].ids == [token(3, 0), token(3, 1)]
    for caller in (callers[0], callers[1], callers[3]):
        assert caller.ids == undisturbed(caller.sequence)


def test_those_who_were_admitted_go_before_those_who_waited_in_their_old_order(bench: MakeBench) -> None:
    made = bench(slots=2)
    made.generator.before_step = raising(RuntimeError("kernel"), at=2)
    first = made.start(sequence(1))
    made.generator.wait_at_gate()
    second, third = made.start(sequence(2)), made.start(sequence(3, answer=2))
    made.generator.allow(4)
    assert [admitted.seed for admitted in made.generator.admissions] == [1, 2, 1, 2]
    assert made.generator.batches == [(1,), (1, 2), (1,), (1, 2)]
    assert [len(first.ids), len(second.ids), len(third.ids)] == [3, 1, 0]


def test_a_failed_admission_is_no_second_failure_of_those_already_admitted(bench: MakeBench) -> None:
    made = bench(slots=2)
    made.generator.before_step = raising(RuntimeError("kernel"), at=1)
    refused = 0

    def on_admit(wanted: Sequence) -> None:
        nonlocal refused
        refused += wanted.seed == 2
        if wanted.seed == 2:
            raise RuntimeError("the page table")

    made.generator.on_admit = on_admit
    suspect = made.start(sequence(1, answer=3, prefill=3))
    made.generator.allow(2)
    failing = made.start(sequence(2))
    made.generator.let_go()
    assert isinstance(failing.ended(), RuntimeError)
    assert refused == 2
    assert isinstance(suspect.ended(), Finish)
    assert suspect.ids == undisturbed(suspect.sequence)


def test_a_token_in_between_makes_the_next_failure_a_first_one(bench: MakeBench) -> None:
    made = bench()
    steps = 0

    def before_step(active: list[Running]) -> None:
        nonlocal steps
        steps += 1
        if steps % 2 == 0:
            raise RuntimeError("every other step")

    made.generator.before_step = before_step
    made.generator.let_go()
    caller = made.start(sequence(1, answer=6))
    assert isinstance(caller.ended(), Finish)
    assert caller.ids == undisturbed(caller.sequence)


def test_the_guilty_one_alone_fails_with_its_cause(bench: MakeBench) -> None:
    made = bench(slots=3)
    cause = ValueError("no token is allowed")

    def before_step(active: list[Running]) -> None:
        for running in active:
            if running.sequence.seed == 2 and running.position == 3:
                raise SequenceCrashed(running, cause)

    made.generator.before_step = before_step
    callers = [made.start(sequence(seed, answer=6)) for seed in (1, 2, 3)]
    made.generator.let_go()
    outcome = callers[1].ended()
    assert isinstance(outcome, SequenceFailed)
    assert outcome.__cause__ is cause
    assert "no token is allowed" in str(outcome)
    for caller in (callers[0], callers[2]):
        assert isinstance(caller.ended(), Finish)
        assert caller.ids == undisturbed(caller.sequence)


def test_a_step_that_says_that_one_sequence_failed_disturbs_nobody(bench: MakeBench) -> None:
    made = bench()
    error = SequenceFailed("the job has no room")
    make_steps = made.generator.step

    def step() -> list[Step]:
        steps = make_steps()
        for running in list(made.generator.active):
            if running.sequence.seed == 1 and running.position == 2:
                made.generator.active.remove(running)
                steps = [Step(running, error=error), *(step for step in steps if step.handle is not running)]
        return steps

    made.generator.step = step  # type: ignore[method-assign]
    failing, neighbour = made.start(sequence(1, answer=5)), made.start(sequence(2, answer=5))
    made.generator.let_go()
    assert failing.ended() is error
    assert isinstance(neighbour.ended(), Finish)
    assert neighbour.ids == undisturbed(neighbour.sequence)
    assert made.generator.recoveries == 0


def test_memory_that_runs_out_is_the_matter_of_the_one_admitted_last(bench: MakeBench) -> None:
    made = bench(slots=3)
    error = EngineOutOfMemory("The device is full.")
    made.generator.before_step = raising(error, at=3)
    callers = [made.start(sequence(1, answer=5))]
    made.generator.allow(1)
    callers += [made.start(sequence(seed, answer=5)) for seed in (2, 3)]
    made.generator.let_go()
    assert callers[2].ended() is error
    for caller in callers[:2]:
        assert isinstance(caller.ended(), Finish)
        assert caller.ids == undisturbed(caller.sequence)


def test_memory_that_one_sequence_ran_out_of_is_raised_to_it_as_it_is(bench: MakeBench) -> None:
    made = bench(slots=3)
    error = EngineOutOfMemory("The device is full.")

    def before_step(active: list[Running]) -> None:
        for running in active:
            if running.sequence.seed == 1 and running.position == 1:
                raise SequenceCrashed(running, error)

    made.generator.before_step = before_step
    callers = [made.start(sequence(seed, answer=5)) for seed in (1, 2)]
    made.generator.let_go()
    assert callers[0].ended() is error
    assert isinstance(callers[1].ended(), Finish)
    assert callers[1].ids == undisturbed(callers[1].sequence)


@pytest.mark.parametrize(
    "error",
    [
        PromptTooLong(prompt_tokens=9, context_tokens=8),
        SequenceFailed("a filter is wrong"),
        EngineOutOfMemory("The cache is full."),
    ],
)
def test_what_admission_refuses_is_refused_to_that_caller_alone(bench: MakeBench, error: Exception) -> None:
    made = bench()

    def on_admit(wanted: Sequence) -> None:
        if wanted.seed == 2:
            raise error

    made.generator.on_admit = on_admit
    callers = [made.start(sequence(seed, answer=4)) for seed in (1, 2, 3)]
    made.generator.let_go()
    assert callers[1].ended() is error
    for caller in (callers[0], callers[2]):
        assert caller.ended() == Finish(FinishReason.STOP, {"made": 4})
    assert made.generator.recoveries == 0


def test_an_unexpected_error_of_admission_is_tried_once_more_and_then_raised(bench: MakeBench) -> None:
    made = bench(slots=3)
    error = RuntimeError("the page table")

    def on_admit(wanted: Sequence) -> None:
        if wanted.seed == 2:
            raise error

    made.generator.on_admit = on_admit
    callers = [made.start(sequence(seed, answer=4)) for seed in (1, 2, 3)]
    made.generator.let_go()
    assert callers[1].ended() is error
    for caller in (callers[0], callers[2]):
        assert isinstance(caller.ended(), Finish)
        assert caller.ids == undisturbed(caller.sequence)
    assert made.generator.recoveries == 2


def test_an_error_of_cancelling_harms_neither_its_caller_nor_the_others(bench: MakeBench) -> None:
    made = bench()

    def on_cancel(wanted: Sequence) -> None:
        raise RuntimeError("the page table")

    made.generator.on_cancel = on_cancel
    neighbour = made.start(sequence(1, answer=8))
    stopping = made.start(sequence(2), stop_after=2)
    made.generator.let_go()
    assert stopping.ended() == Finish(FinishReason.CANCELLED)
    assert isinstance(neighbour.ended(), Finish)
    assert neighbour.ids == undisturbed(neighbour.sequence)
    assert made.generator.recoveries == 1


def test_a_sequence_that_had_all_its_tokens_when_a_step_failed_has_ended(bench: MakeBench) -> None:
    made = bench(tokens_a_step=4)
    make_steps = made.generator.step

    def step() -> list[Step]:
        if made.generator.batches:
            raise RuntimeError("kernel")
        return [Step(done.handle, done.ids) for done in make_steps()]

    made.generator.step = step  # type: ignore[method-assign]
    made.generator.let_go()
    caller = made.start(sequence(1, max_tokens=4))
    assert caller.ended() == Finish(FinishReason.LENGTH)
    assert caller.ids == undisturbed(caller.sequence)
    assert made.generator.recoveries == 1


def test_an_engine_that_cannot_be_cleared_is_broken_for_all(bench: MakeBench) -> None:
    made = bench(slots=1)
    cause = RuntimeError("the context is lost")

    def on_recover() -> None:
        raise cause

    made.generator.on_recover = on_recover
    made.generator.before_step = raising(RuntimeError("kernel"), at=2)
    callers = [made.start(sequence(seed)) for seed in (1, 2)]
    made.generator.let_go()
    for caller in callers:
        outcome = caller.ended()
        assert isinstance(outcome, EngineBroken)
        assert outcome.__cause__ is cause
        assert "the context is lost" in str(outcome)
    with pytest.raises(EngineBroken):
        made.loop.run(sequence(3), lambda ids: Verdict.GO)
    with pytest.raises(EngineBroken):
        made.loop.call(lambda: None)
    made.loop.close()
    assert made.generator.closed == 1
    with pytest.raises(EngineError, match="The engine is closed"):
        made.loop.run(sequence(3), lambda ids: Verdict.GO)


def test_a_generator_that_says_that_it_is_broken_is_not_asked_to_recover(bench: MakeBench) -> None:
    made = bench()
    made.generator.before_step = raising(EngineBroken("The device is gone."), at=1)
    made.generator.let_go()
    caller = made.start(sequence(1))
    assert isinstance(caller.ended(), EngineBroken)
    assert made.generator.recoveries == 0


def test_no_caller_is_left_waiting_when_the_thread_itself_dies(bench: MakeBench) -> None:
    made = bench(slots=1)
    made.generator.before_step = raising(SystemExit(3), at=2)
    callers = [made.start(sequence(seed)) for seed in (1, 2)]
    made.generator.let_go()
    for caller in callers:
        assert isinstance(caller.ended(), EngineBroken)


# Calls and closing.


def test_a_call_runs_in_the_loops_thread_between_two_steps(bench: MakeBench) -> None:
    made = bench()
    running = made.start(sequence(1, answer=5))
    made.generator.wait_at_gate()
    seen: list[tuple[str, int]] = []

    def look() -> str:
        seen.append((threading.current_thread().name, len(made.generator.active)))
        return "looked"

    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(made.loop.call(look)))
    asking.start()
    made.generator.let_go()
    asking.join(30)
    assert answers == ["looked"]
    assert [name for name, _ in seen] == ["test-loop"]
    assert isinstance(running.ended(), Finish)
    assert running.ids == undisturbed(running.sequence)


def test_an_error_of_a_call_is_raised_where_it_was_made_and_nowhere_else(bench: MakeBench) -> None:
    made = bench()

    def fail() -> None:
        raise KeyError("no such page")

    with pytest.raises(KeyError, match="no such page"):
        made.loop.call(fail)
    made.generator.let_go()
    caller = made.start(sequence(1, answer=3))
    assert isinstance(caller.ended(), Finish)
    assert made.generator.recoveries == 0


def test_closing_refuses_all_who_run_or_wait_and_frees_the_device_once(bench: MakeBench) -> None:
    made = bench(slots=1)
    callers = [made.start(sequence(seed, answer=1 << 40, max_tokens=1 << 40)) for seed in (1, 2)]
    made.generator.allow(2)
    closing = threading.Thread(target=made.loop.close)
    closing.start()
    made.generator.let_go()
    closing.join(30)
    for caller in callers:
        outcome = caller.ended()
        assert type(outcome) is EngineError
        assert str(outcome) == "The engine is closed."
    assert made.generator.closed == 1
    made.loop.close()
    assert made.generator.closed == 1
    with pytest.raises(EngineError, match="The engine is closed"):
        made.loop.call(lambda: None)


def test_an_error_of_closing_is_raised_by_close() -> None:
    generator = StepwiseGenerator(1)

    def close() -> None:
        raise RuntimeError("the driver")

    generator.close = close  # type: ignore[method-assign]
    loop = JobLoop(generator, slots=1, name="test")
    with pytest.raises(RuntimeError, match="the driver"):
        loop.close()
    loop.close()
    assert loop.sequences == 0


# Any schedule.


@dataclass(frozen=True)
class Planned:
    answer: int
    prefill: int
    max_tokens: int
    adapter: str | None
    stop_after: int | None
    arrives_at: int


PLANS = st.lists(
    st.builds(
        Planned,
        answer=st.integers(0, 8),
        prefill=st.integers(0, 3),
        max_tokens=st.integers(1, 8),
        adapter=st.sampled_from([None, "french"]),
        stop_after=st.none() | st.integers(0, 6),
        arrives_at=st.integers(0, 10),
    ),
    min_size=1,
    max_size=7,
)
FAILURES = st.dictionaries(
    st.integers(1, 30), st.tuples(st.sampled_from(["nobody", "guilty", "memory"]), st.integers(0, 3)), max_size=6
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans=PLANS, failures=FAILURES, slots=st.integers(1, 4), tokens_a_step=st.integers(1, 3))
def test_under_any_schedule_no_token_is_lost_repeated_or_invented_and_every_caller_returns(
    plans: list[Planned], failures: dict[int, tuple[str, int]], slots: int, tokens_a_step: int
) -> None:
    generator = StepwiseGenerator(slots, tokens_a_step)
    loop = JobLoop(generator, slots=slots, name="test")
    callers = [
        Caller(
            loop,
            sequence(seed, answer=plan.answer, prefill=plan.prefill, max_tokens=plan.max_tokens, adapter=plan.adapter),
            stop_after=plan.stop_after,
        )
        for seed, plan in enumerate(plans, 1)
    ]
    starting = threading.Lock()

    def arrive(step: float) -> None:
        with starting:
            for caller, plan in zip(callers, plans, strict=True):
                if plan.arrives_at <= step and caller.ident is None:
                    caller.start()

    def before_step(active: list[Running]) -> None:
        step = len(generator.batches)
        arrive(step)
        kind, which = failures.get(step, ("", 0))
        if kind == "nobody":
            raise RuntimeError("kernel")
        if kind == "memory":
            raise EngineOutOfMemory("The device is full.")
        if kind == "guilty":
            raise SequenceCrashed(active[which % len(active)], ValueError("filter"))

    generator.before_step = before_step
    generator.let_go()
    arrive(0)
    eventually(lambda: loop.sequences == 0, what="the end of what arrived")
    arrive(float("inf"))  # A step that never came starts nobody.
    for caller, plan in zip(callers, plans, strict=True):
        whole, outcome = undisturbed(caller.sequence), caller.ended()
        assert caller.ids == whole[: len(caller.ids)]
        if isinstance(outcome, Finish) and outcome.reason is FinishReason.CANCELLED:
            assert plan.stop_after is not None
            assert len(caller.ids) >= plan.stop_after
        elif isinstance(outcome, Finish):
            assert caller.ids == whole
            assert outcome.reason is (FinishReason.STOP if plan.answer < plan.max_tokens else FinishReason.LENGTH)
        else:
            assert isinstance(outcome, RuntimeError | SequenceFailed | EngineOutOfMemory)
            assert failures
    loop.close()
    assert generator.breaches == []
    assert generator.closed == 1
