"""exllamav2 as an engine: the real package on the CPU, over stand-ins for its compiled parts."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from conftest import eventually
from exllamav2_cpu.availability import require_exllamav2
from headpond.errors import (
    CapabilityMissing,
    EngineBroken,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    ModelFileError,
    PrefixRefused,
    PromptTooLong,
    SequenceFailed,
)
from headpond.jobs import FinishReason
from headpond.requests import Message
from headpond.sampling import Sampling
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.loading_log import LoadingLog
from headpond_workers.engines.protocol import Capability, Finish, Sequence, Verdict

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402

STAND_IN = harness.install()

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from headpond_workers.engines.exllamav2.engine import ExLlamaV2Engine  # noqa: E402

CONTEXT_TOKENS = 1024
SLOTS = 8
ALWAYS = {Capability.KV_PREFIXES, Capability.JSON_SCHEMA, Capability.GRAMMAR}
GREEDY = Sampling(temperature=0)
HOT = Sampling(temperature=3.0)
"""Flat enough that the answer hangs on the draws."""
DRAWS_APART = 1000
"""Between the seeds of one prompt, so that no other prompt has them."""
DEADLINE_S = 60.0
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ADAPTERS = {"one": 1, "two": 2}
"""Name -> seed of its random weights."""


def table(**changes: Any) -> ExLlamaV2Model:
    values: dict[str, Any] = {
        "engine": "exllamav2",
        "path": checkpoints.tiny(),
        "context_tokens": CONTEXT_TOKENS,
        "slots": SLOTS,
        "chunk_tokens": 256,
    }
    return ExLlamaV2Model.model_validate(values | changes)


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digests")


@pytest.fixture(scope="module")
def shared(digests: Path) -> Iterator[ExLlamaV2Engine]:
    adapters = {name: {"path": checkpoints.tiny_adapter(seed)} for name, seed in ADAPTERS.items()}
    engine = ExLlamaV2Engine(table(adapters=adapters), digest_cache=digests)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: ExLlamaV2Engine) -> Iterator[ExLlamaV2Engine]:
    """Eight slots and two adapters; idle and without planned failures before and after."""
    STAND_IN.reset()
    yield shared
    STAND_IN.reset()
    assert pages_in_use(shared) == 0


@pytest.fixture
def loading(digests: Path) -> Iterator[Callable[..., ExLlamaV2Engine]]:
    """Loads engines of other settings, closed after the test."""
    engines: list[ExLlamaV2Engine] = []

    def load(**changes: Any) -> ExLlamaV2Engine:
        engines.append(ExLlamaV2Engine(table(**changes), digest_cache=digests))
        return engines[-1]

    yield load
    STAND_IN.reset()
    for engine in engines:
        engine.close()


@dataclass
class Answer:
    """What one call of generate gave."""

    ids: list[int] = field(default_factory=list)
    steps: int = 0
    finish: Finish | None = None


@dataclass
class Asked:
    """One sequence, and how it is asked: `on_step(answer)` gives the verdict of every emit."""

    sequence: Sequence
    on_step: Callable[[Answer], Verdict] = lambda answer: Verdict.GO


def answer_to(engine: ExLlamaV2Engine, asked: Asked | Sequence) -> Answer:
    asked = asked if isinstance(asked, Asked) else Asked(asked)
    answer = Answer()

    def emit(ids: Seq[int]) -> Verdict:
        answer.ids.extend(ids)
        answer.steps += 1
        return asked.on_step(answer)

    answer.finish = engine.generate(asked.sequence, emit)
    return answer


def together(engine: ExLlamaV2Engine, asked: Seq[Asked | Sequence]) -> list[Future[Answer]]:
    """Ask them all at the same time; every future is done."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return [pool.submit(answer_to, engine, one) for one in asked]


def pages_in_use(engine: ExLlamaV2Engine) -> int:
    generator = engine._loop._generator._generator
    used: int = engine._loop.call(lambda: len(generator.referenced_pages))
    return used


def chat(engine: ExLlamaV2Engine, question: str) -> tuple[int, ...]:
    return tuple(engine.render([Message(role="user", content=question)]))


def text_of(engine: ExLlamaV2Engine, ids: Seq[int]) -> str:
    return b"".join(map(engine.token_bytes, ids)).decode()


def story(engine: ExLlamaV2Engine, *, tokens: int = 20, offset: int = 0) -> tuple[int, ...]:
    """A prompt of so many tokens that the model goes on from for ever; another one for another offset."""
    text = "The quick brown fox jumps over the lazy dog. A worker binds one model and answers jobs in turn. " * 40
    return tuple(engine.encode(text)[offset : offset + tokens])


def goes_on(
    engine: ExLlamaV2Engine,
    *,
    seed: int = 1,
    tokens: int = 20,
    max_tokens: int = 40,
    sampling: Sampling = GREEDY,
    **more: Any,
) -> Sequence:
    """A sequence that ends by its length, its prompt other for another seed.

    One that is drawn is tried before, as its draws may hit the end token. Which ones do hangs on the last bits of the
    weights, so on the processor that trained them.
    """
    prompt = story(engine, tokens=tokens, offset=seed)
    if sampling is GREEDY:
        return Sequence(prompt, (), max_tokens, sampling, seed, **more)
    for draws in range(seed, seed + 20 * DRAWS_APART, DRAWS_APART):
        drawn = Sequence(prompt, (), max_tokens, sampling, draws, **more)
        if len(answer_to(engine, drawn).ids) == max_tokens:
            return drawn
    pytest.fail(f"None of 20 seeds draws {max_tokens} tokens: is the end token that likely?")


def direct(prompt: Seq[int], *, max_tokens: int, greedy: bool, seed: int = 0) -> list[int]:
    """exllamav2 called without headpond."""
    from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
    from exllamav2.generator import ExLlamaV2DynamicGenerator, ExLlamaV2DynamicJob, ExLlamaV2Sampler

    config = ExLlamaV2Config(str(checkpoints.tiny()))
    config.max_seq_len = CONTEXT_TOKENS
    model = ExLlamaV2(config)
    model.load()
    generator = ExLlamaV2DynamicGenerator(
        model=model,
        cache=ExLlamaV2Cache(model, max_seq_len=CONTEXT_TOKENS),
        tokenizer=ExLlamaV2Tokenizer(config),
        max_batch_size=1,
    )
    plain = {"token_repetition_penalty": 1.0, "top_p": 0.0}
    settings = ExLlamaV2Sampler.Settings(
        temperature=1.0 if greedy else HOT.temperature, top_k=1 if greedy else 0, **plain
    )
    generator.enqueue(
        ExLlamaV2DynamicJob(
            input_ids=torch.tensor([list(prompt)]), max_new_tokens=max_tokens, seed=seed, gen_settings=settings
        )
    )
    ids: list[int] = []
    while generator.num_remaining_jobs():
        for result in generator.iterate():
            if "token_ids" in result:
                ids += result["token_ids"][0].tolist()
    return ids


# Loading.


def test_a_loaded_engine_says_what_it_is(engine: ExLlamaV2Engine) -> None:
    info = engine.info

    assert (info.engine, info.context_tokens, info.slots) == ("exllamav2", CONTEXT_TOKENS, SLOTS)
    assert info.adapters == ("one", "two")
    assert info.capabilities == ALWAYS | {Capability.SEEDED, Capability.ADAPTERS}


@pytest.mark.parametrize("suffix", ["q_weight", "qweight"])
def test_quantised_weights_promise_nothing_of_seeds(
    loading: Callable[..., ExLlamaV2Engine], tmp_path: Path, suffix: str
) -> None:
    """On a GPU, runs of one sequence with one seed gave texts that differ: see docs/gpu.md."""
    folder = shutil.copytree(checkpoints.tiny(), tmp_path / "quantised")
    # A tensor that no layer asks for: the stand-ins have no kernel for such weights.
    save_file({f"unused.{suffix}": torch.zeros(1)}, str(folder / "quantised.safetensors"))

    info = loading(path=folder).info

    assert info.capabilities == ALWAYS
    with pytest.raises(CapabilityMissing, match="cannot repeat an answer from its seed"):
        info.require(Capability.SEEDED)


def test_warming_up_leaves_nothing_in_the_cache(loading: Callable[..., ExLlamaV2Engine]) -> None:
    engine = loading(slots=1)

    answer = answer_to(engine, Sequence((0,) * 16, (), 4, GREEDY, 1))

    assert STAND_IN.calls["sample_basic"] > 4
    assert answer.finish is not None
    assert answer.finish.details["cached_tokens"] == 0


@pytest.mark.slow
def test_the_fingerprint_tells_what_decides_the_output(
    loading: Callable[..., ExLlamaV2Engine], digests: Path, tmp_path: Path
) -> None:
    adapter = checkpoints.tiny_adapter(1)
    other_template = tmp_path / "other"
    other_template.mkdir()
    for file in checkpoints.tiny().iterdir():
        (other_template / file.name).write_bytes(file.read_bytes())
    (other_template / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    variants: dict[str, dict[str, Any]] = {
        "as it is": {},
        "cache": {"cache": "Q8"},
        "context": {"context_tokens": 512},
        "rope": {"rope_alpha": 2.0},
        "adapter": {"adapters": {"one": {"path": adapter}}},
        "scaling": {"adapters": {"one": {"path": adapter, "scaling": 0.5}}},
        "draft": {"draft": {"path": checkpoints.tiny()}},
        "template": {"path": other_template},
    }

    found = {name: loading(slots=1, **changes).info.fingerprint for name, changes in variants.items()}

    assert len(set(found.values())) == len(variants), found
    assert loading(slots=2, chunk_tokens=512).info.fingerprint == found["as it is"]


def test_a_pickle_is_refused_before_anything_loads_it(digests: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((checkpoints.tiny() / name).read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"not read")

    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin"):
        ExLlamaV2Engine(table(path=folder), digest_cache=digests)
    with pytest.raises(ModelFileError, match=r"pytorch_model\.bin"):
        ExLlamaV2Engine(table(draft={"path": folder}), digest_cache=digests)


def test_a_template_that_kills_its_process_is_refused_at_load(digests: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in checkpoints.tiny().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text("{{ messages | no_such_filter }}")

    with pytest.raises(EngineUnavailable, match="template"):
        ExLlamaV2Engine(table(path=folder), digest_cache=digests)


def test_a_device_that_is_full_at_the_first_step_is_told_at_load_and_can_be_tried_again(
    loading: Callable[..., ExLlamaV2Engine],
) -> None:
    STAND_IN.reset()
    loading(slots=1).close()
    entries = STAND_IN.calls["rms_norm"]
    # The last one of a load: the last token of the warm-up.
    STAND_IN.fail("rms_norm", FULL, after=entries)

    with pytest.raises(EngineUnavailable, match=r"no room to run.*out of memory.*chunk_tokens"):
        loading(slots=1)

    assert STAND_IN.calls["rms_norm"] == 2 * entries
    again = loading(slots=1)
    assert len(answer_to(again, goes_on(again, max_tokens=3)).ids) == 3


def test_the_progress_of_a_long_load_is_logged_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    progress = LoadingLog("exllamav2", clock=lambda: now)

    with caplog.at_level(logging.INFO):
        for done in range(1, 41):
            now += 1.0
            progress(done, 40)

    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "model_loading engine=exllamav2 modules=5 of=40"
    assert len(lines) == 8


# Keys and values of a prompt.


def test_a_prefix_goes_to_another_engine_through_a_file(
    engine: ExLlamaV2Engine, loading: Callable[..., ExLlamaV2Engine], tmp_path: Path
) -> None:
    asked = goes_on(engine, max_tokens=12, tokens=600)
    undisturbed = answer_to(engine, asked)
    file = tmp_path / "kv.safetensors"

    saved = engine.save_prefix(asked.prompt, file)

    # The last token of a prompt is computed in any case.
    assert saved >= len(asked.prompt) - 1
    adapters = {name: {"path": checkpoints.tiny_adapter(seed)} for name, seed in ADAPTERS.items()}
    other = loading(adapters=adapters)
    assert other.load_prefix(file) == saved
    again = answer_to(other, asked)
    assert again.ids == undisturbed.ids
    assert again.finish is not None
    assert again.finish.details["cached_tokens"] >= len(asked.prompt) - 1


def test_a_prefix_of_another_adapter_is_neither_saved_nor_loaded(engine: ExLlamaV2Engine, tmp_path: Path) -> None:
    asked = goes_on(engine, max_tokens=2, tokens=300)
    answer_to(engine, replace(asked, adapter="one"))
    file = tmp_path / "kv.safetensors"

    assert engine.save_prefix(asked.prompt, file) == 0
    assert not file.exists()
    assert engine.save_prefix(asked.prompt, file, adapter="one") > 0
    answer_to(engine, asked)
    with pytest.raises(PrefixRefused, match="adapter"):
        engine.load_prefix(file)
    with pytest.raises(SequenceFailed, match="there are: one, two"):
        engine.save_prefix(asked.prompt, file, adapter="three")


# Text.


def test_a_conversation_is_rendered_with_the_models_template(engine: ExLlamaV2Engine) -> None:
    ids = chat(engine, "Say yes.")

    assert text_of(engine, ids) == "Say yes."
    assert len(ids) > len(engine.encode("Say yes."))
    assert text_of(engine, answer_to(engine, Sequence(ids, (), 40, GREEDY, 1)).ids) == "yes"


def test_special_tokens_in_plain_text_are_plain_text(engine: ExLlamaV2Engine) -> None:
    assert text_of(engine, engine.encode("</s>")) == "</s>"


def test_a_token_that_is_none_is_an_error(engine: ExLlamaV2Engine) -> None:
    with pytest.raises(EngineError, match="100000 is no token"):
        engine.token_bytes(100000)


# Generating.


def test_ids_are_those_of_exllamav2_called_directly(engine: ExLlamaV2Engine) -> None:
    greedy = goes_on(engine, tokens=300, max_tokens=60)
    drawn = goes_on(engine, seed=5, tokens=300, max_tokens=60, sampling=HOT)

    answers = [answer_to(engine, greedy), answer_to(engine, drawn)]

    assert answers[0].ids == direct(greedy.prompt, max_tokens=60, greedy=True)
    assert answers[1].ids == direct(drawn.prompt, max_tokens=60, greedy=False, seed=drawn.seed)
    assert answers[0].ids != answers[1].ids


def test_an_answer_comes_token_by_token_and_says_what_it_took(engine: ExLlamaV2Engine) -> None:
    answer = answer_to(engine, goes_on(engine, max_tokens=30))

    assert len(answer.ids) == 30
    assert answer.steps >= 30
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.LENGTH
    assert answer.finish.details.keys() >= {"prefill_s", "generate_s", "cached_tokens"}


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Greet me in Japanese.", "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002"),
        ("Show emoji.", "\U0001f389 \U0001f9d1\u200d\U0001f680 \U0001f355 \U0001f1ef\U0001f1f5"),
        ("Write with accents.", "re\u0301sume\u0301, a\u030angstro\u0308m, sen\u0303or"),
    ],
)
def test_an_answer_ends_at_the_end_token_which_is_not_part_of_it(
    engine: ExLlamaV2Engine, question: str, expected: str
) -> None:
    answer = answer_to(engine, Sequence(chat(engine, question), (), 100, GREEDY, 1))

    assert text_of(engine, answer.ids) == expected
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.STOP


def test_eight_together_give_what_each_gives_alone(engine: ExLlamaV2Engine) -> None:
    asked = [goes_on(engine, seed=n, sampling=HOT if n % 2 else GREEDY, max_tokens=30) for n in range(SLOTS)]
    alone = [answer_to(engine, one).ids for one in asked]

    assert [done.result().ids for done in together(engine, asked)] == alone
    assert len({tuple(ids) for ids in alone}) == SLOTS


def test_twice_as_many_as_there_are_slots_are_all_served(engine: ExLlamaV2Engine) -> None:
    asked = [goes_on(engine, seed=n, max_tokens=8) for n in range(2 * SLOTS)]

    assert [len(done.result().ids) for done in together(engine, asked)] == [8] * (2 * SLOTS)


def test_the_same_prompt_eight_times_over_shares_its_pages(engine: ExLlamaV2Engine) -> None:
    # Across the end of a page: the finished pages of all eight are one.
    asked = [goes_on(engine, seed=3, tokens=250, max_tokens=30) for _ in range(SLOTS)]

    answers = [done.result().ids for done in together(engine, asked)]

    assert len(answers[0]) == 30
    assert answers == [answers[0]] * SLOTS


def test_a_seed_repeats_an_answer_and_another_seed_does_not(engine: ExLlamaV2Engine) -> None:
    prompt = story(engine)

    first, again, other = (
        answer_to(engine, Sequence(prompt, (), 30, HOT, seed)).ids for seed in (2**32 - 1, 2**32 - 1, 0)
    )

    assert first == again
    assert first != other


def test_a_second_question_finds_the_pages_of_the_first(engine: ExLlamaV2Engine) -> None:
    answers = [answer_to(engine, goes_on(engine, seed=77, tokens=600, max_tokens=4)) for _ in range(2)]

    assert answers[0].ids == answers[1].ids
    assert answers[1].finish is not None
    assert answers[1].finish.details["cached_tokens"] >= 512


# Resuming. On the CPU prefill and decode compute alike, so that the mechanism shows exactly.


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "drawn"])
@pytest.mark.parametrize("tokens", [20, 250])
def test_a_resumed_sequence_goes_on_exactly(
    loading: Callable[..., ExLlamaV2Engine], engine: ExLlamaV2Engine, sampling: Sampling, tokens: int
) -> None:
    fresh = loading(slots=2)
    whole = goes_on(engine, seed=11, tokens=tokens, max_tokens=40, sampling=sampling)
    undisturbed = answer_to(engine, whole).ids

    for made in (1, 7, 23, 39):
        rest = Sequence(whole.prompt, tuple(undisturbed[:made]), 40 - made, sampling, whole.seed)
        assert answer_to(fresh, rest).ids == undisturbed[made:], made


def test_a_resumed_sequence_that_fills_the_context_is_over(engine: ExLlamaV2Engine) -> None:
    prompt = story(engine, tokens=CONTEXT_TOKENS - 5)

    full = answer_to(engine, Sequence(prompt, (7,) * 5, 10, GREEDY, 1))

    assert (full.ids, full.finish) == ([], Finish(FinishReason.LENGTH))


# Limits, and what a sequence may not be.


def test_an_answer_ends_where_the_context_does(engine: ExLlamaV2Engine) -> None:
    answer = answer_to(engine, goes_on(engine, tokens=CONTEXT_TOKENS - 3, max_tokens=100))

    assert len(answer.ids) == 3
    assert answer.finish is not None
    assert answer.finish.reason is FinishReason.LENGTH


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers(engine: ExLlamaV2Engine) -> None:
    with pytest.raises(PromptTooLong, match=f"{CONTEXT_TOKENS} tokens.*holds {CONTEXT_TOKENS}"):
        answer_to(engine, goes_on(engine, tokens=CONTEXT_TOKENS))


@pytest.mark.parametrize("wrong", [-1, 10**6, 2**40])
def test_an_id_that_is_no_token_is_refused_before_the_device_sees_it(engine: ExLlamaV2Engine, wrong: int) -> None:
    with pytest.raises(SequenceFailed, match=f"{wrong} is no token id"):
        answer_to(engine, Sequence((1, wrong, 2), (), 5, GREEDY, 1))
    with pytest.raises(SequenceFailed, match=f"{wrong} is no token id"):
        answer_to(engine, Sequence((1, 2), (wrong,), 5, GREEDY, 1))


def test_an_empty_prompt_is_refused(engine: ExLlamaV2Engine) -> None:
    with pytest.raises(SequenceFailed, match="no tokens"):
        answer_to(engine, Sequence((), (), 5, GREEDY, 1))


# Cancelling.


def test_a_cancel_amid_decode_ends_that_sequence_alone_and_frees_its_pages(engine: ExLlamaV2Engine) -> None:
    def stop_at_five(answer: Answer) -> Verdict:
        return Verdict.STOP if len(answer.ids) >= 5 else Verdict.GO

    neighbour = goes_on(engine, seed=2, max_tokens=40)
    alone = answer_to(engine, neighbour).ids

    stopped, kept = together(engine, [Asked(goes_on(engine, max_tokens=500), stop_at_five), neighbour])

    assert len(stopped.result().ids) == 5
    assert stopped.result().finish == Finish(FinishReason.CANCELLED)
    assert kept.result().ids == alone
    assert pages_in_use(engine) == 0


def test_a_cancel_amid_prefill_is_heard_and_frees_its_pages(engine: ExLlamaV2Engine) -> None:
    STAND_IN.slow(0.1)
    unknown = goes_on(engine, seed=123, tokens=1000)

    stopped = answer_to(engine, Asked(unknown, lambda answer: Verdict.STOP))

    assert stopped.ids == []
    assert stopped.finish == Finish(FinishReason.CANCELLED)
    assert pages_in_use(engine) == 0


# Failures at run time.


def test_a_sequence_that_makes_the_sampler_fail_fails_alone(engine: ExLlamaV2Engine) -> None:
    asked = [goes_on(engine, seed=n, sampling=HOT, max_tokens=30) for n in range(4)]
    alone = [answer_to(engine, one).ids for one in asked]
    STAND_IN.fail("sample_basic", RuntimeError("no candidate is left"), after=50)

    done = together(engine, asked)

    failed = [n for n, one in enumerate(done) if one.exception() is not None]
    assert len(failed) == 1
    assert isinstance(done[failed[0]].exception(), SequenceFailed)
    assert "no candidate is left" in str(done[failed[0]].exception())
    assert [one.result().ids for n, one in enumerate(done) if n not in failed] == [
        ids for n, ids in enumerate(alone) if n not in failed
    ]
    assert pages_in_use(engine) == 0


def test_a_full_device_amid_decode_costs_one_sequence_and_the_rest_go_on(engine: ExLlamaV2Engine) -> None:
    asked = [goes_on(engine, seed=n, sampling=HOT, max_tokens=30) for n in range(4)]
    alone = [answer_to(engine, one).ids for one in asked]
    together_now = threading.Barrier(4, timeout=DEADLINE_S)

    planned: list[int] = []

    def fail_at_ten(answer: Answer) -> Verdict:
        if len(answer.ids) >= 10 and not planned:
            planned.append(len(answer.ids))
            STAND_IN.fail("rms_norm", FULL)
        return Verdict.GO

    def begin(n: int) -> Answer:
        together_now.wait()
        return answer_to(engine, Asked(asked[n], fail_at_ten) if n == 0 else asked[n])

    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(begin, n) for n in range(4)]

    failed = [n for n, one in enumerate(done) if one.exception() is not None]
    assert len(failed) == 1
    check_full(done[failed[0]].exception())
    assert [one.result().ids for n, one in enumerate(done) if n not in failed] == [
        ids for n, ids in enumerate(alone) if n not in failed
    ]


def test_a_full_device_amid_prefill_costs_the_sequence_that_was_read(engine: ExLlamaV2Engine) -> None:
    long = goes_on(engine, seed=9, tokens=900, max_tokens=10)
    neighbour = goes_on(engine, seed=2, sampling=HOT, max_tokens=60)
    alone = answer_to(engine, neighbour).ids
    asked: list[Future[Answer]] = []

    with ThreadPoolExecutor(1) as pool:

        def ask_for_too_much(answer: Answer) -> Verdict:
            if len(answer.ids) >= 10 and not asked:
                asked.append(pool.submit(answer_to, engine, long))
                # This is between two steps. The next begins with the prompt that arrived.
                eventually(lambda: engine._loop._arrivals, what="the arrival of the long prompt")
                STAND_IN.fail("rms_norm", FULL)
            return Verdict.GO

        kept = answer_to(engine, Asked(neighbour, ask_for_too_much))

    check_full(asked[0].exception())
    assert kept.ids == alone
    assert answer_to(engine, long).ids == direct(long.prompt, max_tokens=10, greedy=True)


def check_full(error: BaseException | None) -> None:
    """That it is the error for people: what happened, and what would fit."""
    assert isinstance(error, EngineOutOfMemory)
    assert "out of memory" in str(error)
    assert "lower chunk_tokens" in str(error)
    assert isinstance(error.__cause__, torch.OutOfMemoryError)


def test_an_engine_whose_device_stays_dead_is_broken_and_says_so(loading: Callable[..., ExLlamaV2Engine]) -> None:
    engine = loading(slots=2)
    dead = RuntimeError("CUDA error: an illegal memory access was encountered")
    for after in range(1, 200):
        STAND_IN.fail("rms_norm", dead, after=after)

    with pytest.raises(EngineBroken, match=r"illegal memory access.*new process"):
        answer_to(engine, goes_on(engine))
    STAND_IN.reset()
    with pytest.raises(EngineBroken):
        answer_to(engine, goes_on(engine))


# Adapters.


def test_adapters_answer_differently_and_each_as_if_it_were_alone(engine: ExLlamaV2Engine) -> None:
    names: list[str | None] = [None, "one", "two"]
    asked = [goes_on(engine, seed=1, tokens=300, max_tokens=12, adapter=name) for name in names]
    alone = [answer_to(engine, one).ids for one in asked]

    mixed = together(engine, asked * 4)

    assert len({tuple(ids) for ids in alone}) == 3
    assert [done.result().ids for done in mixed] == alone * 4


def test_an_unknown_adapter_is_refused_with_those_that_are_known(engine: ExLlamaV2Engine) -> None:
    with pytest.raises(SequenceFailed, match=r"'three' \(there are: one, two"):
        answer_to(engine, goes_on(engine, adapter="three"))


def test_an_adapter_of_a_model_without_any_is_a_missing_capability(loading: Callable[..., ExLlamaV2Engine]) -> None:
    engine = loading(slots=1)

    assert Capability.ADAPTERS not in engine.info.capabilities
    with pytest.raises(
        CapabilityMissing, match=r"cannot serve adapters .* names no adapters: add this one under its key `adapters`"
    ):
        answer_to(engine, goes_on(engine, adapter="one"))


# Kinds of cache, drafts, and running without pages.


@pytest.mark.parametrize("cache", ["Q8", "Q6", "Q4"])
def test_a_quantised_cache_answers_as_well(
    engine: ExLlamaV2Engine, loading: Callable[..., ExLlamaV2Engine], cache: str
) -> None:
    smaller = loading(slots=2, cache=cache)
    prompt = chat(engine, "Count to ten.")

    answer = answer_to(smaller, Sequence(prompt, (), 60, GREEDY, 1))

    assert text_of(smaller, answer.ids) == "one, two, three, four, five, six, seven, eight, nine, ten."
    assert STAND_IN.calls["fp16_to_q_kv"] > 0


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "drawn"])
@pytest.mark.parametrize("draft_tokens", [1, 4, 8])
def test_a_draft_model_changes_no_token_and_no_length(
    engine: ExLlamaV2Engine, loading: Callable[..., ExLlamaV2Engine], sampling: Sampling, draft_tokens: int
) -> None:
    drafting = loading(slots=4, draft={"path": checkpoints.tiny(), "tokens": draft_tokens})
    asked = [goes_on(engine, seed=n, tokens=250, sampling=sampling, max_tokens=21) for n in range(4)]
    expected = [answer_to(engine, one).ids for one in asked]

    answers = [done.result() for done in together(drafting, asked)]

    assert [answer.ids for answer in answers] == expected
    assert [len(ids) for ids in expected] == [21] * 4
    assert drafting.info.context_tokens == CONTEXT_TOKENS
    assert answers[0].finish is not None
    if sampling is GREEDY:
        assert answers[0].finish.details["accepted_draft_tokens"] > 0
    assert pages_in_use(drafting) == 0


def test_a_draft_model_leaves_the_whole_context_to_a_sequence(
    engine: ExLlamaV2Engine, loading: Callable[..., ExLlamaV2Engine]
) -> None:
    drafting = loading(slots=1, draft={"path": checkpoints.tiny(), "tokens": 4})
    asked = goes_on(engine, tokens=CONTEXT_TOKENS - 10, max_tokens=100)

    answer = answer_to(drafting, asked)

    assert answer.ids == answer_to(engine, asked).ids
    assert len(answer.ids) == 10


@pytest.mark.parametrize("draft", [None, {"path": "", "tokens": 3}], ids=["alone", "drafting"])
def test_without_pages_one_sequence_at_a_time_gives_the_same(
    engine: ExLlamaV2Engine, loading: Callable[..., ExLlamaV2Engine], draft: dict[str, Any] | None
) -> None:
    if draft is not None:
        draft = draft | {"path": checkpoints.tiny()}
    unpaged = loading(slots=1, paged=False, draft=draft)
    asked = [goes_on(engine, seed=n, tokens=300, sampling=HOT, max_tokens=20) for n in range(3)]
    expected = [answer_to(engine, one).ids for one in asked]

    assert [done.result().ids for done in together(unpaged, asked)] == expected


# The end.


def test_closing_under_running_sequences_refuses_them_and_whoever_comes_later(
    loading: Callable[..., ExLlamaV2Engine],
) -> None:
    engine = loading(slots=2)
    running = threading.Event()

    def tell(answer: Answer) -> Verdict:
        running.set()
        return Verdict.GO

    STAND_IN.slow(0.01)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(answer_to, engine, Asked(goes_on(engine, seed=n, max_tokens=900), tell)) for n in range(3)]
        assert running.wait(DEADLINE_S)
        engine.close()
        errors = [one.exception(DEADLINE_S) for one in asked]

    assert [type(error) for error in errors] == [EngineError] * 3
    assert str(errors[0]) == "The engine is closed."
    with pytest.raises(EngineError, match="closed"):
        answer_to(engine, goes_on(engine))
    engine.close()


def test_an_engine_can_be_loaded_again_after_it_was_closed(loading: Callable[..., ExLlamaV2Engine]) -> None:
    first = loading(slots=1)
    before = answer_to(first, goes_on(first)).ids
    first.close()

    assert answer_to(loading(slots=1), goes_on(first)).ids == before
