"""One suite for every engine: what docs/engines.md asks of an engine, asked of each in `engine_subjects`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine_conformance import (
    DEADLINE_S,
    SEED,
    TEXTS,
    Attempt,
    Subject,
    ends_whole,
    long_prompt,
    prompt_of,
    sequence,
    text_of,
)
from engine_subjects import GPU_MODEL, SUBJECTS
from headpond.errors import CapabilityMissing, EngineError, PrefixRefused, PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond_workers.detokenizer import Detokenizer
from headpond_workers.engines.protocol import Capability, Engine, Verdict

NO_TOKEN = 10**6
REFUSED = {
    Capability.SEEDED: "cannot repeat an answer from its seed",
    Capability.EXACT_RESUME: "cannot promise the identical continuation after a restart",
    Capability.ADAPTERS: "cannot serve adapters",
    Capability.KV_PREFIXES: "cannot store keys and values of a prompt",
    Capability.JSON_SCHEMA: "cannot bind an answer to JSON or to a schema",
    Capability.GRAMMAR: "cannot bind an answer to a grammar",
    Capability.EMBEDDINGS: "cannot embed texts",
}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    chosen: Subject = request.param
    return chosen


@pytest.fixture(scope="module")
def folder(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(subject.name)


@pytest.fixture(scope="module")
def engine(subject: Subject, folder: Path) -> Iterator[Engine]:
    loaded = subject.load(folder)
    yield loaded
    loaded.close()


# What it says of itself


def test_the_info_says_what_was_loaded(subject: Subject, engine: Engine) -> None:
    info = engine.info
    assert (info.slots, info.context_tokens, info.adapters) == (subject.slots, subject.context_tokens, subject.adapters)
    assert info.capabilities == subject.capabilities
    assert len(bytes.fromhex(info.fingerprint)) >= 16
    assert subject.name.startswith(info.engine)


@pytest.mark.parametrize("capability", list(Capability))
def test_a_capability_is_there_or_refused_with_its_message(engine: Engine, capability: Capability) -> None:
    if capability in engine.info.capabilities:
        engine.info.require(capability)
        return
    with pytest.raises(CapabilityMissing, match=REFUSED[capability]) as caught:
        engine.info.require(capability)
    assert (caught.value.engine, caught.value.capability) == (engine.info.engine, capability.value)


def test_an_adapter_that_is_not_there_is_refused_and_not_left_out(subject: Subject, engine: Engine) -> None:
    attempt = Attempt(engine, sequence(prompt_of(engine, subject.ends), adapter="nobody"))
    if Capability.ADAPTERS in engine.info.capabilities:
        with pytest.raises(SequenceFailed, match="nobody"):
            attempt.run()
    else:
        with pytest.raises(CapabilityMissing, match=REFUSED[Capability.ADAPTERS]):
            attempt.run()
    assert attempt.calls == []


def test_adapters_serve_in_turn_beside_the_bare_model(subject: Subject, engine: Engine) -> None:
    assert bool(engine.info.adapters) is (Capability.ADAPTERS in engine.info.capabilities)
    if not engine.info.adapters:
        return
    prompt = prompt_of(engine, subject.runs_on)
    names = (None, *engine.info.adapters)
    alone = {name: Attempt(engine, sequence(prompt, adapter=name)).run().raw for name in names}
    attempts = [(name, Attempt(engine, sequence(prompt, adapter=name))) for name in names * 2]
    with ThreadPoolExecutor(len(attempts)) as pool:
        for future in [pool.submit(attempt.run) for _, attempt in attempts]:
            future.result(DEADLINE_S)
    assert [attempt.raw for _, attempt in attempts] == [alone[name] for name, _ in attempts]
    assert len({tuple(ids) for ids in alone.values()}) == len(names)


def test_keys_and_values_that_are_none_are_refused(engine: Engine, tmp_path: Path) -> None:
    stored = tmp_path / "prefix"
    stored.write_bytes(b"\0" * 64)
    if Capability.KV_PREFIXES in engine.info.capabilities:
        with pytest.raises(PrefixRefused):
            engine.load_prefix(stored)  # type: ignore[attr-defined]
    else:
        assert not hasattr(engine, "load_prefix")
        assert not hasattr(engine, "save_prefix")


# Text and tokens


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_a_texts_tokens_are_the_text(engine: Engine, text: str) -> None:
    ids = engine.encode(text)
    assert b"".join(map(engine.token_bytes, ids)) == text.encode()


def test_no_text_has_no_tokens(engine: Engine) -> None:
    assert engine.encode("") == []


def test_a_conversation_is_rendered_alike_each_time_and_each_turn_counts(subject: Subject, engine: Engine) -> None:
    turns = [
        Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello."),
        Message(role="user", content=subject.ends),
    ]
    rendered = engine.render(turns)
    assert rendered == engine.render(tuple(turns))
    assert rendered != engine.render([*turns[:2], Message(role="user", content=subject.runs_on)])
    assert 0 < len(rendered) < engine.info.context_tokens


# Tokens as they come, and how they end


def test_tokens_come_as_they_are_made(subject: Subject, engine: Engine) -> None:
    attempt = Attempt(engine, sequence(prompt_of(engine, subject.runs_on), max_tokens=32)).run()
    assert len(attempt.raw) == 32
    assert len([count for count in attempt.calls if count]) >= 8


def test_an_answer_that_ends_by_itself_stops_and_its_end_token_is_not_seen(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.ends)
    attempt = Attempt(engine, sequence(prompt, max_tokens=engine.info.context_tokens - len(prompt))).run()
    assert attempt.finish is FinishReason.STOP
    assert 0 < len(attempt.raw) < engine.info.context_tokens - len(prompt)
    assert all(engine.token_bytes(i) for i in attempt.raw), "no control token is part of an answer"
    assert attempt.text == text_of(engine, attempt.raw)


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
def test_max_tokens_ends_an_answer_by_length(subject: Subject, engine: Engine, max_tokens: int) -> None:
    attempt = Attempt(engine, sequence(prompt_of(engine, subject.runs_on), max_tokens=max_tokens)).run()
    assert (len(attempt.raw), attempt.finish) == (max_tokens, FinishReason.LENGTH)


def test_the_context_ends_an_answer_by_length(subject: Subject, engine: Engine) -> None:
    context = engine.info.context_tokens
    # So far behind, a small model may end its answer by itself: one prompt of several on which it does not.
    for begin in range(10):
        prompt = long_prompt(engine, subject.runs_on, tokens=context - 6, begin=begin)
        attempt = Attempt(engine, sequence(prompt, max_tokens=100)).run()
        if attempt.finish is FinishReason.LENGTH:
            break
    assert (len(attempt.raw), attempt.finish) == (6, FinishReason.LENGTH)
    resumed = Attempt(engine, sequence(prompt, generated=attempt.raw[:4], max_tokens=100)).run()
    assert (len(resumed.raw), resumed.finish) == (2, FinishReason.LENGTH)
    full = Attempt(engine, sequence(prompt, generated=attempt.raw)).run()
    assert (full.raw, full.finish) == ([], FinishReason.LENGTH)


@pytest.mark.parametrize("beyond", [0, 1, 300])
def test_a_prompt_that_leaves_no_room_is_refused_with_both_sizes(subject: Subject, engine: Engine, beyond: int) -> None:
    context = engine.info.context_tokens
    attempt = Attempt(engine, sequence(long_prompt(engine, subject.runs_on, tokens=context + beyond)))
    with pytest.raises(PromptTooLong) as caught:
        attempt.run()
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (context + beyond, context)
    assert attempt.raw == []


# Characters over several tokens


def test_an_answer_with_split_characters_is_whole_however_it_is_cut(subject: Subject, engine: Engine) -> None:
    prompt = engine.encode(subject.multibyte)
    attempt = Attempt(engine, sequence(prompt, max_tokens=48)).run()
    assert attempt.text == text_of(engine, attempt.raw)
    assert "\ufffd" not in attempt.text
    assert any(not ends_whole(engine, attempt.raw[:at]) for at in range(len(attempt.raw))), "a character spans tokens"
    for size in (1, 2, 3, 5, len(attempt.raw)):
        text = Detokenizer(engine.token_bytes)
        parts = [attempt.raw[at : at + size] for at in range(0, len(attempt.raw), size)]
        assert "".join(piece for part in parts for piece in text.feed(part).pieces) == attempt.text


def test_a_resume_amid_a_character_completes_it(subject: Subject, engine: Engine) -> None:
    prompt = engine.encode(subject.multibyte)
    whole = Attempt(engine, sequence(prompt)).run()
    amid = [at for at in range(1, len(whole.raw)) if not ends_whole(engine, whole.raw[:at])]
    assert amid
    for kept in amid[:4]:
        rest = Attempt(engine, sequence(prompt, generated=whole.raw[:kept], max_tokens=24 - kept)).run()
        assert text_of(engine, whole.raw[:kept]) + rest.text == whole.text, f"resumed after {kept} tokens"
        assert rest.finish is whole.finish


# Stop strings and stop tokens


@pytest.mark.parametrize(("begin", "length"), [(0, 1), (4, 1), (3, 6), (7, 14)])
def test_a_stop_string_ends_the_answer_before_it(subject: Subject, engine: Engine, begin: int, length: int) -> None:
    asked = sequence(prompt_of(engine, subject.runs_on), max_tokens=32)
    stop = Attempt(engine, asked).run().text[begin : begin + length]
    assert len(stop) == length
    attempt = Attempt(engine, asked, stop=("\u0000 never", stop)).run()
    made = text_of(engine, attempt.raw)
    assert stop in made
    assert attempt.text == made[: made.index(stop)], "nothing of the stop string is shown, all before it is"
    assert attempt.finish is FinishReason.STOP


def test_a_stop_string_of_split_characters_is_found(subject: Subject, engine: Engine) -> None:
    asked = sequence(engine.encode(subject.multibyte), max_tokens=48)
    whole = Attempt(engine, asked).run().text
    stop = next(character for character in whole if ord(character) > 127)
    attempt = Attempt(engine, asked, stop=(stop,)).run()
    assert attempt.text == whole[: whole.index(stop)]
    assert attempt.finish is FinishReason.STOP


def test_text_that_only_began_like_a_stop_string_is_not_lost(subject: Subject, engine: Engine) -> None:
    asked = sequence(prompt_of(engine, subject.runs_on), max_tokens=32)
    whole = Attempt(engine, asked).run()
    near = (whole.text[2:12] + "\u0000", whole.text[-6:] + "\u0000")
    attempt = Attempt(engine, asked, stop=near).run()
    assert (attempt.raw, attempt.text, attempt.finish) == (whole.raw, whole.text, whole.finish)


@pytest.mark.parametrize("at", [0, 1, 9])
def test_a_stop_token_ends_the_answer_before_it_and_frees_what_was_held(
    subject: Subject, engine: Engine, at: int
) -> None:
    asked = sequence(prompt_of(engine, subject.runs_on), max_tokens=32)
    whole = Attempt(engine, asked).run()
    stop_id = whole.raw[at]
    before = whole.raw[: whole.raw.index(stop_id)]
    # The text before the stop token may begin a stop string: it is held until the stop token proves that it does not.
    held = text_of(engine, before)[-4:] + "\u0000"
    attempt = Attempt(engine, asked, stop=(held,), stop_ids=(NO_TOKEN, stop_id)).run()
    assert attempt.ids == before
    assert attempt.text == text_of(engine, before)
    assert attempt.finish is FinishReason.STOP


# Together


def test_as_many_sequences_as_slots_run_together(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.runs_on)
    begun: set[int] = set()
    start = threading.Barrier(engine.info.slots)

    def run(number: int) -> Attempt:
        def until(attempt: Attempt) -> bool:
            if attempt.raw:
                begun.add(number)
            return len(begun) == engine.info.slots

        asked = sequence(prompt, max_tokens=engine.info.context_tokens, seed=number)
        attempt = Attempt(engine, asked, until=until)
        start.wait(DEADLINE_S)
        return attempt.run()

    with ThreadPoolExecutor(engine.info.slots) as pool:
        attempts = [pool.submit(run, number) for number in range(engine.info.slots)]
        # One after the other, the first would have come to its end before the last began.
        assert [attempt.result(DEADLINE_S).finish for attempt in attempts] == [FinishReason.CANCELLED] * len(attempts)


def test_more_callers_than_slots_are_all_served(subject: Subject, engine: Engine) -> None:
    callers = engine.info.slots + 3
    prompts = [prompt_of(engine, f"{subject.runs_on} {number}") for number in range(callers)]
    alone = [Attempt(engine, sequence(prompt, max_tokens=8)).run().raw for prompt in prompts[:2]]
    attempts = [Attempt(engine, sequence(prompt, max_tokens=8)) for prompt in prompts]
    with ThreadPoolExecutor(callers) as pool:
        for future in [pool.submit(attempt.run) for attempt in attempts]:
            future.result(DEADLINE_S)
    assert all(attempt.finish in (FinishReason.STOP, FinishReason.LENGTH) for attempt in attempts)
    if Capability.EXACT_RESUME in engine.info.capabilities:
        assert [attempt.raw for attempt in attempts[:2]] == alone, "neighbours change nothing"


# Seeds


def test_a_seed_decides_what_is_drawn(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.runs_on)
    answers = {
        seed: [
            Attempt(engine, sequence(prompt, max_tokens=12, temperature=subject.hot, seed=seed)).run().raw
            for _ in range(2)
        ]
        for seed in (1, 2, 3, (1 << 32) - 1)
    }
    assert len({tuple(first) for first, _ in answers.values()}) > 1
    if Capability.SEEDED in engine.info.capabilities:
        assert all(first == second for first, second in answers.values())


def test_greedy_answers_have_no_seed(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.runs_on)
    answers = {tuple(Attempt(engine, sequence(prompt, seed=seed)).run().raw) for seed in (1, 2)}
    # Without the capability the sums differ from run to run, and with them a token whose runner-up is as likely.
    assert len(answers) == 1 or Capability.SEEDED not in engine.info.capabilities


# Cancel


def test_a_cancel_is_heard_amid_prefill(subject: Subject, engine: Engine) -> None:
    prompt = long_prompt(engine, subject.runs_on, tokens=engine.info.context_tokens - 10)
    with subject.slowed():
        attempt = Attempt(engine, sequence(prompt, max_tokens=8), until=lambda attempt: True).run()
    assert (attempt.finish, attempt.calls) == (FinishReason.CANCELLED, [0])
    after = Attempt(engine, sequence(prompt_of(engine, subject.runs_on), max_tokens=3)).run()
    assert (len(after.raw), after.finish) == (3, FinishReason.LENGTH)


def test_a_cancel_amid_decoding_ends_one_sequence_and_not_its_neighbour(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.runs_on)
    undisturbed = Attempt(engine, sequence(prompt, max_tokens=32)).run()
    neighbour = Attempt(engine, sequence(prompt, max_tokens=32))
    cancelled = Attempt(engine, sequence(prompt, max_tokens=200), until=lambda attempt: len(attempt.raw) >= 5)
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(neighbour.run)
        assert neighbour.begun.wait(DEADLINE_S)
        assert cancelled.run().finish is FinishReason.CANCELLED
        going.result(DEADLINE_S)
    assert cancelled.calls[-1] > 0, "it ended with the call that was answered with STOP"
    assert len(cancelled.raw) < 32
    assert (len(neighbour.raw), neighbour.finish) == (32, FinishReason.LENGTH)
    if Capability.EXACT_RESUME in engine.info.capabilities:
        assert neighbour.raw == undisturbed.raw


# Resume


@pytest.mark.parametrize("drawn", [False, True], ids=["greedy", "drawn"])
def test_a_resumed_sequence_goes_on_where_it_was(subject: Subject, engine: Engine, drawn: bool) -> None:
    prompt = prompt_of(engine, subject.runs_on)
    temperature = subject.hot if drawn else 0.0
    whole = Attempt(engine, sequence(prompt, temperature=temperature)).run()
    kept = [k for k in (1, 7, len(whole.raw) - 1) if 0 < k < len(whole.raw)]
    assert kept
    for k in kept:
        asked = sequence(prompt, generated=whole.raw[:k], max_tokens=24 - k, temperature=temperature)
        rest = Attempt(engine, asked).run()
        if Capability.EXACT_RESUME in engine.info.capabilities:
            assert whole.raw[:k] + rest.raw == whole.raw, f"resumed after {k} tokens"
            assert rest.finish is whole.finish
        else:
            # What is promised: only new tokens are emitted, and max_tokens counts only these.
            assert rest.finish is FinishReason.STOP or len(rest.raw) == 24 - k


def test_a_sequence_that_was_at_its_end_ends_again(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.ends)
    whole = Attempt(engine, sequence(prompt, max_tokens=engine.info.context_tokens)).run()
    again = Attempt(engine, sequence(prompt, generated=whole.raw, max_tokens=8)).run()
    assert (again.raw, again.finish) == ([], FinishReason.STOP)


# One fails, others go on


@pytest.mark.parametrize("strange", [NO_TOKEN, -1])
def test_an_id_that_is_no_token_fails_its_sequence_alone(subject: Subject, engine: Engine, strange: int) -> None:
    prompt = prompt_of(engine, subject.runs_on)
    undisturbed = Attempt(engine, sequence(prompt, max_tokens=32)).run()
    neighbours = [Attempt(engine, sequence(prompt, max_tokens=32)) for _ in range(max(1, engine.info.slots - 1))]
    with ThreadPoolExecutor(len(neighbours)) as pool:
        going = [pool.submit(neighbour.run) for neighbour in neighbours]
        assert neighbours[0].begun.wait(DEADLINE_S)
        for bad in ((strange,), (*prompt, strange), (prompt[0], strange, *prompt[1:])):
            attempt = Attempt(engine, sequence(bad))
            with pytest.raises(SequenceFailed):
                attempt.run()
            assert attempt.raw == []
        for future in going:
            future.result(DEADLINE_S)
    assert all((len(one.raw), one.finish) == (32, FinishReason.LENGTH) for one in neighbours)
    if Capability.EXACT_RESUME in engine.info.capabilities:
        assert all(one.raw == undisturbed.raw for one in neighbours)


def test_what_a_listener_raises_reaches_its_caller_alone(subject: Subject, engine: Engine) -> None:
    prompt = prompt_of(engine, subject.runs_on)

    def fail(attempt: Attempt) -> bool:
        raise LookupError("the listener's own")

    neighbour = Attempt(engine, sequence(prompt, max_tokens=32))
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(neighbour.run)
        assert neighbour.begun.wait(DEADLINE_S)
        for _ in range(engine.info.slots + 1):
            with pytest.raises(LookupError, match="the listener's own"):
                Attempt(engine, sequence(prompt), until=fail).run()
        going.result(DEADLINE_S)
    assert (len(neighbour.raw), neighbour.finish) == (32, FinishReason.LENGTH)


# The end


def test_a_closed_engine_says_so_and_can_be_closed_again(subject: Subject, folder: Path) -> None:
    engine = subject.load(folder)
    asked = sequence(prompt_of(engine, subject.ends))
    assert Attempt(engine, asked).run().raw
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.generate(asked, lambda ids: Verdict.GO)


def test_callers_of_an_engine_that_closes_are_let_go(subject: Subject, folder: Path) -> None:
    engine = subject.load(folder)
    prompt = prompt_of(engine, subject.runs_on)
    asked = sequence(prompt, max_tokens=engine.info.context_tokens, temperature=0.0, seed=SEED)
    attempts = [Attempt(engine, asked) for _ in range(engine.info.slots + 1)]
    with ThreadPoolExecutor(len(attempts)) as pool:
        running = [pool.submit(attempt.run) for attempt in attempts]
        assert attempts[0].begun.wait(DEADLINE_S)
        engine.close()
        errors = [future.exception(DEADLINE_S) for future in running]
    assert any(errors), "none had come to its end"
    assert all(error is None or (isinstance(error, EngineError) and "closed" in str(error)) for error in errors)


@pytest.mark.gpu
def test_a_model_on_a_gpu_is_among_the_subjects() -> None:
    if GPU_MODEL not in os.environ:
        pytest.skip(f"gpu: {GPU_MODEL} names no checkpoint folder, so this suite did not run on a GPU")
    assert "exllamav2-gpu" in [param.id for param in SUBJECTS]
