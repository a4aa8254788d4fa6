"""What exllamav2 does wrong without a word, and what the adapter makes of it. Each test shows both on the real package.

The traps of loading (attention without flash-attn, the size of the batch, the import, tensor parallel) are tested with
the modules that load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import pytest

from exllamav2_cpu.availability import require_exllamav2
from headpond.errors import EngineOutOfMemory, PromptTooLong, SequenceFailed
from headpond.jobs import FinishReason
from headpond.sampling import Sampling
from headpond.tables import ExLlamaV2Model
from headpond_workers.engines.exllama.batch_generator import SequenceCrashed
from headpond_workers.engines.formats.checkpoint_folder import check_adapter, check_checkpoint
from headpond_workers.engines.formats.hf_vocabulary import HfVocabulary, read_hf_vocabulary
from headpond_workers.engines.protocol import Sequence

require_exllamav2()

from exllamav2_cpu import checkpoints, harness  # noqa: E402

STAND_IN = harness.install()

import torch  # noqa: E402
from exllamav2.generator import ExLlamaV2DynamicJob, ExLlamaV2Sampler  # noqa: E402
from exllamav2.generator.filters import ExLlamaV2Filter  # noqa: E402

from headpond_workers.engines.exllama.preflight import import_exllamav2  # noqa: E402
from headpond_workers.engines.exllamav2.jobs import ExLlamaV2Jobs  # noqa: E402
from headpond_workers.engines.exllamav2.loading import LoadedModel, load_model  # noqa: E402
from headpond_workers.engines.exllamav2.sampling import fields_of  # noqa: E402

CONTEXT_TOKENS = 512
GREEDY = Sampling(temperature=0)
HOT = Sampling(temperature=3.0)
STORY = "The quick brown fox jumps over the lazy dog. A worker binds one model and answers jobs in turn. " * 20
JAPANESE = "<s><|user|>Greet me in Japanese.<|assistant|>"


def loaded_with(digests: Path, **changes: Any) -> LoadedModel:
    values: dict[str, Any] = {
        "engine": "exllamav2",
        "path": checkpoints.tiny(),
        "context_tokens": CONTEXT_TOKENS,
        "cache_tokens": 2048,
        "slots": 4,
        "chunk_tokens": 256,
        "adapters": {"one": {"path": checkpoints.tiny_adapter(1)}},
    }
    settings = ExLlamaV2Model.model_validate(values | changes)
    import_exllamav2(settings)
    folder = check_checkpoint(settings.path, digest_cache=digests)
    adapters = {name: check_adapter(adapter.path, digest_cache=digests) for name, adapter in settings.adapters.items()}
    return load_model(settings, folder, adapters, on_layer=lambda done, total: None)


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("digests")


@pytest.fixture(scope="module")
def vocabulary() -> HfVocabulary:
    return read_hf_vocabulary(checkpoints.tiny())


@pytest.fixture(scope="module")
def loaded(digests: Path) -> Iterator[LoadedModel]:
    loaded = loaded_with(digests)
    yield loaded
    loaded.unload()


@pytest.fixture
def jobs(loaded: LoadedModel, vocabulary: HfVocabulary) -> Iterator[ExLlamaV2Jobs]:
    """A generator of its own, with an empty cache."""
    STAND_IN.reset()
    yield ExLlamaV2Jobs(loaded, end_ids=vocabulary.end_ids)
    STAND_IN.reset()


@pytest.fixture
def endless(loaded: LoadedModel) -> Iterator[ExLlamaV2Jobs]:
    """As `jobs`, but no token ends an answer.

    Which draws hit the end token hangs on the last bits of the weights, so on the processor that trained them.
    """
    STAND_IN.reset()
    yield ExLlamaV2Jobs(loaded, end_ids=())
    STAND_IN.reset()


@pytest.fixture(scope="module")
def story(vocabulary: HfVocabulary) -> tuple[int, ...]:
    """A prompt of 300 tokens: a whole page of the cache, and a part of another."""
    return tuple(vocabulary.encode(STORY)[:300])


def sequence(prompt: Seq[int], *, max_tokens: int = 12, sampling: Sampling = GREEDY, **more: Any) -> Sequence:
    return Sequence(tuple(prompt), more.pop("generated", ()), max_tokens, sampling, more.pop("seed", 1), **more)


def run(jobs: ExLlamaV2Jobs, *handles: Any) -> list[list[int]]:
    """Step until all of these are over; the ids of each."""
    ids: dict[Any, list[int]] = {handle: [] for handle in handles}
    running = set(handles)
    while running:
        for step in jobs.step():
            ids[step.handle].extend(step.ids)
            if step.finish is not None:
                running.remove(step.handle)
    return [ids[handle] for handle in handles]


def answer(jobs: ExLlamaV2Jobs, asked: Sequence) -> list[int]:
    return run(jobs, jobs.admit(asked))[0]


def run_raw(generator: Any, *raw: Any) -> list[dict[str, Any]]:
    """exllamav2 alone: all results of these jobs."""
    for job in raw:
        generator.enqueue(job)
    results = []
    while generator.num_remaining_jobs():
        results += generator.iterate()
    return results


def raw_job(prompt: Seq[int], *, max_new_tokens: int = 12, **more: Any) -> Any:
    settings = more.pop("gen_settings", None) or ExLlamaV2Sampler.Settings.greedy()
    return ExLlamaV2DynamicJob(
        input_ids=torch.tensor([list(prompt)]), max_new_tokens=max_new_tokens, gen_settings=settings, **more
    )


def ids_of(results: list[dict[str, Any]]) -> list[int]:
    return [number for result in results if "token_ids" in result for number in result["token_ids"][0].tolist()]


def is_clear(jobs: ExLlamaV2Jobs) -> bool:
    generator = jobs._generator
    return not generator.num_remaining_jobs() and not generator.referenced_pages


# 2. set_loras(None) raises IndexError at the next step.


def test_going_back_to_the_bare_model_is_possible(
    jobs: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...]
) -> None:
    raw = loaded.new_generator()
    raw.set_loras(None)
    with pytest.raises(IndexError):
        run_raw(raw, raw_job(story))

    bare = answer(jobs, sequence(story))
    jobs.use_adapter("one")
    adapted = answer(jobs, sequence(story))
    jobs.use_adapter(None)

    assert adapted != bare
    assert answer(jobs, sequence(story)) == bare


# 3. Pages are found by their token ids, whatever adapter made them.


def test_an_adapter_never_reads_the_pages_of_another(
    jobs: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...], vocabulary: HfVocabulary
) -> None:
    raw = loaded.new_generator()
    run_raw(raw, raw_job(story))
    raw.set_loras([loaded.adapters["one"]])
    stale = run_raw(raw, raw_job(story))
    assert stale[-1]["cached_tokens"] > 256

    fresh = ExLlamaV2Jobs(loaded, end_ids=vocabulary.end_ids)
    fresh.use_adapter("one")
    expected = answer(fresh, sequence(story))
    answer(jobs, sequence(story))
    jobs.use_adapter("one")

    assert answer(jobs, sequence(story)) == expected
    assert ids_of(stale) != expected


def test_staying_with_an_adapter_keeps_its_pages(jobs: ExLlamaV2Jobs, story: tuple[int, ...]) -> None:
    jobs.use_adapter("one")
    answer(jobs, sequence(story))
    jobs.use_adapter("one")
    handle = jobs.admit(sequence(story))
    run(jobs, handle)

    assert handle.cached_pages == 1


# 4. The text in results is lossy for UTF-8.


def test_a_character_that_two_attempts_made_is_whole(
    jobs: ExLlamaV2Jobs, loaded: LoadedModel, vocabulary: HfVocabulary
) -> None:
    prompt = vocabulary.encode_rendered(JAPANESE)
    results = run_raw(loaded.new_generator(), raw_job(prompt, max_new_tokens=2))
    assert results[-1]["text"] == "\ufffd\ufffd"

    first = answer(jobs, sequence(prompt, max_tokens=2))
    rest = answer(jobs, sequence(prompt, max_tokens=40, generated=tuple(first)))

    assert len(first) == 2
    text = b"".join(vocabulary.token_bytes[number] for number in first + rest).decode()
    assert text == "\u3053\u3093\u306b\u3061\u306f\u3001\u4e16\u754c\u3002"


# 5. At a stop token, ids that were held back come apart from the others, the stop token among them.


def test_ids_that_were_held_at_the_end_are_given_and_the_end_token_is_not(
    loaded: LoadedModel, vocabulary: HfVocabulary
) -> None:
    prompt = vocabulary.encode_rendered(JAPANESE)
    whole = ids_of(run_raw(loaded.new_generator(), raw_job(prompt, max_new_tokens=30)))
    # The third byte of a character as the end: two bytes of it are held back then.
    end = whole[2]
    results = run_raw(loaded.new_generator(), raw_job(prompt, max_new_tokens=30, stop_conditions=[end]))
    assert ids_of(results) == []
    assert results[-1]["new_tokens"] == 3
    jobs = ExLlamaV2Jobs(loaded, end_ids=[end])

    handle = jobs.admit(sequence(prompt, max_tokens=30))

    steps = []
    while not any(step.finish for step in steps):
        steps += jobs.step()
    assert [number for step in steps for number in step.ids] == whole[:2]
    assert steps[-1].handle is handle
    assert steps[-1].finish is FinishReason.STOP


def test_no_stop_string_reaches_exllamav2(jobs: ExLlamaV2Jobs, vocabulary: HfVocabulary) -> None:
    handle = jobs.admit(sequence((1, 2, 3)))

    assert handle.stop_strings == set()
    assert handle.stop_tokens == vocabulary.end_ids


# 6. An exception of one job leaves iterate() without a name on it, and every job active.


class _Failing(ExLlamaV2Filter):
    """Fails when it is asked what may follow the third token."""

    def __init__(self, loaded: LoadedModel, error: Exception) -> None:
        super().__init__(loaded.model, loaded.tokenizer)
        self.error = error
        self.fed = 0

    def begin(self, prefix_str: str = "") -> None:
        return None

    def feed(self, token: Any) -> None:
        self.fed += 1

    def next(self) -> tuple[None, None]:
        if self.fed >= 3:
            raise self.error
        return None, None


@pytest.mark.parametrize("neighbours", [1, 3], ids=["one thread", "the pool of sampling threads"])
def test_a_failing_job_is_told_from_its_neighbours_which_go_on(
    endless: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...], neighbours: int
) -> None:
    asked = [sequence(story[n:], sampling=HOT, seed=n) for n in range(neighbours + 1)]
    undisturbed = ExLlamaV2Jobs(loaded, end_ids=())
    expected = [answer(undisturbed, one) for one in asked]
    handles = [endless.admit(one) for one in asked]
    cause = ValueError("this filter excludes everything")
    handles[1].filters.append(_Failing(loaded, cause))

    emitted: dict[Any, list[int]] = {handle: [] for handle in handles}
    crash = None
    while crash is None:
        try:
            for step in endless.step():
                emitted[step.handle].extend(step.ids)
        except SequenceCrashed as error:
            crash = error
    assert crash.handle is handles[1]
    assert all(3 <= handle.new_tokens < 12 for handle in handles)
    assert crash.cause is cause
    generator = endless._generator
    assert set(generator.active_jobs) == set(handles)

    endless.recover()

    assert is_clear(endless)
    assert endless._generator is generator
    rest = [
        dataclasses.replace(one, generated=tuple(emitted[handle]), max_tokens=one.max_tokens - len(emitted[handle]))
        for one, handle in zip(asked, handles, strict=True)
    ]
    again = run(endless, *[endless.admit(one) for one in rest])
    assert [emitted[handle] + ids for handle, ids in zip(handles, again, strict=True)] == expected


def test_a_failed_pass_of_the_whole_batch_is_nobodys_fault(jobs: ExLlamaV2Jobs, story: tuple[int, ...]) -> None:
    handles = [jobs.admit(sequence(story[n:], max_tokens=20)) for n in range(2)]
    while not all(handle.new_tokens for handle in handles):
        jobs.step()
    cause = RuntimeError("a kernel failed")
    STAND_IN.fail("rms_norm", cause)

    with pytest.raises(RuntimeError) as failed:
        jobs.step()

    assert failed.value is cause


def test_a_failed_pass_over_a_prompt_is_told_from_its_neighbours(jobs: ExLlamaV2Jobs, story: tuple[int, ...]) -> None:
    running = jobs.admit(sequence(story, max_tokens=20))
    while not running.new_tokens:
        jobs.step()
    STAND_IN.fail("rms_norm", RuntimeError("a kernel failed"))
    reading = jobs.admit(sequence(story[7:], max_tokens=20))

    with pytest.raises(SequenceCrashed) as crash:
        jobs.step()

    assert crash.value.handle is reading


def test_no_token_whose_keys_were_never_written_is_found_again(
    endless: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...]
) -> None:
    # A step counts its tokens as present in their pages before the device has computed them.
    asked = sequence(story, max_tokens=20, sampling=HOT)
    expected = ids_of(
        run_raw(loaded.new_generator(), raw_job(story, max_new_tokens=20, seed=1, gen_settings=hot_settings()))
    )
    handle = endless.admit(asked)
    emitted: list[int] = []
    while len(emitted) < 8:
        emitted += [number for step in endless.step() for number in step.ids]
    page = handle.sequences[0].allocated_pages[-1]
    present = page.kv_position
    STAND_IN.fail("rms_norm", RuntimeError("a kernel failed"))
    with pytest.raises(RuntimeError, match="a kernel failed"):
        endless.step()
    assert page.kv_position == present + 1

    endless.recover()

    rest = dataclasses.replace(asked, generated=tuple(emitted), max_tokens=20 - len(emitted))
    again = endless.admit(rest)
    assert emitted + run(endless, again)[0] == expected
    assert again.cached_tokens + again.cached_pages == 0


def hot_settings() -> Any:
    return ExLlamaV2Sampler.Settings(temperature=3.0, top_k=0, top_p=0.0, token_repetition_penalty=1.0)


def test_a_generator_that_cannot_be_cleared_is_replaced_and_keeps_its_adapter(
    jobs: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...], vocabulary: HfVocabulary
) -> None:
    fresh = ExLlamaV2Jobs(loaded, end_ids=vocabulary.end_ids)
    fresh.use_adapter("one")
    expected = answer(fresh, sequence(story))
    jobs.use_adapter("one")
    jobs.admit(sequence(story))
    jobs.step()
    before = jobs._generator
    before.referenced_pages.clear()

    jobs.recover()

    assert jobs._generator is not before
    assert is_clear(jobs)
    assert answer(jobs, sequence(story)) == expected


def test_a_device_that_does_not_answer_any_more_is_no_recovery(jobs: ExLlamaV2Jobs) -> None:
    dead = RuntimeError("CUDA error: an illegal memory access was encountered")
    STAND_IN.fail("rms_norm", dead)

    with pytest.raises(RuntimeError) as failed:
        jobs.recover()

    assert failed.value is dead


@pytest.mark.parametrize("amid", ["prefill", "decode"])
def test_a_full_device_is_told_as_such_and_its_tensors_are_let_go(
    jobs: ExLlamaV2Jobs, story: tuple[int, ...], amid: str
) -> None:
    handle = jobs.admit(sequence(story, max_tokens=20))
    while amid == "decode" and not handle.new_tokens:
        jobs.step()
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    STAND_IN.fail("rms_norm", full, after=2)

    with pytest.raises((SequenceCrashed, EngineOutOfMemory)) as failed:
        jobs.step()

    error = failed.value.cause if isinstance(failed.value, SequenceCrashed) else failed.value
    assert isinstance(failed.value, SequenceCrashed) == (amid == "prefill")
    assert isinstance(error, EngineOutOfMemory)
    assert "lower chunk_tokens" in str(error)
    frame = full.__traceback__
    kept = []
    while frame is not None:
        if "exllamav2" in frame.tb_frame.f_code.co_filename and "headpond" not in frame.tb_frame.f_code.co_filename:
            kept += [value for value in frame.tb_frame.f_locals.values() if isinstance(value, torch.Tensor)]
        frame = frame.tb_next
    assert kept == []


# 7. The model's length is not enforced.


def test_a_sequence_never_grows_past_the_context(
    jobs: ExLlamaV2Jobs, loaded: LoadedModel, vocabulary: HfVocabulary
) -> None:
    prompt = vocabulary.encode(STORY)[: CONTEXT_TOKENS - 2]
    raw = loaded.new_generator()
    raw.enqueue(raw_job(prompt, max_new_tokens=100))
    assert len(prompt) + 100 > loaded.config.max_seq_len
    raw.clear_queue()

    assert len(answer(jobs, sequence(prompt, max_tokens=100))) == 2
    assert len(answer(jobs, sequence(prompt, max_tokens=100, generated=(5,)))) == 1
    with pytest.raises(PromptTooLong, match=f"holds {CONTEXT_TOKENS}"):
        jobs.admit(sequence([*prompt, 5, 5]))
    assert is_clear(jobs)


def test_an_id_without_an_embedding_is_refused_before_it_reaches_the_device(
    endless: ExLlamaV2Jobs, loaded: LoadedModel
) -> None:
    size = loaded.config.vocab_size
    loaded.new_generator().enqueue(raw_job([1, size, 2]))

    for wrong in (-1, size):
        with pytest.raises(SequenceFailed, match=f"{wrong} is no token id of this model, which has {size}"):
            endless.admit(sequence((1, wrong, 2)))
    assert len(answer(endless, sequence((0, size - 1), max_tokens=2, sampling=HOT))) == 2


def test_a_sequence_that_the_generator_refuses_fails_alone(digests: Path) -> None:
    # The settings see to it that one sequence always fits: here they say less than the truth.
    loaded = loaded_with(digests, cache_tokens=512)
    jobs = ExLlamaV2Jobs(loaded, end_ids=())
    jobs._generator.max_pages = 1

    with pytest.raises(SequenceFailed, match=r"refuses this sequence of 300 tokens .*2 pages"):
        jobs.admit(sequence((5,) * 300))
    loaded.unload()


# 8. With a draft model a job ends so many tokens before max_new_tokens as are drafted.


@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_a_draft_model_cuts_no_answer_short(
    jobs: ExLlamaV2Jobs, digests: Path, story: tuple[int, ...], draft_tokens: int
) -> None:
    loaded = loaded_with(digests, draft={"path": checkpoints.tiny(), "tokens": draft_tokens})
    results = run_raw(loaded.new_generator(), raw_job(story, max_new_tokens=20))
    assert len(ids_of(results)) == 20 - draft_tokens
    drafting = ExLlamaV2Jobs(loaded, end_ids=())

    assert drafting.context_tokens == CONTEXT_TOKENS
    assert answer(drafting, sequence(story, max_tokens=20)) == answer(jobs, sequence(story, max_tokens=20))
    assert len(answer(drafting, sequence(story, max_tokens=CONTEXT_TOKENS))) == CONTEXT_TOKENS - len(story)
    assert is_clear(drafting)
    drafting.close()


# 9. Settings carry the state of a job.


def test_two_jobs_of_one_request_have_settings_of_their_own(jobs: ExLlamaV2Jobs) -> None:
    sampling = Sampling(temperature=0.7)

    one, other = (jobs.admit(sequence((1, 2, 3), sampling=sampling)).gen_settings for _ in range(2))

    assert one is not other
    assert one.ngram_history is not other.ngram_history
    assert one.clone().ngram_history is one.ngram_history


# 12. Settings have defaults of their own.


def test_a_job_is_sampled_as_it_was_asked_and_no_other_way(jobs: ExLlamaV2Jobs) -> None:
    sampling = Sampling(temperature=0.7, top_p=0.9)

    job = jobs.admit(sequence((1, 2, 3), sampling=sampling))

    assert dataclasses.asdict(job.gen_settings) == fields_of(sampling)
    assert (job.gen_settings.token_repetition_penalty, job.gen_settings.top_k) == (1.0, 0)
    by_default = ExLlamaV2DynamicJob(input_ids=torch.tensor([[1]]), max_new_tokens=1).gen_settings
    assert (by_default.token_repetition_penalty, by_default.top_k) == (1.025, 50)


# 13. A job takes any keyword, and drops those that it does not know.


def test_a_misspelt_argument_of_a_job_is_an_error(jobs: ExLlamaV2Jobs) -> None:
    ids = torch.tensor([[1, 2]])
    assert ExLlamaV2DynamicJob(input_ids=ids, max_new_tokens=1, stop_condition=[3]).stop_tokens == set()

    with pytest.raises(TypeError, match="no parameter seeed, stop_condition"):
        jobs._new_job(input_ids=ids, max_new_tokens=1, stop_condition=[3], seeed=1)


# A page that a sequence generated into may count as the first page of a prompt.


def test_a_prompt_is_never_given_keys_of_the_middle_of_another(
    jobs: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...], vocabulary: HfVocabulary
) -> None:
    # One token more than a whole page. The second time, all of its keys are found.
    first = story[:257]
    raw = loaded.new_generator()
    made = ids_of(run_raw(raw, raw_job(first, max_new_tokens=60)))
    run_raw(raw, raw_job(first, max_new_tokens=60))
    # What went into the second page, as a prompt of its own.
    second = [first[256], *made[:40]]
    results = run_raw(raw, raw_job(second, gen_settings=hot_settings(), seed=1))
    assert results[-1]["cached_tokens"] == len(second) - 1
    fresh = ExLlamaV2Jobs(loaded, end_ids=vocabulary.end_ids)
    expected = answer(fresh, sequence(second, sampling=HOT))
    assert ids_of(results) != expected

    for _ in range(2):
        answer(jobs, sequence(first, max_tokens=60))
    handle = jobs.admit(sequence(second, sampling=HOT))

    assert run(jobs, handle)[0] == expected
    assert handle.cached_tokens == 0


# And what is no trap, but must not be lost.


def test_draws_of_earlier_attempts_are_thrown_away(
    endless: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...]
) -> None:
    whole = answer(endless, sequence(story, max_tokens=40, sampling=HOT, seed=5))

    for made in (1, 7, 23):
        fresh = ExLlamaV2Jobs(loaded, end_ids=())
        rest = sequence(story, max_tokens=40 - made, sampling=HOT, seed=5, generated=tuple(whole[:made]))
        assert answer(fresh, rest) == whole[made:]


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_a_cancelled_job_holds_no_page_whatever_it_was_doing(
    jobs: ExLlamaV2Jobs, story: tuple[int, ...], steps: int
) -> None:
    kept = jobs.admit(sequence(story[3:]))
    handle = jobs.admit(sequence(story, max_tokens=100))
    made = [number for _ in range(steps) for step in jobs.step() if step.handle is kept for number in step.ids]

    jobs.cancel(handle)

    assert len(made + run(jobs, kept)[0]) == 12
    assert is_clear(jobs)


def test_closing_ends_the_threads_and_frees_the_device(digests: Path, story: tuple[int, ...]) -> None:
    loaded = loaded_with(digests)
    jobs = ExLlamaV2Jobs(loaded, end_ids=())
    for n in range(4):
        jobs.admit(sequence(story[n:]))
    for _ in range(5):
        jobs.step()
    pool = jobs._generator.sampling_pool
    assert any(thread.is_alive() for thread in pool._threads)

    jobs.close()

    assert not any(thread.is_alive() for thread in pool._threads)
    assert not loaded.cache.key_states


def test_ids_are_not_held_back_until_their_text_is_complete(
    endless: ExLlamaV2Jobs, loaded: LoadedModel, story: tuple[int, ...]
) -> None:
    """Bytes that are no UTF-8, as they come at a high temperature, hold back all ids after them."""
    raw = loaded.new_generator()
    for seed in range(20):
        results = run_raw(raw, raw_job(story, max_new_tokens=60, gen_settings=hot_settings(), seed=seed))
        if max(len(result["token_ids"][0]) for result in results if "token_ids" in result) >= 5:
            break
    else:
        pytest.fail("exllamav2 held nothing back: is the trap gone?")

    endless.admit(sequence(story, max_tokens=60, sampling=HOT, seed=seed))
    sizes, ids, running = [], [], True
    while running:
        for step in endless.step():
            sizes.append(len(step.ids))
            ids += step.ids
            running = step.finish is None

    assert ids == ids_of(results)
    assert set(sizes) == {1}
